//! Training: the step, the loop, the run's folder.
//!
//! Floor 8: uses `infer`, `classify`, `qwen3vl`, `data`, `io`, `tape`, `device`, `base`. Start at [`step`]. Which samples
//! it learns from ([`order`]) and at which rate ([`schedule`]) follows from its number alone, so that a resumed run needs
//! no state of theirs.

pub mod order;
pub mod schedule;
pub mod step;
