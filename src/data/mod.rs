//! Photos and text to arrays: [`image`] decodes, resizes and cuts pictures into patches, [`messages`] and [`dataset`]
//! read conversations, [`import`] makes datasets of folders, tables and annotations.
//!
//! Of a photo: [`look`] says what its file is, [`alike`] whether it looks the same as another, [`excerpt`] whether it is a
//! part of one. Of a set: [`census`] says what is in it, [`sheet`] shows its photos on one picture, [`whole`] says whether they
//! are undamaged, [`split`] cuts it into parts, [`pairs`] holds its near-duplicates, [`rewrite`] moves its lines to another
//! folder, with the paths that [`paths`] makes, [`label`] is the form in which labels are compared. [`drawn`] makes photos to
//! try all this on.
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
