//! Training: the step, the loop, the run's folder.
//!
//! Floor 8: uses `infer`, `classify`, `qwen3vl`, `data`, `io`, `tape`, `device`, `base`. Start at [`step`].

pub mod step;
