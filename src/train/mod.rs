//! Training: the step, the loop, the run's folder.
//!
//! Floor 8: uses `infer`, `classify`, `qwen3vl`, `data`, `io`, `tape`, `device`, `base`. Start at [`step`]. Which samples
//! it learns from ([`order`]) and at which rate ([`schedule`]) follows from its number alone, so that a resumed run needs
//! no state of theirs.

pub mod checkpoint;
pub mod config_file;
pub mod events;
pub mod fingerprint;
pub mod log_file;
pub mod lora;
pub mod metrics;
pub mod order;
pub mod run_folder;
pub mod schedule;
pub mod settings;
pub mod step;
