//! How much of a device's peak a run makes use of: the one formula, of `vlm train` and `vlm bench one-dollar`.
//!
//! N is the number of weights in the language model's linear layers, head apart. A token costs 2 N operations forward and
//! 2 N backward; where the weights themselves are trained, 2 N more for their gradients. Tokens are those of text and
//! images, none of them padding and none computed a second time; adapters, attention, tower and head are left out of it.

use crate::qwen3vl::config::Config;
use crate::qwen3vl::names::{self, Part};

/// Operations that a token is worth; `full` where every weight is trained.
pub fn flops_per_token(config: &Config, full: bool) -> f64 {
    let of_text = |m: &&names::LinearModule| m.part == Part::Text && m.path != names::LM_HEAD;
    let n: usize = names::linear_modules(config).iter().filter(of_text).map(|m| m.inputs * m.outputs).sum();
    (if full { 6 } else { 4 } * n) as f64
}

/// What of `peak` operations a second so many tokens a second make use of.
pub fn mfu(flops_per_token: f64, tokens_per_second: f64, peak: f64) -> f64 {
    flops_per_token * tokens_per_second / peak
}
