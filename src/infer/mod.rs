//! Prefill, decode, sampling, scoring of a closed set of answers.
//!
//! Floor 8: uses `qwen3vl`, `tape`, `ops`' argument types, `device`, `tensor`, `io`, `base`. Start at [`engine`],
//! then [`generate`].

pub mod cache;
pub mod choices;
pub mod engine;
pub mod features;
pub mod generate;
pub mod lists;
pub mod trace;
