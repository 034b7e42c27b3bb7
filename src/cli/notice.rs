//! What is said on stderr beside a result. [`super::progress`] draws its bars there, clap says there what is wrong with
//! flags, and the log goes there; all else comes through here, and a lint in `src/lib.rs` keeps macros out.
//!
//! Nobody may be listening (`2>&1 | head`), or the disk behind a log may be full: what cannot be said is not said, and the
//! work goes on.

use crate::base::width::{sentence, visible};
use std::fmt::Display;
use std::io::Write;

/// A sentence of the program: `vlm: …`.
pub fn notice(text: impl Display) {
    plain(format_args!("vlm: {}", sentence(&text.to_string())));
}

/// A line for itself.
pub fn plain(text: impl Display) {
    // in one call, so that lines of two programs do not mix
    _ = std::io::stderr().lock().write_all(visible(&format!("{text}\n")).as_bytes());
}
