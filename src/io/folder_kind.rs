//! What a folder is, by the files in it: who gives one kind where another is wanted is told which it is, and what to give.
//! Whoever writes or reads one of these files has its name from here.

use crate::base::{Error, Result};
use std::path::Path;

/// A model's configuration.
pub const CONFIG: &str = "config.json";
/// What a folder holds for an adapter: its settings, and its weights.
pub const ADAPTER: [&str; 2] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS];
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What an evaluation says, as numbers.
pub const SUMMARY: &str = "summary.json";
/// Where a run of `train` leaves what it goes on from, below its folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// Where a run of `train --full` leaves its model, below its folder.
pub const TRAINED_MODEL: &str = "model";
/// What a sweep is to run.
pub const TRIALS: &str = "trials.json";
/// What a sweep has run, the best first.
pub const LEADERBOARD: &str = "leaderboard.json";

/// What a folder is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Model,
    Adapter,
    Evaluation,
}

impl Wanted {
    /// The file that makes a folder one of these.
    fn file(self) -> &'static str {
        match self {
            Wanted::Model => CONFIG,
            Wanted::Adapter => ADAPTER_CONFIG,
            Wanted::Evaluation => SUMMARY,
        }
    }
}

/// Errors: `dir` is not what is wanted, and is something else that this program writes or reads. What nobody knows passes:
/// whoever opens it says what is missing.
pub fn check(dir: &Path, wanted: Wanted) -> Result<()> {
    let has = |name: &str| dir.join(name).exists();
    let shown = dir.display();
    if has(wanted.file()) {
        return Ok(());
    }
    let evaluated = |flags: &str| format!("vlm eval {flags} makes an evaluation of it");
    let (what, advice) = if has(LEADERBOARD) {
        ("a sweep", format!("give the folder of one of its trials: {LEADERBOARD} names them, the best first"))
    } else if has(TRIALS) {
        ("a sweep of which no trial is done", "the same vlm sweep goes on with it".into())
    } else if has(ADAPTER_CONFIG) {
        let advice = match wanted {
            Wanted::Evaluation => evaluated(&format!("--adapter {shown}")),
            _ => "give it with --adapter, and with --model the model that it was trained on".into(),
        };
        ("an adapter", advice)
    } else if dir.join(TRAINED_MODEL).join(CONFIG).exists() {
        let advice = match wanted {
            Wanted::Evaluation => evaluated(&format!("--model {shown}/{TRAINED_MODEL}")),
            _ => format!("give its model with --model {shown}/{TRAINED_MODEL}, without an adapter"),
        };
        ("a run of train --full", advice)
    } else if has(CHECKPOINTS) {
        ("a run that has no result yet", "the same vlm train with --resume goes on with it".into())
    } else if has(CONFIG) {
        let advice = match wanted {
            Wanted::Evaluation => evaluated(&format!("--model {shown}")),
            _ => "give it with --model, without an adapter".into(),
        };
        ("a model", advice)
    } else if has(SUMMARY) {
        ("an evaluation", format!("its {SUMMARY} names the model and the adapter that were scored"))
    } else {
        return Ok(());
    };
    let wanted = match wanted {
        Wanted::Model => "a model",
        Wanted::Adapter => "an adapter",
        Wanted::Evaluation => "an evaluation",
    };
    Err(Error::file(dir, format!("holds {what}, and {wanted} is wanted; {advice}")))
}
