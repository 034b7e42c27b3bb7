//! Training: the step, the loop, the run's folder.
//!
//! Floor 8: uses `infer`, `classify`, `qwen3vl`, `data`, `io`, `tape`, `ops`, `device`, `tensor`, `host`, `base`. Start at
//! [`session`], the loop, and [`step`]; what a run needs is known before from [`plan`]. Which samples a step learns from
//! ([`order`]) and at which rate ([`schedule`]) follows from its number alone, so that a resumed run needs no state of
//! theirs. What a run reads is checked in `inputs`, what it is judged by on the way is in `evaluation`, what it leaves in
//! `result`. [`run_folder`] owns a run's files; [`sweep`] searches over settings.

pub mod checkpoint;
pub mod config_file;
mod evaluation;
pub mod events;
pub mod examples;
pub mod features;
pub mod fingerprint;
pub mod forms;
mod inputs;
pub mod lora;
pub mod metrics;
pub mod mfu;
pub mod order;
pub mod plan;
mod result;
pub mod roof;
pub mod run_folder;
pub mod schedule;
pub mod session;
pub mod sets;
pub mod settings;
pub mod step;
pub mod sweep;
