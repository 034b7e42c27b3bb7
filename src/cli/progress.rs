//! Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere.

use super::notice::plain;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often a plain line is written.
const PLAIN: Duration = Duration::from_secs(5);

/// Follows one long piece of work.
pub struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Progress {
    pub fn new(what: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            // shown only once it has lasted: short work draws nothing
            let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(10));
            if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
                bar.set_style(style);
            }
            bar.set_message(what.to_string());
            bar
        });
        Progress { what: what.to_string(), bar, last: Instant::now() }
    }

    /// A line that stays, above the bar where there is one.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| plain(text)),
            None => plain(text),
        }
    }

    pub fn at(&mut self, done: u64, all: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(all);
                bar.set_position(done);
            }
            None if self.last.elapsed() >= PLAIN => {
                plain(format_args!("{}: {done} of {all}", self.what));
                self.last = Instant::now();
            }
            None => (),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
