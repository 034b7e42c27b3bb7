//! Settings as TOML: a recipe is read with the flags on top, and what a run used is written beside its results.
//!
//! Paths in a file are relative to its folder, as images in a dataset are; those written are absolute, so that the file
//! reruns the run from anywhere.

use super::settings::Settings;
use crate::base::{Error, Result, input};
use crate::io::atomic;
use serde::Serialize;
use std::path::Path;
use toml::{Table, Value};

const PATHS: [&str; 5] = ["model", "data", "out", "eval-data", "init-adapter"];
/// Of each pair one says the same thing in another way: a flag displaces both in the file.
const ALTERNATIVES: [[&str; 2]; 2] = [["epochs", "max-steps"], ["warmup-steps", "warmup-ratio"]];
/// What an overfit check leaves no room for, in a file that was written for a whole run.
const NOT_OVERFIT: [&str; 9] = [
    "epochs",
    "max-steps",
    "warmup-steps",
    "warmup-ratio",
    "schedule",
    "subset",
    "eval-data",
    "eval-every",
    "early-stop",
];

/// The settings of `file`, where there is one, with `flags` (an object of the settings that were given) in their place.
/// Errors: those of reading, with file, line and key; those of [`Settings::finish`].
pub fn settings(file: Option<&Path>, flags: &impl Serialize) -> Result<Settings> {
    let wrong = |e: &dyn std::fmt::Display| Error::Usage(format!("the settings do not fit together: {}", one_line(e)));
    let given = serde_json::to_value(flags).map_err(|e| wrong(&e))?;
    for (name, value) in given.as_object().into_iter().flatten() {
        // TOML's integers end there, and its message names no flag
        if let Some(x) = value.as_u64().filter(|x| *x > i64::MAX as u64) {
            return Err(Error::Usage(format!("--{name} {x}: wanted at most {}", i64::MAX)));
        }
    }
    let flags = Table::try_from(flags).map_err(|e| wrong(&e))?;
    let mut table = file.map_or_else(|| Ok(Table::new()), read)?;
    for pair in ALTERNATIVES {
        if pair.iter().any(|key| flags.contains_key(*key)) {
            pair.iter().for_each(|key| _ = table.remove(*key));
        }
    }
    if flags.contains_key("overfit") {
        NOT_OVERFIT.iter().for_each(|key| _ = table.remove(*key));
    }
    table.extend(flags);
    let schedule = table.get("schedule").and_then(Value::as_str).unwrap_or("constant");
    if table.contains_key("overfit") && schedule != "constant" {
        return Err(Error::Usage(format!("--overfit and --schedule {schedule}: the check has no schedule; keep one")));
    }
    let settings: Settings = table.try_into().map_err(|e| wrong(&e))?;
    settings.finish()
}

/// TOML's messages go over several lines, and end in an empty one.
fn one_line(e: &dyn std::fmt::Display) -> String {
    e.to_string().lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The file's own table, checked, its paths taken from its folder.
fn read(path: &Path) -> Result<Table> {
    let text = input::read_text(path)?;
    // Read as settings first: errors then know their line, which a table does not.
    toml::from_str::<Settings>(&text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start);
        let line = text.as_bytes().iter().take(start).filter(|b| **b == b'\n').count();
        let said = text.lines().nth(line).unwrap_or_default().trim();
        Error::line(path, line + 1, format!("{said}: {}", e.message()))
    })?;
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| Error::file(path, e.message()))?;
    from_folder(&mut table, path.parent().unwrap_or(Path::new("")));
    Ok(table)
}

/// Takes a table's paths as relative to `folder`; lists of them too.
pub(super) fn from_folder(table: &mut Table, folder: &Path) {
    let join = |value: &mut Value| {
        if let Value::String(path) = value
            && let Some(joined) = folder.join(&path).to_str()
        {
            *path = joined.into();
        }
    };
    for key in PATHS {
        match table.get_mut(key) {
            Some(Value::Array(list)) => list.iter_mut().for_each(join),
            Some(value) => join(value),
            None => (),
        }
    }
}

/// How the file of a run's settings begins.
const HEAD: &str = "# The settings of this run.";

/// Whether a run wrote the file: then no comment of anybody's is lost where one writes it again.
pub fn is_of_a_run(path: &Path) -> bool {
    input::read_text(path).is_ok_and(|text| text.starts_with(HEAD))
}

/// Writes all settings, so that `vlm train --config` of that file does the same again. Errors: a path that is not
/// UTF-8; those of writing.
pub fn write(path: &Path, settings: &Settings) -> Result<()> {
    let text =
        toml::to_string(settings).map_err(|e| Error::file(path, format!("the settings cannot be written: {e}")))?;
    let again = "`vlm train --config` with this file does it again; give another --out.";
    atomic::write_file(path, |out| out.write(format!("{HEAD} {again}\n\n{text}").as_bytes()))
}
