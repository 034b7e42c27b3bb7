//! `vlm sweep`: a search over the settings of training.

use super::compute::Compute;
use super::progress::Progress;
use super::{interrupt, output};
use crate::base::width::{right, width};
use crate::base::{Error, Result};
use crate::io::folder_kind::{LEADERBOARD, TRIALS};
use crate::train::session::Said;
use crate::train::sweep::board::{self, Outcome, Row};
use crate::train::sweep::space::{self, Sweep, Trial};
use crate::train::sweep::{self, Host};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Search for good settings of training: trials in folders, chosen by their score on a validation set
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm sweep --config recipes/sweep.toml --out runs/sweep

The same command goes on where Ctrl-C or a crash stopped it; trials that are done are kept. The test set has no say:
score the best trial on it once, with vlm eval.")]
pub struct SweepCommand {
    /// What every trial is trained with, and what varies
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Folder of the trials [default: out in the file]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the leaderboard as one JSON object
    #[arg(long)]
    json: bool,
}

impl SweepCommand {
    pub fn run(&self) -> Result<()> {
        let sweep = space::read(&self.config, self.out.as_deref())?;
        self.check_outputs(&sweep)?;
        interrupt::watch();
        let bar = RefCell::new(Progress::new("steps"));
        let mut begins = |number: usize, all: usize, varied: &Map<String, Value>| {
            bar.borrow().note(&format!("trial {number} of {all}: {}", settings(varied)));
        };
        let mut said = |said: Said| match said {
            Said::Step(step, total) => bar.borrow_mut().at(step.step, total),
            Said::Eval(e) => {
                let percent = 100.0 * e.eval_accuracy;
                bar.borrow().note(&format!(
                    "  step {}: {} of {} right, {percent:.1} %",
                    e.step, e.eval_correct, e.eval_samples
                ));
            }
            Said::Note(text) => bar.borrow().note(&format!("  {text}")),
            Said::Checked(..) => (),
        };
        let mut done = |row: &Row| {
            if let Outcome::Failed { reason, .. } = &row.outcome {
                bar.borrow().note(&format!("  trial {} failed: {reason}", row.trial));
            }
        };
        let mut host = Host {
            open: &|device, precision| Compute::of(device, precision).open(),
            begins: &mut begins,
            said: &mut said,
            done: &mut done,
            interrupted: &interrupt::asked,
        };
        let rows = sweep::run(&sweep, &mut host)?;
        drop(bar);
        let Some(rows) = rows else { interrupt::exit("; the same command goes on with the trial that was running") };
        if self.json {
            super::print_json(&json!({"out": sweep.out, "trials": rows}))?;
            return one_is_done(&rows);
        }
        let mut said = table(&rows);
        if let Some(best) = rows.first().filter(|row| matches!(row.outcome, Outcome::Done { .. })) {
            _ = writeln!(said, "best: {}", best.folder.display());
        }
        _ = writeln!(said, "{LEADERBOARD} and {} in {}", board::CSV, sweep.out.display());
        super::print(&said)?;
        one_is_done(&rows)
    }
}

/// Errors: every trial failed, and nothing was found.
fn one_is_done(rows: &[Row]) -> Result<()> {
    let failed = |row: &Row| matches!(row.outcome, Outcome::Failed { .. });
    match rows {
        [Row { trial, outcome: Outcome::Failed { reason, .. }, .. }, ..] if rows.iter().all(failed) => {
            Err(Error::Unsupported(format!("every trial failed; trial {trial}: {reason}")))
        }
        _ => Ok(()),
    }
}

impl SweepCommand {
    /// Errors: a file of somebody's would be replaced, or one that the sweep reads.
    fn check_outputs(&self, sweep: &Sweep) -> Result<()> {
        let mut read: BTreeSet<&Path> =
            [Some(&self.config), sweep.test.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
        for Trial { settings, .. } in &sweep.trials {
            let optional = [&settings.eval_data, &settings.init_adapter].into_iter().flatten();
            read.extend(optional.chain([&settings.data, &settings.model]).map(PathBuf::as_path));
        }
        for file in sweep::files(&sweep.out) {
            output::not_an_input(&file, read.iter().copied())?;
        }
        for trial in &sweep.trials {
            output::no_input_within(&trial.settings.out, read.iter().copied())?;
        }
        if sweep.out.exists() {
            output::holds(&sweep.out, TRIALS, "sweep")?;
        }
        Ok(())
    }
}

fn settings(varied: &Map<String, Value>) -> String {
    varied.iter().map(|(key, value)| format!("{key} {}", board::shown(value))).collect::<Vec<_>>().join(", ")
}

/// For a person.
fn table(rows: &[Row]) -> String {
    let keys = board::keys(rows);
    let mut said = format!(
        "{:>5} {:>9} {:>15} {:>5} {:>9} {:>8} {:>8}",
        "trial", "accuracy", "95 % interval", "step", "eval loss", "loss", "seconds"
    );
    let widest = |key: &String| {
        let values = rows.iter().filter_map(|row| row.varied.get(key)).map(|v| width(&board::shown(v)));
        values.max().unwrap_or(0).max(width(key))
    };
    keys.iter().for_each(|key| _ = write!(said, "  {}", right(key, widest(key))));
    said += "\n";
    for row in rows {
        match &row.outcome {
            Outcome::Done { accuracy, interval: [low, high], step, eval_loss, loss, seconds, .. } => {
                let interval = format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high);
                let [eval_loss, loss] = [eval_loss, loss].map(|loss| loss.map_or("-".into(), |l| format!("{l:.4}")));
                let accuracy = 100.0 * accuracy;
                _ = write!(
                    said,
                    "{:>5} {accuracy:>9.1} {interval:>15} {step:>5} {eval_loss:>9} {loss:>8} {seconds:>8.1}",
                    row.trial
                );
            }
            Outcome::Failed { .. } => {
                let none = "-";
                _ = write!(said, "{:>5} {:>9} {none:>15} {none:>5} {none:>9} {none:>8} {none:>8}", row.trial, "failed");
            }
        }
        for key in &keys {
            let value = row.varied.get(key).map_or("-".into(), board::shown);
            _ = write!(said, "  {}", right(&value, widest(key)));
        }
        said += "\n";
    }
    if let [
        Row { outcome: Outcome::Done { interval: [low, _], .. }, .. },
        Row { outcome: Outcome::Done { accuracy, .. }, .. },
        ..,
    ] = rows
        && accuracy >= low
    {
        said += "the second best is within the best one's interval: the order of the two may be chance\n";
    }
    said
}
