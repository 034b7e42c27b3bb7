//! Photos and text to arrays.
