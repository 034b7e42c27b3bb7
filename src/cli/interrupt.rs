//! Ctrl-C and SIGTERM: the first asks a long run to save and end, the second ends the program where it is.

use super::notice::notice;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// What a shell expects of a program that Ctrl-C ended.
pub const CODE: u8 = 130;

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From here on both signals are noticed; see [`asked`]. Call it once per program.
pub fn watch() {
    notice_signals(&[SIGINT, SIGTERM]);
}

/// The same for a program that waits for commands of its own. A terminal's Ctrl-C is for them too; SIGTERM is for this
/// process alone, and ends it.
pub fn watch_beside_commands() {
    notice_signals(&[SIGINT]);
}

fn notice_signals(signals: &[i32]) {
    for &signal in signals {
        // in this order: the second one finds that the first has asked. Nothing is cleaned up then: what the driver and other
        // libraries do at a regular end must not happen while the main thread may be within them.
        let noticed = flag::register_conditional_shutdown(signal, CODE.into(), ASKED.clone())
            .and_then(|_| flag::register(signal, ASKED.clone()));
        if let Err(e) = noticed {
            notice(format_args!("Ctrl-C will end the run without saving: {e}"));
        }
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
