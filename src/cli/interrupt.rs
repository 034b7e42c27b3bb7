//! Ctrl-C: the first asks a long run to save and end, the second ends the program where it is.

use super::notice::notice;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell expects of a program that Ctrl-C ended.
pub const CODE: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C is noticed; see [`asked`]. Call it once per program.
pub fn watch() {
    let handler = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(CODE.into());
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        notice(format_args!("Ctrl-C will end the run without saving: {e}"));
    }
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Ends the program as interrupted, after a sentence on what was saved.
pub fn exit(said: &str) -> ! {
    notice(format_args!("interrupted{said}"));
    std::process::exit(CODE.into())
}
