//! JSON objects whose fields are taken one by one, so that what nobody asked for is known at the end.

use super::atomic;
use crate::base::{Error, Result, input};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// Reads one JSON value. Errors: unreadable, not UTF-8, not JSON (with line and column).
pub fn read(path: &Path) -> Result<Value> {
    parsed(path, &bytes(path)?)
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    input::readable(path)?;
    fs::read(path).map_err(|e| Error::io("open", path, e))
}

/// The same, or None where there is no such file.
pub fn read_if_there(path: &Path) -> Result<Option<Value>> {
    input::if_there(bytes(path))?.map(|bytes| parsed(path, &bytes)).transpose()
}

/// One object, or None where there is no such file.
pub fn read_object_if_there(path: &Path) -> Result<Option<Map<String, Value>>> {
    read_if_there(path)?.map(|value| object(path, value)).transpose()
}

fn object(path: &Path, value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(Error::file(path, format!("wanted a JSON object, got {}", brief(&other)))),
    }
}

fn parsed(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::file(path, format!("not valid JSON: {e}")))
}

/// Writes one value, at once or not at all: indented, as a person reads it, with the end of a line.
pub fn write(path: &Path, value: &Value) -> Result<()> {
    atomic::write_file(path, |out| out.write(format!("{value:#}\n").as_bytes()))
}

/// The values of a file with one on each line. Errors: unreadable; a line that is not what `T` wants, by its number.
pub fn read_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = input::read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| serde_json::from_str(line).map_err(|e| Error::line(path, i + 1, e.to_string()))).collect()
}

/// The fields of one object of a file that have not been taken yet. A field that is null counts as absent.
#[derive(Debug)]
pub struct Fields {
    path: PathBuf,
    /// "text_config." for the object of that name, empty for the whole file.
    prefix: String,
    left: Map<String, Value>,
}

impl Fields {
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Fields { path: path.into(), prefix: String::new(), left: object(path, read(path)?)? })
    }

    /// The object under `key`; one without fields where there is none.
    pub fn section(&mut self, key: &str) -> Result<Fields> {
        let left = match self.take(key) {
            None => Map::new(),
            Some(Value::Object(left)) => left,
            Some(other) => return Err(self.wrong(key, "an object", &other)),
        };
        Ok(Fields { path: self.path.clone(), prefix: format!("{}{key}.", self.prefix), left })
    }

    /// With what `other` has and this one lacks; errors name it as if it stood here.
    pub fn or(mut self, other: Fields) -> Fields {
        for (key, value) in other.left {
            if self.left.get(&key).is_none_or(Value::is_null) {
                self.left.insert(key, value);
            }
        }
        self
    }

    pub fn take(&mut self, key: &str) -> Option<Value> {
        // shift_remove: the order of what is left is the order of the file, which error messages follow.
        self.left.shift_remove(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, and says null, where that means something else than its absence. To be asked before it is
    /// taken.
    pub fn is_null(&self, key: &str) -> bool {
        self.left.get(key).is_some_and(Value::is_null)
    }

    pub fn usize(&mut self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number that is not negative", as_usize)
    }

    pub fn u32(&mut self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a whole number from 0 to 4294967295", as_u32)
    }

    pub fn f64(&mut self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub fn bool(&mut self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn string(&mut self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a string", |v| v.as_str().map(String::from))
    }

    pub fn usizes(&mut self, key: &str) -> Result<Option<Vec<usize>>> {
        self.typed(key, "a list of whole numbers that are not negative", |v| list(v, as_usize))
    }

    pub fn strings(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        self.typed(key, "a list of strings", |v| list(v, |s| s.as_str().map(String::from)))
    }

    /// One id or a list of them, as `eos_token_id` is written.
    pub fn one_or_more_u32(&mut self, key: &str) -> Result<Option<Vec<u32>>> {
        self.typed(key, "a token id or a list of them", |v| one_or_more(v, as_u32))
    }

    /// What `found` is of a key that has to be there.
    pub fn needed<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.error(key, "is missing"))
    }

    /// Takes `key` as `read` understands it; None from `read` means that the value is not `wanted`.
    pub fn typed<T>(&mut self, key: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| self.wrong(key, wanted, &value))
    }

    /// What was not taken and is not null, in the order of the file.
    pub fn left(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.left.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value))
    }

    pub fn wrong(&self, key: &str, wanted: &str, got: &Value) -> Error {
        self.error(key, format!("wanted {wanted}, got {}", brief(got)))
    }

    /// An error about one field, which it names.
    pub fn error(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("{}{key}: {reason}", self.prefix))
    }
}

fn as_usize(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| n.try_into().ok())
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| n.try_into().ok())
}

fn list<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(read).collect()
}

/// One value that `read` understands, or a list of them.
pub fn one_or_more<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    read(value).map(|one| vec![one]).or_else(|| list(value, read))
}

/// The value as it stands in the file, cut to what fits in a sentence.
pub fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Result<Fields> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        fs::write(&path, text).unwrap();
        Fields::read(&path)
    }

    #[test]
    fn fields_have_types_and_errors_name_file_section_key_and_value() {
        let mut all =
            fields(r#"{"n": 3, "x": 1e-6, "b": true, "s": "t", "l": [1, 2], "null": null, "in": {"k": -1}}"#).unwrap();
        assert_eq!(all.usize("n").unwrap(), Some(3));
        assert_eq!(all.f64("x").unwrap(), Some(1e-6));
        assert_eq!(all.bool("b").unwrap(), Some(true));
        assert_eq!(all.string("s").unwrap().as_deref(), Some("t"));
        assert_eq!(all.usizes("l").unwrap(), Some(vec![1, 2]));
        assert_eq!(all.usize("null").unwrap(), None);
        assert_eq!(all.usize("absent").unwrap(), None);
        let mut inner = all.section("in").unwrap();
        let error = inner.usize("k").unwrap_err().to_string();
        assert!(error.ends_with("c.json: in.k: wanted a whole number that is not negative, got -1"), "{error}");
        assert_eq!(all.left().count(), 0);
        let both = fields(r#"{"a": 1, "b": null}"#).unwrap().or(fields(r#"{"a": 2, "b": 3, "c": 4}"#).unwrap());
        let left: Vec<String> = both.left().map(|(key, value)| format!("{key}{value}")).collect();
        assert_eq!(left, ["a1", "b3", "c4"]);
    }

    #[test]
    fn every_type_refuses_the_others() {
        let mut wrong =
            fields(r#"{"a":1.5,"b":4294967296,"c":"x","d":1,"e":2,"f":[1.5],"g":["x",3],"h":"x","i":[1]}"#).unwrap();
        assert!(wrong.usize("a").is_err());
        assert!(wrong.u32("b").is_err());
        assert!(wrong.f64("c").is_err());
        assert!(wrong.bool("d").is_err());
        assert!(wrong.string("e").is_err());
        assert!(wrong.usizes("f").is_err());
        assert!(wrong.strings("g").is_err());
        assert!(wrong.one_or_more_u32("h").is_err());
        assert!(wrong.section("i").is_err());
    }

    #[test]
    fn what_is_written_is_indented_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        assert_eq!(read_if_there(&path).unwrap(), None);
        let value = serde_json::json!({"b": [1.5], "a": null});
        write(&path, &value).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"b\": [\n    1.5\n  ],\n  \"a\": null\n}\n");
        assert_eq!(read_if_there(&path).unwrap(), Some(value.clone()));
        assert_eq!(read_object_if_there(&path).unwrap().map(Value::Object), Some(value));
        fs::write(&path, "[1]").unwrap();
        assert!(read_object_if_there(&path).unwrap_err().to_string().ends_with("wanted a JSON object, got [1]"));
        assert!(read_if_there(dir.path()).unwrap_err().to_string().starts_with("cannot open"));
    }

    #[test]
    fn what_is_no_json_object_is_said() {
        assert!(fields("[1]").unwrap_err().to_string().ends_with("wanted a JSON object, got [1]"));
        assert!(fields("{").unwrap_err().to_string().contains("not valid JSON: EOF"));
        let error = Fields::read(Path::new("/nowhere/c.json")).unwrap_err().to_string();
        assert!(error.starts_with("cannot open /nowhere/c.json"), "{error}");
        assert_eq!(brief(&Value::String("é".repeat(100))).chars().count(), 61);
    }
}
