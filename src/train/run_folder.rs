//! The folder of a run: who may write into it, its append-only logs, its checkpoints.
//!
//! ```text
//! config.toml                    the settings; `vlm train --config` with it does the run again
//! metrics.jsonl                  a line a step and a line an evaluation      \  append-only: cut back to where the
//! events.out.tfevents.run.vlm    the same for TensorBoard                    /  checkpoint was when a run is resumed
//! run.json                       what it came to: steps, loss, seconds, of how many samples, dollars where
//!                                --dollars-per-hour was given, and by what it failed
//! checkpoints/step-N.safetensors the last two
//! adapter_model.safetensors, adapter_config.json      written by the loop, or with --full
//! model/                         a checkpoint folder; model.new beside it until it is whole
//! ```
//!
//! A process that is killed at any moment leaves a folder that `--resume` can go on with: logs are flushed to disk before
//! the checkpoint that counts their bytes, a checkpoint is renamed into place when it is on disk, and older ones are
//! removed after that. What lies beyond the newest checkpoint is done again, with the same result.

use super::checkpoint::{self, About, Checkpoint, Identity, Logs, Position};
use super::metrics::{self, Record};
use super::settings::Settings;
use super::{config_file, events, fingerprint};
use crate::base::{Error, Precision, Result, input};
use crate::io::atomic::is_left_behind;
use crate::io::folder_kind::{ADAPTER, CHECKPOINTS, TRAINED_MODEL};
use crate::io::json;
use crate::io::lock::FolderLock;
use crate::io::log_file::LogFile;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

pub const CONFIG: &str = "config.toml";
const METRICS: &str = metrics::FILE;
/// TensorBoard looks for `tfevents` in a name.
const EVENTS: &str = "events.out.tfevents.run.vlm";
/// Not `summary.json`, which is an evaluation's: one folder may hold both.
const RESULT: &str = "run.json";
/// The key of [`RESULT`] that says by what a run failed.
const FAILED: &str = "failed";
/// The key that says which step's evaluation was the best.
pub(super) const BEST_STEP: &str = "best_step";

/// What to do with a folder that holds a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Refuse it.
    New,
    /// Remove the run first; files that are no part of one stay.
    Overwrite,
    /// Go on where it stopped; in an empty folder begin.
    Resume,
}

#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
    identity: Identity,
    metrics: LogFile,
    events: LogFile,
    /// A checkpoint that is being written.
    saving: Option<JoinHandle<Result<()>>>,
    _lock: FolderLock,
}

/// An opened folder, and where the run in it is.
#[derive(Debug)]
pub struct Opened {
    pub folder: RunFolder,
    /// None: begin with the first step.
    pub resumed: Option<Checkpoint>,
    /// Sentences for a person: what was left out, and what was lost.
    pub warnings: Vec<String>,
}

/// The settings ([`Settings::resolved`]) as an identity holds them, with the precision that the run computes in: where none
/// was asked for, the device decides, and another machine has another.
pub fn identity_of(settings: &Settings, precision: Precision, inputs: fingerprint::Fingerprints) -> Result<Identity> {
    let mut settings = match serde_json::to_value(settings) {
        Ok(Value::Object(settings)) => settings,
        Ok(_) => Map::new(),
        Err(e) => return Err(Error::Usage(format!("the settings cannot be written: {e}"))),
    };
    settings.insert("precision".into(), json!(precision));
    Ok(Identity { settings, inputs })
}

/// Where `--full` leaves its model, below the run's folder.
pub fn model_folder(out: &Path) -> PathBuf {
    out.join(TRAINED_MODEL)
}

/// Whether the run in a folder left an adapter or a model.
pub fn has_result(run: &Path) -> bool {
    ADAPTER.iter().all(|name| run.join(name).exists()) || model_folder(run).exists()
}

/// The files that runs write into their folder, and remove with `Overwrite`.
pub fn files(out: &Path) -> impl Iterator<Item = PathBuf> {
    [CONFIG, METRICS, EVENTS, RESULT].into_iter().chain(ADAPTER).map(|name| out.join(name))
}

/// Where a run leaves its checkpoints, below its folder.
pub fn checkpoints_folder(out: &Path) -> PathBuf {
    out.join(CHECKPOINTS)
}

/// The folders that belong to a run, with all that is in them.
pub fn folders(out: &Path) -> [PathBuf; 3] {
    [checkpoints_folder(out), model_folder(out), model_folder(out).with_extension("new")]
}

/// How many samples the run in a folder learns from, as its run.json says. Where that says nothing (the run was killed, or
/// is of a version that did not count), --subset or --overfit of its config.toml; None where neither was given: what a set
/// held then it need not hold now.
pub fn training_samples(run: &Path) -> Option<usize> {
    let counted = json::read(&run.join(RESULT)).ok().and_then(|result| result["training_samples"].as_u64());
    let settings = settings_in(run);
    let asked = ["overfit", "subset"].into_iter().find_map(|key| settings.get(key)?.as_integer()?.try_into().ok());
    counted.or(asked)?.try_into().ok()
}

/// What the run in a folder wrote as its result: after how many steps, and which was the best; None where it has not.
pub(super) fn steps_of_result(run: &Path) -> Option<(u64, Option<u64>)> {
    let result = json::read(&run.join(RESULT)).ok()?;
    Some((result["steps"].as_u64()?, result[BEST_STEP].as_u64()))
}

/// Writes into run.json by what the run failed, or takes it out; the rest stays.
pub(super) fn rewrite_failure(run: &Path, failed: Option<&Error>) -> Result<()> {
    let file = run.join(RESULT);
    let mut result = json::read(&file)?;
    if let Some(result) = result.as_object_mut() {
        result.remove(FAILED);
        result.extend(failed.map(|error| (FAILED.to_string(), error.to_string().into())));
    }
    json::write(&file, &result)
}

/// By what the run in a folder failed; None where it did not, or was killed.
pub fn failure(run: &Path) -> Option<String> {
    json::read(&run.join(RESULT)).ok()?[FAILED].as_str().map(String::from)
}

/// The settings of the run in a folder as they stand there, of whatever version; none where there is no run.
fn settings_in(dir: &Path) -> toml::Table {
    input::read_text(&dir.join(CONFIG)).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Whether a run may begin in `dir`: asked before what takes long. Errors: another process writes into the folder; it is
/// not empty (`New`); it holds something and no run (`Resume`).
pub fn may_begin(dir: &Path, start: Start) -> Result<()> {
    if dir.exists() {
        // let go at once: nothing is written yet
        FolderLock::take(dir)?;
    }
    check(dir, start)
}

fn check(dir: &Path, start: Start) -> Result<()> {
    if start != Start::New
        && let Some(path) = files(dir).find(|path| path.is_dir())
    {
        return Err(Error::file(&path, "a folder stands where a run writes a file; move it away"));
    }
    let holds = entries(dir)?;
    let of_run = |name: &String| [CONFIG, METRICS, CHECKPOINTS].contains(&name.as_str());
    let reason = match start {
        Start::New if !holds.is_empty() => {
            "the folder is not empty; give --resume to go on with a run in it, --overwrite to replace it, or name another"
        }
        Start::Resume if !holds.iter().all(|name| is_left_behind(name)) && !holds.iter().any(of_run) => {
            "the folder holds no run to resume, and is not empty; name another"
        }
        _ => return Ok(()),
    };
    Err(Error::file(dir, reason))
}

impl RunFolder {
    /// Opens `settings.out`. `wall_time` (seconds since 1970) stands in TensorBoard's file only.
    ///
    /// Errors: those of [`may_begin`], which is asked again; its checkpoints are all damaged; settings or data are not those
    /// of the checkpoint, with every difference named.
    pub fn open(settings: &Settings, identity: Identity, start: Start, wall_time: f64) -> Result<Opened> {
        let dir = settings.out.as_path();
        may_begin(dir, start)?;
        let lock = FolderLock::create(dir)?;
        // another may have begun and ended in between
        check(dir, start)?;
        match start {
            Start::New => (),
            Start::Overwrite => remove_run(dir)?,
            Start::Resume => remove_partial(dir, settings.full)?,
        }
        let checkpoints = checkpoints_folder(dir);
        let (resumed, mut warnings) = checkpoint::newest(&checkpoints)?;
        if let Some(checkpoint) = &resumed {
            let differences = checkpoint.about.identity.differences(&identity);
            if !differences.is_empty() {
                let reason = format!(
                    "the run cannot go on, because it would not be the same run: {}; take back the change, or give \
                     --overwrite to start again",
                    differences.join("; ")
                );
                return Err(Error::file(dir, reason));
            }
            checkpoint::prune(&checkpoints, checkpoint.about.position.step)?;
        }
        fs::create_dir_all(&checkpoints).map_err(|e| Error::io("create", &checkpoints, e))?;
        let logs = resumed.as_ref().map_or_else(Logs::default, |c| c.about.logs);
        let mut metrics = LogFile::open(&dir.join(METRICS), logs.metrics_bytes)?;
        let mut events = LogFile::open(&dir.join(EVENTS), logs.events_bytes)?;
        if metrics.bytes() < logs.metrics_bytes {
            warnings.push(lost(
                METRICS,
                metrics.bytes(),
                logs.metrics_bytes,
                "it goes on with the lines that are whole",
            ));
            metrics.keep_lines()?;
        }
        if events.bytes() < logs.events_bytes {
            // A record cut in half would end the file for its readers.
            warnings.push(lost(EVENTS, events.bytes(), logs.events_bytes, "it is begun again"));
            events = LogFile::open(&dir.join(EVENTS), 0)?;
        }
        if events.bytes() == 0 {
            events.append(&events::version(wall_time))?;
        }
        // it may come to another end
        if failure(dir).is_some() {
            rewrite_failure(dir, None)?;
        }
        // The last: with it on disk, the folder's other entries are.
        config_file::write(&dir.join(CONFIG), settings)?;
        let folder = RunFolder { dir: dir.into(), identity, metrics, events, saving: None, _lock: lock };
        Ok(Opened { folder, resumed, warnings })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a line to metrics.jsonl and its scalars to TensorBoard's file.
    pub fn log(&mut self, record: &impl Record, wall_time: f64) -> Result<()> {
        self.metrics.append(record.line()?.as_bytes())?;
        self.events.append(&events::scalars(wall_time, record.step(), &record.scalars()))
    }

    /// The model that the run begins with, as [`fingerprint::of_model`] has it.
    pub fn model_fingerprint(&self) -> Option<&str> {
        self.identity.inputs.get(fingerprint::MODEL).map(String::as_str)
    }

    /// Writes what the run took and came to.
    pub fn write_result(&self, result: &Value) -> Result<()> {
        json::write(&self.dir.join(RESULT), result)
    }

    /// Begins to write a checkpoint, beside what comes next; [`RunFolder::saved`] waits for it. `state` comes back as it is.
    /// Errors: those of the checkpoint before it.
    pub fn save(&mut self, position: Position, state: Value, arrays: Vec<(&'static str, Vec<f32>)>) -> Result<()> {
        self.saved()?;
        self.metrics.sync()?;
        self.events.sync()?;
        let logs = Logs { metrics_bytes: self.metrics.bytes(), events_bytes: self.events.bytes() };
        let (dir, about) = (checkpoints_folder(&self.dir), About::new(position, self.identity.clone(), logs, state));
        let write = move || {
            let arrays: Vec<(&str, &[f32])> = arrays.iter().map(|(name, values)| (*name, &values[..])).collect();
            checkpoint::write(&dir, about, &arrays)
        };
        let begun = thread::Builder::new().name("checkpoint".into()).spawn(write);
        self.saving = Some(begun.map_err(|e| Error::Unsupported(format!("cannot begin to write a checkpoint: {e}")))?);
        Ok(())
    }

    /// Returns once the last checkpoint is on disk and older ones are gone.
    pub fn saved(&mut self) -> Result<()> {
        let failed = |_| Err(Error::Unsupported("writing a checkpoint ended in a panic".into()));
        self.saving.take().map_or(Ok(()), |saving| saving.join().unwrap_or_else(failed))
    }

    /// The step of the last checkpoint, once that is on disk; None where there is none.
    pub fn last_checkpoint(&mut self) -> Result<Option<u64>> {
        self.saved()?;
        Ok(checkpoint::list(&checkpoints_folder(&self.dir))?.last().map(|(step, _)| *step))
    }
}

impl Drop for RunFolder {
    /// Whatever ends a run, a checkpoint that was begun is written. Its error is not the one to report.
    fn drop(&mut self) {
        let _ = self.saved();
    }
}

fn lost(name: &str, is: u64, was: u64, so: &str) -> String {
    format!("{name} has {is} bytes and had {was} when the checkpoint was written: someone cut it; {so}")
}

/// The names in a folder; none where it is missing.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("use as a folder", dir, e)),
    };
    list.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::io("list", dir, e))
}

/// Removes those of a run, and the model that was not in its place yet: what was being written is written again.
fn remove_partial(dir: &Path, full: bool) -> Result<()> {
    for folder in [dir, &checkpoints_folder(dir)] {
        entries(folder)?.iter().filter(|name| is_left_behind(name)).try_for_each(|name| remove(&folder.join(name)))?;
    }
    match full {
        true => remove(&model_folder(dir).with_extension("new")),
        false => Ok(()),
    }
}

/// Checkpoints first: a process killed within leaves the old run at an earlier step, or no run to go on with. The settings
/// last: they tell the model of a run from a folder of somebody's that has its name.
fn remove_run(dir: &Path) -> Result<()> {
    let full = settings_in(dir).get("full").and_then(toml::Value::as_bool).unwrap_or(false);
    checkpoint::list(&checkpoints_folder(dir))?.into_iter().rev().try_for_each(|(_, path)| remove(&path))?;
    remove_partial(dir, full)?;
    if full {
        remove(&model_folder(dir))?;
    }
    [METRICS, EVENTS, RESULT].iter().chain(&ADAPTER).chain(&[CONFIG]).try_for_each(|name| remove(&dir.join(name)))
}

/// Removes a file, or a folder with all that is in it; of a link the link alone. What is not there is no error.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
