//! Qwen3-VL fine-tuning and inference.
pub mod base;
pub mod classify;
pub mod cli;
pub mod data;
pub mod device;
pub mod host;
pub mod infer;
pub mod io;
pub mod nn;
pub mod ops;
pub mod qwen3vl;
pub mod tape;
pub mod tensor;
pub mod train;
