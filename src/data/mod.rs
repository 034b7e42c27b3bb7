//! Photos and text to arrays: [`image`] decodes, resizes and cuts pictures into patches, [`messages`] and [`dataset`]
//! read conversations, [`import`] makes datasets of folders, tables and annotations, [`census`] says what is in one,
//! [`whole`] whether its photos are, [`split`] cuts it into parts, [`pairs`] holds near-duplicates.
//!
//! Floor 1: uses `base` only. Start at [`image`].

pub mod alike;
pub mod census;
pub mod dataset;
pub mod drawn;
pub mod excerpt;
pub mod image;
pub mod import;
pub mod label;
pub mod look;
pub mod messages;
pub mod pairs;
pub mod paths;
pub mod rewrite;
pub mod sheet;
pub mod split;
pub mod whole;
