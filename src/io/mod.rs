//! Files: memory maps, safetensors, JSON with sentences for errors, writing that never leaves half a file, one writer a
//! folder, and what a folder is.
//!
//! Floor 1: uses `base` only. Start at [`safetensors`]; what a command leaves is written by [`atomic`], and by [`log_file`]
//! what grows line by line.

pub mod atomic;
pub mod folder_kind;
pub mod host_tensor;
pub mod json;
pub mod lock;
pub mod log_file;
pub mod mapped;
pub mod safetensors;

pub use host_tensor::{HostData, HostTensor};
