//! What a folder is, by the files in it: who gives one kind where another is wanted is told which it is, and what to give.

use crate::base::{Error, Result};
use std::path::Path;

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
            Wanted::Model => "config.json",
            Wanted::Adapter => "adapter_config.json",
            Wanted::Evaluation => "summary.json",
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
    let (what, advice) = if has("leaderboard.json") {
        ("a sweep", "give the folder of one of its trials: leaderboard.json names them, the best first".into())
    } else if has("trials.json") {
        ("a sweep of which no trial is done", "the same vlm sweep goes on with it".into())
    } else if has("adapter_config.json") {
        let advice = match wanted {
            Wanted::Evaluation => evaluated(&format!("--adapter {shown}")),
            _ => "give it with --adapter, and with --model the model that it was trained on".into(),
        };
        ("an adapter", advice)
    } else if has("model/config.json") {
        let advice = match wanted {
            Wanted::Evaluation => evaluated(&format!("--model {shown}/model")),
            _ => format!("give its model with --model {shown}/model, without an adapter"),
        };
        ("a run of train --full", advice)
    } else if has("checkpoints") {
        ("a run that has no result yet", "the same vlm train with --resume goes on with it".into())
    } else if has("config.json") {
        let advice = match wanted {
            Wanted::Evaluation => evaluated(&format!("--model {shown}")),
            _ => "give it with --model, without an adapter".into(),
        };
        ("a model", advice)
    } else if has("summary.json") {
        ("an evaluation", "its summary.json names the model and the adapter that were scored".into())
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
