//! Tests of the library from outside, one module per topic.

mod image_files;
mod images;
