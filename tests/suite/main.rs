//! All tests that are not inside a module: one binary.

mod host_attention;
mod host_attention_tuned;
mod host_linear;
mod host_linear_loss;
mod host_linear_tuned;
mod host_norm;
mod host_optimizer;
mod host_qk_rope;
mod host_rows;
mod host_sample;
mod support;
