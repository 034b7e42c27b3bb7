//! Scoring of labelled sets: predictions, and what they add up to.
//!
//! Floor 8: uses `infer`, `qwen3vl`, `data`, `io`, `base`. Start at [`evaluate`], then [`metrics`].

pub mod evaluate;
pub mod metrics;
