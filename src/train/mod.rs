//! Fine-tuning: what is trained on in which order, at which rate, and the folder that a run leaves behind.
//!
//! Floor 8: uses `classify`, `infer`, `qwen3vl`, `data`, `io`, `tape`, `device`, `base`. Start at [`settings`], what a
//! run is asked for; [`order`] says which samples make a step and [`schedule`] its learning rate, both from the step's
//! number alone, so that a resumed run needs no state of theirs. [`lora`] resolves which modules are trained,
//! [`run_folder`] owns the files of a run, with its [`metrics`] and [`checkpoint`]s.

pub mod order;
pub mod schedule;
