//! All tests of the program in one binary: one link, one report.

mod dataset;
mod image_files;
mod images;
mod prompt;
