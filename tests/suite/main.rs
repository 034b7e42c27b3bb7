//! All tests of the program in one binary: one link, one report.

mod adapter;
mod checkpoint;
mod config;
mod dataset;
mod folders;
mod generation_config;
mod host_attention;
mod host_linear;
mod host_linear_loss;
mod host_norm;
mod host_optimizer;
mod host_qk_rope;
mod host_rows;
mod host_sample;
mod image_files;
mod images;
mod init;
mod merge;
mod names;
mod prompt;
mod safetensors;
mod support;
mod train_order;
mod train_schedule;
