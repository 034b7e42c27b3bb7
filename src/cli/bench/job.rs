//! One run of the job, by the clock: each command is a process of its own, as a user would start it.

use crate::base::{Error, Result};
use crate::cli::itself;
use crate::train::metrics::{self, LoggedStep};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What each of the job's commands is given.
pub struct Job<'a> {
    pub model: &'a Path,
    pub recipe: &'a Path,
    pub train: &'a Path,
    pub test: &'a Path,
    /// A photo of `train`, to ask about alone.
    pub photo: &'a Path,
    pub prompt: &'a str,
    pub out: PathBuf,
    pub batch_size: u32,
    /// Flags of `vlm train` on top of the recipe.
    pub flags: Vec<String>,
    /// `--device` and `--precision`, for all commands.
    pub compute: Vec<String>,
}

const STOPPED: &str =
    "; the same command runs the job from its start again, with the photos and weights that are there";

/// Seconds and counts of one run.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Opening the model, in a process that answers one question.
    pub load: f64,
    /// Steps, without the tower's work on photos that are seen for the first time.
    pub steps: f64,
    /// That work; None where there is but one epoch.
    pub vision: Option<f64>,
    /// The rest of training: start, load, photos waited for, checkpoints, the adapter.
    pub rest: f64,
    /// The whole evaluation, its start and load included.
    pub score: f64,
    pub total: f64,
    pub n_steps: u64,
    /// Text and image tokens of all steps, none of them padding.
    pub tokens: u64,
    pub last_loss: f64,
    pub accuracy: f64,
}

impl Times {
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.steps
    }
}

impl Job<'_> {
    pub fn run(&self) -> Result<Times> {
        let text = |path: &Path| path.display().to_string();
        let (run, scores) = (self.out.join("run"), self.out.join("scores"));
        let ask = [
            vec!["generate".into(), "--model".into(), text(self.model), "--image".into(), text(self.photo)],
            vec!["--prompt".into(), self.prompt.into(), "--max-new-tokens".into(), "1".into(), "--json".into()],
        ];
        let (_, said) = self.command(ask.concat())?;
        let answer: Value =
            serde_json::from_str(&said).map_err(|e| Error::Unsupported(format!("vlm generate: {e}")))?;
        let load = answer["timings"]["load_seconds"].as_f64().unwrap_or(f64::NAN);

        let train = [
            vec!["train".into(), "--config".into(), text(self.recipe), "--model".into(), text(self.model)],
            vec!["--data".into(), text(self.train), "--out".into(), text(&run), "--overwrite".into()],
            self.flags.clone(),
        ];
        let (train_seconds, _) = self.command(train.concat())?;
        let score = [
            vec!["eval".into(), "--model".into(), text(self.model), "--adapter".into(), text(&run)],
            vec!["--data".into(), text(self.test), "--out".into(), text(&scores), "--overwrite".into()],
            vec!["--batch-size".into(), self.batch_size.to_string(), "--json".into()],
        ];
        let (score, summary) = self.command(score.concat())?;
        let summary: Value =
            serde_json::from_str(&summary).map_err(|e| Error::Unsupported(format!("vlm eval: {e}")))?;

        let steps = metrics::read(&run)?.steps;
        let Some(last) = steps.last() else {
            return Err(Error::file(run.join(metrics::FILE), "holds no steps"));
        };
        let vision = vision(&steps);
        let in_steps = steps.iter().map(|s| s.seconds).sum::<f64>();
        Ok(Times {
            load,
            steps: in_steps - vision.unwrap_or(0.0),
            vision,
            rest: train_seconds - in_steps,
            score,
            total: train_seconds + score,
            n_steps: steps.len() as u64,
            tokens: steps.iter().map(|s| s.tokens).sum(),
            last_loss: last.loss,
            accuracy: summary["metrics"]["accuracy"].as_f64().unwrap_or(f64::NAN),
        })
    }

    /// Runs a command of this program; its seconds, and what it printed.
    fn command(&self, mut arguments: Vec<String>) -> Result<(f64, String)> {
        arguments.extend(self.compute.iter().cloned());
        let start = Instant::now();
        let said = itself::output(&arguments, STOPPED)?;
        Ok((start.elapsed().as_secs_f64(), said))
    }
}

/// What steps of the first epoch take beyond those of later ones: there the tower sees each photo.
fn vision(steps: &[LoggedStep]) -> Option<f64> {
    let (first, later): (Vec<&LoggedStep>, Vec<&LoggedStep>) = steps.iter().partition(|s| s.epoch <= 1.0);
    let mut later: Vec<f64> = later.into_iter().map(|s| s.seconds).collect();
    later.sort_by(f64::total_cmp);
    let median = *later.get(later.len() / 2)?;
    Some((first.iter().map(|s| s.seconds).sum::<f64>() - median * first.len() as f64).max(0.0))
}

/// One part of a run's seconds.
type Part = fn(&Times) -> Option<f64>;

/// For a person, the parts of two runs side by side.
pub fn table(cold: &Times, warm: &Times) -> String {
    let rows: [(&str, Part); 7] = [
        ("load", |t| Some(t.load)),
        ("vision (first epoch)", |t| t.vision),
        ("steps", |t| Some(t.steps)),
        ("rest of training", |t| Some(t.rest)),
        ("train and save", |t| Some(t.total - t.score)),
        ("score", |t| Some(t.score)),
        ("train and score", |t| Some(t.total)),
    ];
    let mut said = format!("{:<22} {:>10} {:>10}   seconds\n", "", "cold", "warm");
    for (name, of) in rows {
        let cell = |t: &Times| of(t).map_or("-".into(), |s| format!("{s:.2}"));
        said += &format!("{name:<22} {:>10} {:>10}\n", cell(cold), cell(warm));
    }
    said
}

impl Times {
    pub fn json(&self) -> Value {
        json!({
            "load_seconds": self.load,
            "vision_seconds": self.vision,
            "steps_seconds": self.steps,
            "rest_seconds": self.rest,
            "score_seconds": self.score,
            "total_seconds": self.total,
            "steps": self.n_steps,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second(),
            "last_loss": self.last_loss,
            "accuracy": self.accuracy,
        })
    }
}
