//! Files: memory maps, safetensors, JSON with sentences for errors, and writing that never leaves half a file.
//!
//! Floor 1: uses `base` only. Start at [`safetensors`]; [`atomic`] is how everything is written.

pub mod atomic;
pub mod host_tensor;
pub mod json;
pub mod log_file;
pub mod mapped;
pub mod safetensors;

pub use host_tensor::{HostData, HostTensor};
