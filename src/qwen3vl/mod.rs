//! The Qwen3-VL family: its configuration, its checkpoint and adapter folders, its preprocessing constants.
//!
//! Floor 7: uses `nn`, `tape`, `io`, `device`, `base`. Start at [`config`] and [`names`], the one place that knows how
//! a checkpoint calls its tensors; [`checkpoint`] and [`adapter`] read folders, [`merge`] and [`init`] write them
//! through [`save`].

pub mod adapter;
pub mod checkpoint;
pub mod config;
mod config_keys;
pub mod generation_config;
pub mod init;
pub mod merge;
pub mod names;
pub mod save;
pub mod targets;
