//! The folder that an evaluation fills, photo by photo, so that a stopped one goes on where it was.
//!
//! ```text
//! identity.json      what is asked of whom: an evaluation goes on only with the same; the options that an endpoint was
//!                    sent, where it did not take those
//! predictions.jsonl  a record per photo, append-only while it runs; by line of the data file when it is done
//! summary.json       the result; only a finished evaluation has one
//! ```

use super::records::{PREDICTIONS, Record, written};
use crate::base::{Error, Result, input};
use crate::io::folder_kind::SUMMARY;
use crate::io::lock::FolderLock;
use crate::io::log_file::LogFile;
use crate::io::{atomic, json};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const IDENTITY: &str = "identity.json";

/// What to do with a folder that holds an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Refuse it.
    New,
    /// Go on where it stopped; in an empty folder begin.
    Resume,
    /// Replace it. Other files stay.
    Overwrite,
}

pub struct Folder {
    dir: PathBuf,
    /// Canonical: photos are named as seen from here.
    canonical: PathBuf,
    identity: Map<String, Value>,
    log: LogFile,
    records: Vec<Record>,
    /// Seconds of earlier sittings.
    pub seconds: f64,
    /// When this sitting began, and when its seconds were last kept; None where they are no more to be.
    sitting: Option<[Instant; 2]>,
    /// The options that an endpoint is sent, where it does not take those of the identity.
    sent: Option<Map<String, Value>>,
    _lock: FolderLock,
}

/// How often the seconds of a sitting are kept: a kill takes no more of them.
const KEPT_EVERY: Duration = Duration::from_secs(10);

impl Folder {
    /// The names of what an evaluation writes.
    pub const FILES: [&str; 3] = [PREDICTIONS, SUMMARY, IDENTITY];

    /// Opens or makes `dir`. `identity` holds everything that has a say in the answers, called as a person calls it: flags
    /// (`--prompt`) with their values, the rest (`the set`) with fingerprints, or an object of values. Errors: the folder
    /// holds an evaluation (`New`), or one of another identity, with the differences named (`Resume`); another process
    /// writes into it.
    pub fn open(dir: &Path, identity: Map<String, Value>, start: Start) -> Result<Folder> {
        let lock = FolderLock::create(dir)?;
        let [predictions, summary, about] = [PREDICTIONS, SUMMARY, IDENTITY].map(|name| dir.join(name));
        let (mut records, mut seconds, mut sent) = (Vec::new(), 0.0, None);
        match start {
            Start::New if summary.exists() => {
                let said = "holds the results of an earlier run; choose another folder or give --overwrite";
                return Err(Error::file(dir, said));
            }
            Start::New if predictions.exists() => {
                let said = "holds an unfinished evaluation; give --resume to go on, or --overwrite to begin again";
                return Err(Error::file(dir, said));
            }
            Start::Resume if about.exists() => {
                let was = json::read(&about)?;
                same(dir, &was["identity"], &identity)?;
                seconds = was["seconds"].as_f64().unwrap_or(0.0);
                sent = was["sent"].as_object().cloned();
            }
            Start::Resume if predictions.exists() => {
                let said = "holds predictions and no identity.json, so nobody knows of what; give --overwrite";
                return Err(Error::file(dir, said));
            }
            _ => (),
        }
        if start == Start::Overwrite {
            // the summary first: an old one beside new predictions would lie, should this run end early
            for old in [&summary, &predictions, &about].into_iter().filter(|f| f.exists()) {
                std::fs::remove_file(old).map_err(|e| Error::io("remove", old, e))?;
            }
        }
        let mut whole = 0;
        if predictions.exists() {
            (records, whole) = kept(&predictions)?;
        }
        let canonical = dir.canonicalize().map_err(|e| Error::io("use as a folder", dir, e))?;
        let log = LogFile::open(&predictions, whole)?;
        let sitting = Some([Instant::now(); 2]);
        let folder = Folder { dir: dir.into(), canonical, identity, log, records, seconds, sitting, sent, _lock: lock };
        folder.remember(folder.seconds)?;
        Ok(folder)
    }

    /// The result, where the evaluation is finished: the records are those of the set's `lines`, each once. Where they are
    /// not (somebody changed the file), it goes on with those that are, and without the summary, which is of others.
    pub fn finished(&mut self, lines: &BTreeSet<usize>) -> Result<Option<Value>> {
        let file = self.dir.join(SUMMARY);
        let summary = file.exists().then(|| json::read(&file)).transpose()?;
        if self.records().iter().map(|r| r.line).eq(lines.iter().copied()) {
            if summary.is_some() {
                self.sitting = None;
            }
            return Ok(summary);
        }
        if let Some(summary) = summary {
            // those of the last sitting stand nowhere else
            self.seconds = summary["seconds"].as_f64().unwrap_or(self.seconds);
            self.remember(self.seconds)?;
            std::fs::remove_file(&file).map_err(|e| Error::io("remove", &file, e))?;
        }
        let mut open = lines.clone();
        self.records.retain(|r| open.remove(&r.line));
        Ok(None)
    }

    /// Lines of the data file that are answered already.
    pub fn done(&self) -> BTreeSet<usize> {
        self.records.iter().map(|r| r.line).collect()
    }

    /// Adds a record, its photos named as seen from here. It is in the file when this returns.
    pub fn append(&mut self, mut record: Record) -> Result<&Record> {
        let images = record.images().into_iter().map(|image| written(Path::new(image), &self.canonical));
        let images = images.collect::<Result<_>>()?;
        record.set_images(images);
        self.log.append(line(&record)?.as_bytes())?;
        if let Some([_, kept]) = &mut self.sitting
            && kept.elapsed() >= KEPT_EVERY
        {
            *kept = Instant::now();
            self.remember(self.seconds + self.sat())?;
        }
        self.records.push(record);
        Ok(&self.records[self.records.len() - 1])
    }

    /// Keeps the seconds of this sitting too, for the one that goes on. Call it when an evaluation is stopped.
    pub fn stop(mut self, seconds: f64) -> Result<()> {
        self.sitting = None;
        self.log.sync()?;
        self.remember(self.seconds + seconds)
    }

    /// Seconds of this sitting so far.
    fn sat(&self) -> f64 {
        self.sitting.map_or(0.0, |[begun, _]| begun.elapsed().as_secs_f64())
    }

    /// The options of [`Folder::send`], in this sitting or an earlier one.
    pub fn sent(&self) -> Option<&Map<String, Value>> {
        self.sent.as_ref()
    }

    /// Keeps the options that an endpoint is sent in place of those of the identity, for this sitting and the next.
    pub fn send(&mut self, options: Map<String, Value>) -> Result<()> {
        self.sent = Some(options);
        self.remember(self.seconds + self.sat())
    }

    fn remember(&self, seconds: f64) -> Result<()> {
        let about = json!({"identity": self.identity, "sent": self.sent, "seconds": seconds});
        json::write(&self.dir.join(IDENTITY), &about)
    }

    /// The records so far, by line of the data file.
    pub fn records(&mut self) -> &[Record] {
        self.records.sort_by_key(|r| r.line);
        &self.records
    }

    /// Puts the records into order and writes the summary, last.
    pub fn finish(mut self, summary: &Value) -> Result<()> {
        self.records();
        write_records(&self.dir.join(PREDICTIONS), &self.records)?;
        json::write(&self.dir.join(SUMMARY), summary)?;
        self.sitting = None;
        Ok(())
    }
}

impl Drop for Folder {
    /// What ended by an error took its seconds too. Another error is not the one to report.
    fn drop(&mut self) {
        if self.sitting.is_some() {
            let _ = self.remember(self.seconds + self.sat());
        }
    }
}

/// Writes a predictions.jsonl whole.
pub fn write_records(path: &Path, records: &[Record]) -> Result<()> {
    atomic::write_file(path, |out| records.iter().try_for_each(|r| out.write(line(r)?.as_bytes())))
}

fn line(record: &Record) -> Result<String> {
    let text = serde_json::to_string(record).map_err(|e| Error::file(PREDICTIONS, e.to_string()))?;
    Ok(text + "\n")
}

/// The whole records of a file that somebody may have been killed while writing, and their bytes.
fn kept(path: &Path) -> Result<(Vec<Record>, u64)> {
    let bytes = input::read(path)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..whole].split_inclusive(|b| *b == b'\n').enumerate();
    let records =
        lines.map(|(i, line)| serde_json::from_slice(line).map_err(|e| Error::line(path, i + 1, e.to_string())));
    Ok((records.collect::<Result<_>>()?, whole as u64))
}

fn same(dir: &Path, was: &Value, is: &Map<String, Value>) -> Result<()> {
    let empty = Map::new();
    let differ = differences(was.as_object().unwrap_or(&empty), is, false);
    if differ.is_empty() {
        return Ok(());
    }
    let said = format!("cannot go on: {}; take back the change, or give --overwrite to begin again", differ.join("; "));
    Err(Error::file(dir, said))
}

/// What is not the same, in words. Values are those of flags and of what is `inside` an entry; others are fingerprints,
/// which nobody can read.
fn differences(was: &Map<String, Value>, is: &Map<String, Value>, inside: bool) -> Vec<String> {
    let mut said = Vec::new();
    for key in was.keys().chain(is.keys().filter(|k| !was.contains_key(*k))) {
        let [a, b] = [was, is].map(|map| map.get(key).unwrap_or(&Value::Null));
        let name = key.trim_start_matches("the ");
        match (a, b) {
            _ if a == b => (),
            (Value::Object(a), Value::Object(b)) => said.extend(differences(a, b, true)),
            _ if inside || key.starts_with("--") => said.push(changed(key, a, b)),
            (Value::Null, _) => said.push(format!("there was no {name}, and now there is")),
            (_, Value::Null) => said.push(format!("there is no {name} any more")),
            _ => said.push(format!("{key} changed")),
        }
    }
    said
}

fn changed(key: &str, was: &Value, is: &Value) -> String {
    let [was, is] = [was, is].map(|value| if value.is_null() { "not given".into() } else { json::brief(value) });
    // two that differ where they are cut off
    if was == is { format!("{key} changed") } else { format!("{key} was {was} and is {is}") }
}
