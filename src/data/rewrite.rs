//! Lines of a dataset in another folder: as they were written, with image paths that still lead to the same files.

use super::messages::json_error;
use super::paths;
use crate::base::{Error, Result, input};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The lines of a dataset file, to be written elsewhere.
pub struct Lines {
    file: PathBuf,
    /// Of the file's folder, canonical: where its paths start.
    from: PathBuf,
    /// As they were written: what is not UTF-8 is the reader's to judge, line by line.
    lines: Vec<Vec<u8>>,
}

impl Lines {
    /// Errors: the file cannot be read, or not again: a pipe gives its lines once, and what reads a dataset had them.
    pub fn read(file: &Path) -> Result<Lines> {
        input::twice(file)?;
        let text = input::read_unmarked(file)?;
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let from = folder.canonicalize().map_err(|e| Error::io("use as a folder", folder, e))?;
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        Ok(Lines { file: file.into(), from, lines })
    }

    /// Line `number`, from 1, for a file in the folder `to` (canonical). Errors: there is no such line, or it is no JSON; a
    /// path that is not UTF-8.
    pub fn moved(&self, number: usize, to: &Path) -> Result<String> {
        let line = number.checked_sub(1).and_then(|i| self.lines.get(i)).map_or(&b""[..], |line| line.trim_ascii());
        let mut value: Value =
            serde_json::from_slice(line).map_err(|e| Error::line(&self.file, number, json_error(&e)))?;
        let mut moved = Ok(());
        if self.from != to {
            each_source(&mut value, &mut |source| {
                if let Some(path) = relative_path(source) {
                    match paths::text(&paths::relative(&self.from.join(path), to)) {
                        Ok(path) => *source = path,
                        Err(e) => moved = Err(e),
                    }
                }
            });
        }
        moved.map(|()| value.to_string())
    }
}

/// The path, where it starts from the dataset's folder: no data: URL, no whole path.
fn relative_path(source: &str) -> Option<&str> {
    let after = |scheme: &str| {
        let start = source.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| &source[scheme.len()..])
    };
    let path = after("file://").unwrap_or(source);
    (after("data:").is_none() && !path.starts_with('/')).then_some(path)
}

/// Every place in a line that `messages` reads an image from.
fn each_source(line: &mut Value, change: &mut dyn FnMut(&mut String)) {
    let Value::Object(object) = line else { return };
    for key in ["image", "images"] {
        if let Some(value) = object.get_mut(key) {
            source(value, change);
        }
    }
    for key in ["messages", "conversations"] {
        let turns = object.get_mut(key).and_then(Value::as_array_mut);
        for turn in turns.into_iter().flatten() {
            let key = if turn.get("role").is_some() { "content" } else { "value" };
            let Some(content) = turn.get_mut(key) else { continue };
            for item in content.as_array_mut().into_iter().flatten() {
                for key in ["image", "image_url", "url", "path"] {
                    if let Some(value) = item.get_mut(key) {
                        source(value, change);
                    }
                }
            }
        }
    }
}

/// A path, an object with one, or a list of these.
fn source(value: &mut Value, change: &mut dyn FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(list) => list.iter_mut().for_each(|value| source(value, change)),
        Value::Object(object) => {
            for key in ["url", "path"] {
                if let Some(Value::String(text)) = object.get_mut(key) {
                    change(text);
                }
            }
        }
        _ => (),
    }
}
