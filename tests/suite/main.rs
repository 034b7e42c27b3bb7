//! All tests of the program in one binary: one link, one report.

mod adapter;
mod checkpoint;
mod config;
mod dataset;
mod folders;
mod generation_config;
mod image_files;
mod images;
mod init;
mod merge;
mod names;
mod prompt;
mod safetensors;
