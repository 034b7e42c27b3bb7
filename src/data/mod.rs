//! Photos and text to arrays.

pub mod image;
