//! All tests of the program in one binary: one link, one report.

mod adapter;
mod batches;
mod checkpoint;
mod config;
mod dataset;
mod documents;
mod folders;
mod generation_config;
mod golden_cases;
mod image_files;
mod images;
mod init;
mod merge;
mod names;
mod prompt;
mod safetensors;
