//! Scoring of labelled sets: predictions, what they add up to, two of them head to head.
//!
//! Floor 8: uses `infer`, `qwen3vl`, `data`, `io`, `base`. Start at [`evaluate`], then [`metrics`]. [`folder`] is where an
//! evaluation's [`records`] lie, [`endpoint`] asks a model that runs elsewhere, [`compare`] pairs two evaluations, [`colour`]
//! says how far colour alone gets.

pub mod colour;
pub mod compare;
pub mod curve;
pub mod endpoint;
pub mod evaluate;
pub mod folder;
pub mod metrics;
pub mod records;
pub mod statistics;
