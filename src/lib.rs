//! Qwen3-VL fine-tuning and inference.
pub mod base;
pub mod data;
pub mod io;
pub mod qwen3vl;
