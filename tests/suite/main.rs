//! Every integration test, in one binary.

mod adapter;
mod checkpoint;
mod config;
mod folders;
mod generation_config;
mod init;
mod merge;
mod names;
mod safetensors;
