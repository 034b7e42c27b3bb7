//! Qwen3-VL: what is special to this family of models.
//!
//! A conversation becomes token ids in [`prompt`], which renders the checkpoint's own [`template`] and splits the
//! text with its [`tokenizer`].

mod jinja;
pub mod prompt;
pub mod template;
pub mod tokenizer;
