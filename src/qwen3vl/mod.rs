//! The Qwen3-VL family: architecture, configuration, checkpoint and adapter folders, positions, preprocessing.
//!
//! Floor 7: uses `nn`, `tape`, `ops`, `device`, `tensor`, `io`, `data`, `base`. Start at [`model`]: [`vision`] and
//! [`text`] write the forward pass onto a tape, [`positions`] says where tokens and patches are. A prompt is built by [`prompt`] (with
//! [`template`] and [`tokenizer`]) and joined with its pictures by [`prepare`]. [`config`] and [`names`] are the one
//! place that knows how a checkpoint calls things; [`checkpoint`] and [`adapter`] read folders, [`merge`] and [`init`]
//! write them through [`save`], [`adapter_write`] those of adapters.

pub mod adapter;
pub mod adapter_write;
pub mod checkpoint;
pub mod config;
mod config_keys;
pub mod generation_config;
pub mod init;
mod jinja;
pub mod merge;
pub mod model;
pub mod names;
pub mod pack;
mod parameters;
pub mod positions;
pub mod prepare;
pub mod processor;
pub mod prompt;
pub mod save;
pub mod targets;
pub mod template;
pub mod text;
pub mod tokenizer;
pub mod trainable;
pub mod vision;
