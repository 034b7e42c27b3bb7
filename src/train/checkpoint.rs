//! What a killed run needs to go on as if nothing had happened: one safetensors file per checkpoint, written whole or
//! not at all, never changed.
//!
//! Arrays are flat f32, under the names that the loop gives them; everything else is JSON in the file's metadata,
//! [`About`]. Each array has a checksum, so that a file that rotted on disk is found and an older one taken. Names sort
//! by step: `checkpoints/step-00000042.safetensors`.

use crate::base::{DType, Error, Result, counted};
use crate::io::safetensors::{self, SafetensorsFile, TensorSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How many checkpoints stay.
const KEPT: usize = 2;
/// The metadata's key.
const ABOUT: &str = "vlm_run";
/// Other versions are refused by number: 1 held neither all that a run reads, nor in which precision, nor why it ended; 2 not
/// what the best evaluation left; 4 not the loss of that.
const VERSION: u32 = 5;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done.
    pub step: u64,
    /// Of the last of them: its epoch and its number within that, both counted from 0.
    pub epoch: u64,
    pub in_epoch: u64,
}

/// What must be the same when a run goes on: settings by name, with a value for every default, and fingerprints of what is
/// read by what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub settings: Map<String, Value>,
    pub inputs: BTreeMap<String, String>,
}

impl Identity {
    /// A sentence for each difference, none where the run may go on. `out` is where the run lies, `device` and `memory`
    /// how it is computed, in a precision that has to be the same; paths are compared by the fingerprints of what they name.
    pub fn differences(&self, now: &Identity) -> Vec<String> {
        const FREE: [&str; 7] = ["out", "device", "memory", "model", "data", "eval-data", "init-adapter"];
        let mut said = Vec::new();
        let keys = self.settings.keys().chain(now.settings.keys().filter(|k| !self.settings.contains_key(*k)));
        for key in keys.filter(|key| !FREE.contains(&key.as_str())) {
            let [was, is] = [self, now].map(|identity| match identity.settings.get(key) {
                None | Some(Value::Null) => "not given".to_string(),
                Some(value) => value.to_string(),
            });
            if was != is {
                said.push(format!("{key} was {was} and is {is}"));
            }
        }
        let keys = self.inputs.keys().chain(now.inputs.keys().filter(|k| !self.inputs.contains_key(*k)));
        for key in keys {
            said.extend(match (self.inputs.get(key), now.inputs.get(key)) {
                (Some(was), Some(is)) if was == is => None,
                (Some(_), Some(_)) => Some(format!("{key} changed")),
                (Some(_), None) => Some(format!("there was {key}, and now is none")),
                (None, _) => Some(format!("there was not {key}, and now is")),
            });
        }
        said
    }
}

/// Lengths of the append-only files when the checkpoint was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Logs {
    pub metrics_bytes: u64,
    pub events_bytes: u64,
}

/// All but the arrays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    version: u32,
    pub position: Position,
    pub identity: Identity,
    pub logs: Logs,
    /// What else the loop wants back, such as the best score so far.
    pub state: Value,
    /// CRC-32 of each array's bytes.
    checksums: BTreeMap<String, u32>,
}

impl About {
    pub fn new(position: Position, identity: Identity, logs: Logs, state: Value) -> About {
        About { version: VERSION, position, identity, logs, state, checksums: BTreeMap::new() }
    }
}

/// Arrays by name.
pub type Arrays<'a> = [(&'a str, &'a [f32])];

/// Writes the checkpoint of `about.position` into the folder `dir`; once it is on disk, removes all but it and the one
/// before, later ones (of a future that a resumed run left behind) included.
pub fn write(dir: &Path, mut about: About, arrays: &Arrays) -> Result<()> {
    for (name, values) in arrays {
        about.checksums.insert(name.to_string(), crc32fast::hash(bytemuck::cast_slice(values)));
    }
    let spec = |(name, values): &(&str, &[f32])| TensorSpec {
        name: name.to_string(),
        dtype: DType::F32,
        shape: vec![values.len()],
    };
    let specs: Vec<TensorSpec> = arrays.iter().map(spec).collect();
    let path = dir.join(format!("step-{:08}.safetensors", about.position.step));
    let text = serde_json::to_string(&about).map_err(|e| Error::file(&path, e.to_string()))?;
    // All are of one type, so they are asked for in this order.
    let mut next = arrays.iter();
    safetensors::write(&path, &specs, &[(ABOUT, &text)], |_, out| {
        out.write(bytemuck::cast_slice(next.next().map_or(&[], |(_, values)| values)))
    })?;
    let later = list(dir)?.into_iter().filter(|(step, _)| *step > about.position.step);
    later.map(|(_, path)| path).try_for_each(remove)?;
    prune(dir, about.position.step)
}

/// Removes what is older than the checkpoint of `step` and the one before: a run killed while it saved leaves more.
pub fn prune(dir: &Path, step: u64) -> Result<()> {
    let older: Vec<PathBuf> = list(dir)?.into_iter().filter(|(s, _)| *s <= step).map(|(_, path)| path).collect();
    let n = older.len().saturating_sub(KEPT);
    older.into_iter().take(n).try_for_each(remove)
}

fn remove(path: PathBuf) -> Result<()> {
    std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))
}

/// The checkpoints in `dir`, the oldest first; none where the folder is missing.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let error = |e| Error::io("list", dir, e);
    if !dir.exists() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let step = name.strip_prefix("step-").and_then(|n| n.strip_suffix(".safetensors")?.parse().ok());
        found.extend(step.map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

/// A checkpoint that was read and found whole.
#[derive(Debug)]
pub struct Checkpoint {
    pub about: About,
    file: SafetensorsFile,
}

impl Checkpoint {
    /// Errors: no checkpoint, one of another version, arrays that are missing or were damaged.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let file = SafetensorsFile::open(path)?;
        let Some(text) = file.metadata.get(ABOUT) else {
            return Err(Error::file(path, "is no checkpoint of a run: its metadata has no vlm_run"));
        };
        let wrong = |e: serde_json::Error| Error::file(path, format!("its metadata is wrong: {e}"));
        let all: Value = serde_json::from_str(text).map_err(wrong)?;
        match all.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => (),
            version => {
                let got = version.map_or("none".into(), |v| v.to_string());
                let reason =
                    format!("its version is {got}, this program reads {VERSION}; resume with the one that wrote it");
                return Err(Error::file(path, reason));
            }
        }
        let about: About = serde_json::from_value(all).map_err(wrong)?;
        if let Some(name) = about.checksums.keys().find(|name| file.entry(name).is_none()) {
            return Err(Error::tensor(path, name, "it is missing"));
        }
        for (name, entry) in file.tensors() {
            let sum = file.bytes(name).map(crc32fast::hash);
            if entry.dtype != DType::F32 || sum != about.checksums.get(name).copied() {
                return Err(Error::tensor(
                    path,
                    name,
                    "its numbers are not those that were written; the file is damaged",
                ));
            }
        }
        Ok(Checkpoint { about, file })
    }

    /// What else the loop wanted back. Errors: it is not what this program writes.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        let wrong = |e| Error::file(&self.file.path, format!("its state cannot be read: {e}; the file is damaged"));
        serde_json::from_value(self.about.state.clone()).map_err(wrong)
    }

    /// Copies every array to its place. Errors: the names or lengths are not those of the checkpoint.
    pub fn read_into(&self, arrays: &mut [(&str, &mut [f32])]) -> Result<()> {
        let error = |name: &str, reason: String| Error::tensor(&self.file.path, name, reason);
        if let Some((name, _)) = self.file.tensors().find(|(name, _)| arrays.iter().all(|(wanted, _)| wanted != name)) {
            return Err(error(name, "the run has no array of this name".into()));
        }
        for (name, out) in arrays {
            let Some(bytes) = self.file.bytes(name) else {
                return Err(error(name, "the run needs it, and it is missing".into()));
            };
            if bytes.len() != std::mem::size_of_val(*out) {
                return Err(error(name, format!("has {} numbers, the run {}", bytes.len() / 4, out.len())));
            }
            for (x, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*bytes);
            }
        }
        Ok(())
    }
}

/// The newest checkpoint in `dir` that is whole, and a sentence for each newer one that is not. Errors: there are some,
/// and none is whole.
pub fn newest(dir: &Path) -> Result<(Option<Checkpoint>, Vec<String>)> {
    let mut warnings = Vec::new();
    let all = list(dir)?;
    for (_, path) in all.iter().rev() {
        match Checkpoint::open(path) {
            Ok(checkpoint) => return Ok((Some(checkpoint), warnings)),
            Err(e) => warnings.push(format!("left out: {e}")),
        }
    }
    match warnings.first() {
        None => Ok((None, warnings)),
        Some(first) => {
            let reason = format!(
                "of its {} none can be read ({first}); give --overwrite to start the run again",
                counted(all.len(), "checkpoint", "checkpoints")
            );
            Err(Error::file(dir, reason))
        }
    }
}
