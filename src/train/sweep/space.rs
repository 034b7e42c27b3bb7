//! The file of a sweep, and the trials that it means.
//!
//! ```toml
//! out = "runs/sweep"             # or --out
//! search = "grid"                # every combination; or "random", with trials = N and seed = N
//! test = "split/test.jsonl"      # never looked at; named, so that it is not chosen on
//!
//! [train]                        # as the flags of vlm train, the same in every trial
//! model = "Qwen3-VL-2B-Instruct"
//! data = "split/train.jsonl"
//! eval-data = "split/validation.jsonl"
//!
//! [vary]
//! rank = [16, 64]
//! learning-rate = { from = 1e-5, to = 1e-3, scale = "log" }      # of a random search only
//! ```

use crate::base::rng::Stream;
use crate::base::{Error, Result, input};
use crate::train::config_file;
use crate::train::settings::{Settings, writable};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Keeps these random numbers apart from others of the same seed.
const SWEEP: u64 = 0x7377_6565;
/// More combinations than anyone runs; a mistake in the file.
const MOST_TRIALS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    out: Option<PathBuf>,
    search: Search,
    trials: Option<usize>,
    seed: Option<u64>,
    test: Option<PathBuf>,
    train: toml::Table,
    vary: toml::Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Search {
    Grid,
    Random,
}

/// Values of a setting between two ends.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: f64,
    to: f64,
    #[serde(default)]
    scale: Scale,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scale {
    #[default]
    Linear,
    Log,
}

enum Axis {
    List(Vec<toml::Value>),
    /// With whole ends, whole values.
    Range(Range, bool),
}

#[derive(Debug)]
pub struct Trial {
    /// Counted from 1.
    pub number: usize,
    pub varied: Map<String, Value>,
    /// Checked; `out` is the trial's own folder.
    pub settings: Settings,
}

#[derive(Debug)]
pub struct Sweep {
    pub out: PathBuf,
    pub test: Option<PathBuf>,
    /// At least one.
    pub trials: Vec<Trial>,
}

/// Reads a sweep's file; `out` replaces the file's. Errors name the file and what is wrong in it: all trials are checked
/// before any runs.
pub fn read(path: &Path, out: Option<&Path>) -> Result<Sweep> {
    let text = input::read_text(path)?;
    let mut file: File = toml::from_str(&text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start);
        let line = text.as_bytes().iter().take(start).filter(|b| **b == b'\n').count();
        Error::line(path, line + 1, e.message())
    })?;
    let wrong = |said: String| Error::file(path, said);
    let folder = path.parent().unwrap_or(Path::new(""));
    config_file::from_folder(&mut file.train, folder);
    config_file::from_folder(&mut file.vary, folder);
    let absolute = |p: &Path| std::path::absolute(p).map_err(|e| Error::io("find the whole path of", p, e));
    let out = match (out, &file.out) {
        (Some(out), _) => absolute(out)?,
        (None, Some(out)) => absolute(&folder.join(out))?,
        (None, None) => return Err(Error::Usage("give a folder for the trials: --out, or out in the file".into())),
    };
    writable("out", &out)?;
    let test = file.test.as_ref().map(|test| absolute(&folder.join(test))).transpose()?;
    if !file.train.contains_key("eval-data") {
        let said =
            "[train] has no eval-data: trials are chosen by their score on a validation set, never on the test set";
        return Err(wrong(said.into()));
    }
    for (table, name) in [(&file.train, "train"), (&file.vary, "vary")] {
        if table.contains_key("out") {
            return Err(wrong(format!("[{name}] has out: every trial has a folder of its own; put out at the top")));
        }
    }
    for key in ["eval-data", "overfit", "prompt"] {
        if file.vary.contains_key(key) {
            return Err(wrong(format!("[vary] has {key}: trials that differ in it do not compare")));
        }
    }
    if let Some(key) = file.vary.keys().find(|key| file.train.contains_key(*key)) {
        return Err(wrong(format!("{key} is in [train] and in [vary]; keep one")));
    }
    let axes = axes(&file).map_err(wrong)?;
    let combinations = match file.search {
        Search::Grid => grid(&axes),
        Search::Random => random(&axes, file.trials.unwrap_or(0), file.seed.unwrap_or(0)),
    };
    let mut trials = Vec::new();
    for (i, values) in combinations.into_iter().enumerate() {
        let number = i + 1;
        let mut table = file.train.clone();
        let folder = out.join(format!("trial-{number:03}"));
        table.insert("out".into(), folder.display().to_string().into());
        table.extend(values.clone());
        let settings = config_file::settings(None, &table).map_err(|e| wrong(format!("trial {number}: {e}")))?;
        let varied = values.into_iter().map(|(k, v)| (k, serde_json::to_value(v).unwrap_or_default())).collect();
        trials.push(Trial { number, varied, settings });
    }
    Ok(Sweep { out, test, trials })
}

fn axes(file: &File) -> Result<Vec<(String, Axis)>, String> {
    if file.vary.is_empty() {
        return Err("[vary] names no setting: there is nothing to search".into());
    }
    match (file.search, file.trials) {
        (Search::Random, None | Some(0)) => return Err("a random search needs trials = N, 1 or more".into()),
        (Search::Random, Some(n)) if n > MOST_TRIALS => return Err(format!("trials = {n}: at most {MOST_TRIALS}")),
        (Search::Grid, Some(_)) => return Err("trials is for search = \"random\"; a grid has all combinations".into()),
        _ => (),
    }
    let mut axes = Vec::new();
    for (key, value) in &file.vary {
        let axis = match value {
            toml::Value::Array(list) if list.is_empty() => return Err(format!("vary.{key}: the list is empty")),
            toml::Value::Array(list) => Axis::List(list.clone()),
            toml::Value::Table(table) if file.search == Search::Random => {
                let whole = ["from", "to"].iter().all(|end| table.get(*end).is_some_and(toml::Value::is_integer));
                let range: Range =
                    value.clone().try_into().map_err(|e: toml::de::Error| format!("vary.{key}: {}", e.message()))?;
                let least = if range.scale == Scale::Log { f64::MIN_POSITIVE } else { f64::MIN };
                if !(range.from.is_finite() && range.to.is_finite() && range.from < range.to && range.from >= least) {
                    return Err(format!("vary.{key}: wanted from below to, and above 0 with scale = \"log\""));
                }
                Axis::Range(range, whole)
            }
            toml::Value::Table(_) => {
                return Err(format!("vary.{key}: a range is for search = \"random\"; give a list"));
            }
            _ => return Err(format!("vary.{key}: wanted a list of values, or from and to")),
        };
        axes.push((key.clone(), axis));
    }
    let all = axes.iter().try_fold(1usize, |n, (_, axis)| match axis {
        Axis::List(list) => n.checked_mul(list.len()).filter(|n| *n <= MOST_TRIALS),
        Axis::Range(..) => Some(n),
    });
    match all {
        None if file.search == Search::Grid => Err(format!("the grid has more than {MOST_TRIALS} combinations")),
        _ => Ok(axes),
    }
}

/// Every combination, the last setting fastest.
fn grid(axes: &[(String, Axis)]) -> Vec<toml::Table> {
    let mut all = vec![toml::Table::new()];
    for (key, axis) in axes {
        let Axis::List(list) = axis else { continue };
        let with = |table: &toml::Table, value: &toml::Value| {
            let mut table = table.clone();
            table.insert(key.clone(), value.clone());
            table
        };
        all = all.iter().flat_map(|table| list.iter().map(move |value| with(table, value))).collect();
    }
    all
}

/// `n` combinations. Each follows from seed, number and the setting's name: more trials leave the first as they are.
fn random(axes: &[(String, Axis)], n: usize, seed: u64) -> Vec<toml::Table> {
    let of = |number: usize| {
        let value = |(key, axis): &(String, Axis)| {
            let name = key.bytes().map(u64::from);
            let u = f64::from(
                Stream::new(seed, &[SWEEP, number as u64].into_iter().chain(name).collect::<Vec<_>>()).uniform(0),
            );
            let value = match axis {
                Axis::List(list) => list[(u * list.len() as f64) as usize % list.len()].clone(),
                Axis::Range(range, whole) => range.at(u, *whole),
            };
            (key.clone(), value)
        };
        axes.iter().map(value).collect()
    };
    (0..n).map(of).collect()
}

impl Range {
    /// The value at `u` in [0, 1) of the way. Whole ends are both as likely as any whole number between them.
    fn at(&self, u: f64, whole: bool) -> toml::Value {
        let (from, to) = if whole { (self.from - 0.5, self.to + 0.5) } else { (self.from, self.to) };
        let x = match self.scale {
            Scale::Linear => from + (to - from) * u,
            Scale::Log => (from.ln() + (to.ln() - from.ln()) * u).exp(),
        };
        if whole { toml::Value::Integer(x.round().clamp(self.from, self.to) as i64) } else { toml::Value::Float(x) }
    }
}
