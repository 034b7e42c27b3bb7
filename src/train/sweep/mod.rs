//! A search over settings: trials in folders, chosen on a validation set alone.
//!
//! ```text
//! trials.json                    what every trial is, and what it learns from; a second call has to mean the same
//! trial-001/                     a run's folder, as `vlm train` leaves it
//! trial-001/trial.json           its result, written when it is done
//! leaderboard.json, .csv         written after every trial
//! ```
//!
//! A finished trial is kept; one that was stopped goes on from its checkpoint. Start at [`run`].

pub mod board;
pub mod space;

use super::fingerprint;
use super::run_folder::Start;
use super::session::{self, Begin, End, Said, Watch};
use super::sets::Sets;
use super::settings::{DeviceChoice, Settings};
use crate::base::{Error, Precision, Result, counted};
use crate::data::dataset::{OnBad, Sample, read_dataset};
use crate::data::look;
use crate::device::Device;
use crate::io::folder_kind::{LEADERBOARD, TRIALS};
use crate::io::json;
use crate::io::lock::FolderLock;
use board::{Outcome, Row};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use space::{Sweep, Trial};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

const RESULT: &str = "trial.json";

/// Opens the device that settings ask for.
pub type Open<'a> = dyn Fn(DeviceChoice, Option<Precision>) -> Result<(Device, Precision)> + 'a;

/// Is told of a trial: its number, how many there are, and what it varies.
pub type Begins<'a> = dyn FnMut(usize, usize, &Map<String, Value>) + 'a;

/// What the caller does for a sweep: opens devices, shows how it goes on, and may stop it.
pub struct Host<'a> {
    /// The device that settings ask for.
    pub open: &'a Open<'a>,
    /// A trial begins.
    pub begins: &'a mut Begins<'a>,
    pub said: &'a mut dyn FnMut(Said),
    /// A trial is done.
    pub done: &'a mut dyn FnMut(&Row),
    pub interrupted: &'a dyn Fn() -> bool,
}

/// Runs all trials that are not done yet. The leaderboard; None: interrupted, and a second call goes on.
///
/// Errors: the validation set shares a photo with what is learnt or with the test set; the folder holds another sweep, or
/// another process writes into it; what stops a run for a reason that other settings would not mend. A trial whose loss is
/// no number, or that does not fit its memory, has failed, and the sweep goes on.
pub fn run(sweep: &Sweep, host: &mut Host) -> Result<Option<Vec<Row>>> {
    check_sets(sweep)?;
    let _lock = FolderLock::create(&sweep.out)?;
    remember(sweep)?;
    let mut rows: Vec<Row> = Vec::new();
    for trial in &sweep.trials {
        match result_in(&trial.settings.out)? {
            // there may be more by now
            Some(Row { outcome: Outcome::Failed { out_of_memory: true, .. }, .. }) | None => (),
            Some(row) => rows.push(row),
        }
    }
    let mut sets = Sets::default();
    for trial in &sweep.trials {
        if rows.iter().any(|row| row.trial == trial.number) {
            continue;
        }
        if (host.interrupted)() {
            return Ok(None);
        }
        (host.begins)(trial.number, sweep.trials.len(), &trial.varied);
        let Some(row) = attempt(trial, &mut sets, host)? else { return Ok(None) };
        (host.done)(&row);
        rows.push(row);
        board::sort(&mut rows);
        board::write(&sweep.out, &rows)?;
    }
    board::sort(&mut rows);
    board::write(&sweep.out, &rows)?;
    Ok(Some(rows))
}

/// Every file that [`run`] writes beside the trials' folders.
pub fn files(out: &Path) -> [PathBuf; 3] {
    [TRIALS, LEADERBOARD, board::CSV].map(|name| out.join(name))
}

/// Runs one trial to its end, or goes on with it. None: interrupted.
fn attempt(trial: &Trial, sets: &mut Sets, host: &mut Host) -> Result<Option<Row>> {
    let (device, precision) = (host.open)(trial.settings.device, trial.settings.precision)?;
    let mut watch = Watch { said: &mut *host.said, interrupted: host.interrupted };
    let begin = Begin { start: Start::Resume, first_gradients: None, dollars_per_hour: None };
    let file = trial.settings.out.join(RESULT);
    // of an attempt for which there was too little memory
    if file.exists() {
        std::fs::remove_file(&file).map_err(|e| Error::io("remove", &file, e))?;
    }
    let outcome = match session::train(&trial.settings, device, precision, &begin, sets, &mut watch) {
        Ok(End::Interrupted { .. }) => return Ok(None),
        Ok(End::Done { steps, loss, .. }) => Outcome::of(&trial.settings.out, steps, loss)?,
        Err(e) => match e.cause() {
            Error::Interrupted => return Ok(None),
            // what these settings made of it
            Error::Diverged { .. } => Outcome::Failed { reason: e.to_string(), out_of_memory: false },
            // a budget is theirs too, and what else runs on the device is not
            Error::OutOfMemory(_) => {
                Outcome::Failed { reason: e.to_string(), out_of_memory: trial.settings.memory.is_none() }
            }
            _ => return Err(e),
        },
    };
    let row = Row { trial: trial.number, folder: trial.settings.out.clone(), varied: trial.varied.clone(), outcome };
    std::fs::create_dir_all(&trial.settings.out).map_err(|e| Error::io("create", &trial.settings.out, e))?;
    json::write(&file, &json!(row))?;
    Ok(Some(row))
}

/// The result of the trial in `folder`; None where it is not done, or the folder is no trial's. Errors: it cannot be read.
pub fn result_in(folder: &Path) -> Result<Option<Row>> {
    let file = folder.join(RESULT);
    let result = json::read_if_there(&file)?.map(serde_json::from_value);
    result.transpose().map_err(|e| Error::file(&file, format!("is no trial's result: {e}")))
}

/// Writes what the trials are, or holds it against what an earlier call wrote: more trials are fine, others are not.
fn remember(sweep: &Sweep) -> Result<()> {
    let file = sweep.out.join(TRIALS);
    let mut inputs = Map::new();
    let mut seen: HashSet<PathBuf> = HashSet::new();
    for s in sweep.trials.iter().map(|t| &t.settings) {
        for (what, path) in [("training", Some(&s.data)), ("validation", s.eval_data.as_ref())] {
            if let Some(path) = path.filter(|p| seen.insert((*p).clone())) {
                inputs.insert(format!("the {what} set {}", path.display()), fingerprint::of_file(path)?.into());
            }
        }
        if seen.insert(s.model.clone()) {
            let model = s.model.display();
            inputs.insert(format!("the model {model}"), fingerprint::of_model(&s.model)?.into());
            let processing = fingerprint::of_processing(&s.model)?;
            inputs.insert(format!("the tokenizer, a template or the processor of {model}"), processing.into());
        }
    }
    let mut trials: Vec<Value> = sweep.trials.iter().map(|t| json!(t.settings)).collect();
    // where the sweep lies may change between calls
    trials.iter_mut().filter_map(Value::as_object_mut).for_each(|t| _ = t.remove("out"));
    if file.exists() {
        let before = json::read(&file)?;
        let other = |what: String| {
            let said = format!("{what}; the trials that are done would not compare: name another folder with --out");
            Err(Error::file(&sweep.out, said))
        };
        for (i, (now, old)) in trials.iter().zip(before["trials"].as_array().into_iter().flatten()).enumerate() {
            if now != old {
                let (now, old) = (now.as_object(), old.as_object());
                let differ = now.and_then(|now| now.iter().find(|(k, v)| old.is_none_or(|o| o.get(*k) != Some(v))));
                let (key, value) = differ.map_or(("its settings", &Value::Null), |(k, v)| (k.as_str(), v));
                return other(format!("trial {} was another: {key} is {value} now", i + 1));
            }
        }
        for (what, hash) in &inputs {
            if before["inputs"].get(what).is_some_and(|old| old != hash) {
                return other(format!("{what} has changed"));
            }
        }
    }
    json::write(&file, &json!({"inputs": inputs, "trials": trials}))
}

/// The validation set chooses, so it may share nothing with what is learnt, nor with what is reported.
fn check_sets(sweep: &Sweep) -> Result<()> {
    let mut pairs: Vec<(&'static str, &Path, &Settings)> = Vec::new();
    for s in sweep.trials.iter().map(|t| &t.settings) {
        let others = [("training", Some(&s.data)), ("test", sweep.test.as_ref())];
        for (what, other) in others {
            if let Some(other) = other
                && !pairs.iter().any(|(_, o, known)| o == other && known.eval_data == s.eval_data)
            {
                pairs.push((what, other, s));
            }
        }
    }
    for (what, other, settings) in pairs {
        let Some(validation) = &settings.eval_data else { continue };
        let theirs: HashSet<_> = hashes(other, settings)?.into_iter().flatten().collect();
        let mine = hashes(validation, settings)?;
        let shared = mine.iter().filter(|sample| sample.iter().any(|hash| theirs.contains(hash))).count();
        if shared > 0 {
            let said = format!(
                "{} with the {what} set {}: a choice made on that says nothing; split again with vlm data split, or clean \
                 the sets with vlm data dedupe",
                counted(
                    shared,
                    "of its samples has a photo or its text in common",
                    "of its samples have photos or text in common"
                ),
                other.display()
            );
            return Err(Error::file(validation, said));
        }
    }
    Ok(())
}

/// Of each sample the photos, or its text where it has none.
fn hashes(file: &Path, settings: &Settings) -> Result<Vec<Vec<[u8; 32]>>> {
    let on_bad = OnBad::of(settings.skip_bad);
    let set = read_dataset(file, Some(settings.prompt.as_deref().unwrap_or("")), on_bad)?;
    let of = |sample: &Sample| -> Result<Vec<[u8; 32]>> {
        let mut hashes = sample.images().map(|i| Ok(look::sha256(&look::content(i)?.0))).collect::<Result<Vec<_>>>()?;
        if hashes.is_empty() {
            hashes.push(look::sha256(format!("{:?}", sample.conversation).as_bytes()));
        }
        Ok(hashes)
    };
    set.samples.par_iter().map(of).collect()
}
