//! Photos and text to arrays: [`image`] decodes, resizes and cuts pictures into patches, [`messages`] and [`dataset`]
//! read conversations, [`import`] makes datasets of folders.
//!
//! Floor 1: uses `base` only. Start at [`image`].

pub mod dataset;
pub mod image;
pub mod import;
pub mod messages;
pub mod pairs;
