//! `vlm curve`: what more photos would bring.

use crate::base::{Error, Result};
use crate::classify::curve::{Curve, Run, curve};
use crate::classify::records::summary;
use crate::io::folder_kind::SUMMARY;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;

/// Fit accuracy over the size of the training set, and say what more photos would bring
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm curve scores/78-seed-0 scores/78-seed-1 scores/160 scores/319 --target 0.95

Each folder is one that vlm eval wrote for one trained model. Where its summary does not say on how many samples the
model was trained, write N=FOLDER; 0=FOLDER is the model before training.")]
pub struct CurveCommand {
    /// Folders of vlm eval, several sizes of training sets, better several seeds of each
    #[arg(value_name = "[N=]EVAL", required = true)]
    evals: Vec<String>,
    /// The accuracy to ask for
    #[arg(long, value_name = "X", default_value_t = 0.95)]
    target: f64,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl CurveCommand {
    pub fn run(&self) -> Result<()> {
        if !(self.target > 0.0 && self.target < 1.0) {
            return Err(Error::Usage(format!(
                "--target {}: wanted a share between 0 and 1, such as 0.95",
                self.target
            )));
        }
        let read = self.evals.iter().map(|text| score(text)).collect::<Result<Vec<_>>>()?;
        let mut sets: Vec<&str> = read.iter().filter_map(|(_, data)| data.as_deref()).collect();
        sets.sort_unstable();
        sets.dedup();
        let runs: Vec<Run> = read.iter().map(|(run, _)| *run).collect();
        let mut found = curve(&runs, self.target, self.seed);
        if sets.len() > 1 {
            found
                .warnings
                .insert(0, format!("the scores are of different sets ({}), and do not compare", sets.join(", ")));
        }
        if self.json {
            let value = serde_json::to_value(&found).map_err(|e| Error::Unsupported(e.to_string()))?;
            return super::print_json(&value);
        }
        super::print(&table(&found))
    }
}

/// The run of `[N=]FOLDER`, and the set that it was scored on.
fn score(text: &str) -> Result<(Run, Option<String>)> {
    let (given, folder) = match text.split_once('=') {
        Some((n, folder)) if n.parse::<usize>().is_ok() && !Path::new(text).exists() => (n.parse().ok(), folder),
        _ => (None, text),
    };
    let folder = Path::new(folder);
    let (file, summary) = (folder.join(SUMMARY), Value::Object(summary(folder)?));
    let count = |pointer: &str| summary.pointer(pointer).and_then(Value::as_u64).map(|n| n as usize);
    let wrong = |said: &str| Error::file(&file, said);
    let samples = given.or(count("/training_samples")).ok_or_else(|| {
        wrong("does not say on how many samples the model was trained; write N=FOLDER (0=FOLDER: not trained)")
    })?;
    let missing = || wrong("holds no accuracy of single labels: wanted metrics with correct and n");
    let (correct, of) = (count("/metrics/correct").ok_or_else(missing)?, count("/metrics/n").ok_or_else(missing)?);
    if of == 0 || correct > of {
        return Err(wrong("its metrics count no samples"));
    }
    Ok((Run { samples, correct, of }, summary.get("data").and_then(Value::as_str).map(String::from)))
}

/// For a person.
fn table(found: &Curve) -> String {
    let percent = |x: f64| format!("{:.1}", 100.0 * x);
    let mut said = format!("{:>8} {:>5} {:>9} {:>7} {:>8}\n", "samples", "runs", "accuracy", "lowest", "highest");
    for s in &found.sizes {
        let (mean, low, high) = (percent(s.mean), percent(s.lowest), percent(s.highest));
        _ = writeln!(said, "{:>8} {:>5} {mean:>9} {low:>7} {high:>8}", s.samples, s.runs);
    }
    if let Some(fit) = &found.fit {
        let law = fit.law;
        _ = write!(said, "\nerror = {:.4} n^-{:.4} + {:.4}", law.a, law.b, law.c);
        if let Some([a, b, c]) = fit.standard_errors {
            _ = write!(said, "   (standard errors {a:.4}, {b:.4}, {c:.4})");
        }
        _ = writeln!(said, "; the runs are {:.1} points around it", 100.0 * fit.rmse);
    }
    for p in &found.predictions {
        let [low, high] = p.interval.map(percent);
        _ = writeln!(said, "{:>8} samples: {} %  (95 %: {low} to {high})", p.samples, percent(p.accuracy));
    }
    if let Some(target) = &found.target {
        let largest = found.sizes.last().map_or(0, |s| s.samples);
        let number = |x: Option<f64>| match x {
            None => "never".into(),
            // digits that nobody believes
            Some(x) if x > 1e6 => "over a million".into(),
            Some(x) => format!("{:.0}", x.ceil()),
        };
        let [low, high] = target.interval.map(number);
        _ = match target.samples {
            Some(n) => writeln!(
                said,
                "{} % takes about {:.0} samples, {:.0} more than the largest set  (95 %: {low} to {high})",
                percent(target.accuracy),
                n.ceil(),
                (n.ceil() - largest as f64).max(0.0)
            ),
            None => writeln!(
                said,
                "{} % is not reached by more photos like these: the curve levels off at {} %  (samples it takes, 95 %: {low} \
                 to {high})",
                percent(target.accuracy),
                percent(1.0 - found.fit.as_ref().map_or(0.0, |f| f.law.c))
            ),
        };
    }
    found.warnings.iter().for_each(|w| _ = writeln!(said, "careful: {w}"));
    said
}
