//! Jinja as transformers sets it up for chat templates (`utils/chat_template_utils.py`, 5.17): blocks trimmed, loop
//! controls, Python's methods on strings and maps, `tojson` that is `json.dumps` with nothing escaped,
//! `raise_exception`, `strftime_now`, and values printed as Python prints them.

use crate::base::date::{Date, date};
use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value};
use serde_json::Value as Json;
use std::fmt::Write;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// `{% generation %}` … `{% endgeneration %}`: transformers' marks around the assistant's words, which print nothing.
static GENERATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("a constant pattern is valid"));

/// Steps that a template may take: a message takes about a hundred, and so many end after seconds.
pub(super) const STEPS: u64 = 50_000_000;

/// An environment with one template, `name`.
pub(super) fn environment(name: &str, source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(STEPS));
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    // Jinja2 reads line ends of any kind as \n.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = GENERATION.replace_all(&source, |found: &fancy_regex::Captures| {
        let part = |group| found.get(group).map_or("", |text| text.as_str());
        let word = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{}{word}{}", part(1), part(3))
    });
    environment.add_template_owned(name.to_owned(), source.into_owned())?;
    Ok(environment)
}

/// `str()` of Python, for the kinds that templates print.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::Number if !value.is_integer() => Ok(out.write_str(&python_float(f64::try_from(value.clone())?))?),
        ValueKind::Seq | ValueKind::Map => Err(Error::new(
            ErrorKind::InvalidOperation,
            "the template prints a list or a map as it is; with |tojson it would have one meaning everywhere",
        )),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` with transformers' defaults.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let invalid = |text: String| Error::new(ErrorKind::InvalidOperation, text);
    if value.is_undefined() {
        return Err(invalid("tojson of a value that is not there".into()));
    }
    let indent: Option<usize> = options.get("indent")?;
    let (item, key): (String, String) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are two strings".into())),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let json = serde_json::to_value(value).map_err(|e| invalid(format!("tojson: {e}")))?;
    let mut text = String::new();
    Dumps { indent, item, key, ascii, sorted }.write(&json, 0, &mut text);
    Ok(text)
}

struct Dumps {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Dumps {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Number(number) if number.is_f64() => out.push_str(&python_float(number.as_f64().unwrap_or(f64::NAN))),
            Json::Null | Json::Bool(_) | Json::Number(_) => out.push_str(&value.to_string()),
            Json::String(text) => self.string(text, out),
            Json::Array(list) => {
                out.push('[');
                for (i, value) in list.iter().enumerate() {
                    self.gap(i, depth + 1, out);
                    self.write(value, depth + 1, out);
                }
                self.close(list.is_empty(), depth, out);
                out.push(']');
            }
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sorted {
                    entries.sort_by_key(|(key, _)| *key);
                }
                out.push('{');
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.gap(i, depth + 1, out);
                    self.string(key, out);
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out);
                }
                self.close(map.is_empty(), depth, out);
                out.push('}');
            }
        }
    }

    /// What stands before entry `i`.
    fn gap(&self, i: usize, depth: usize, out: &mut String) {
        if i > 0 {
            out.push_str(&self.item);
        }
        self.close(false, depth, out);
    }

    fn close(&self, empty: bool, depth: usize, out: &mut String) {
        if let (Some(indent), false) = (self.indent, empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth)));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        // serde_json escapes what Python's json does (quotes, backslash, below U+0020) and nothing else.
        let quoted = Json::from(text).to_string();
        for c in quoted.chars() {
            if self.ascii && !c.is_ascii() {
                let mut units = [0; 2];
                out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            } else {
                out.push(c);
            }
        }
    }
}

/// `repr` of a Python float: the shortest digits that read back, an exponent below 1e-4 and from 1e16.
fn python_float(x: f64) -> String {
    let scientific = format!("{x:e}");
    let parts = scientific.split_once('e').and_then(|(digits, e)| Some((digits, e.parse::<i32>().ok()?)));
    match parts {
        Some((_, -4..16)) => {
            let plain = x.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        Some((digits, e)) => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
        None if x.is_nan() => "nan".into(),
        None => if x > 0.0 { "inf" } else { "-inf" }.into(),
    }
}

/// The time now in UTC: a prompt should not depend on where the machine stands.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    strftime(format, now)
}

/// Python's `strftime` of a time in seconds since 1970, for the directives that chat templates use.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let Date { year, month, day, day_of_year } = date(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(c) = letters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let written = match letters.next() {
            Some('Y') => write!(text, "{year}"),
            Some('y') => write!(text, "{:02}", year % 100),
            Some('m') => write!(text, "{month:02}"),
            Some('B') => write!(text, "{month_name}"),
            Some('b') => write!(text, "{}", &month_name[..3]),
            Some('d') => write!(text, "{day:02}"),
            Some('j') => write!(text, "{day_of_year:03}"),
            Some('A') => write!(text, "{day_name}"),
            Some('a') => write!(text, "{}", &day_name[..3]),
            Some('H') => write!(text, "{hour:02}"),
            Some('I') => write!(text, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(text, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(text, "{minute:02}"),
            Some('S') => write!(text, "{second:02}"),
            Some('%') => write!(text, "%"),
            other => {
                let directive = other.map_or(String::new(), String::from);
                let reason = format!("strftime_now does not know %{directive}");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        };
        written.map_err(|_| Error::new(ErrorKind::WriteFailure, "strftime_now"))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against Python's `datetime.fromtimestamp(seconds, UTC).strftime(…)`.
    #[test]
    fn times_are_written_as_python_writes_them() {
        for (seconds, wanted) in [
            (0, "Thursday Thu 01 January Jan 01 1970 70 001 00 12 AM 00 00 %"),
            (951_782_400, "Tuesday Tue 29 February Feb 02 2000 00 060 00 12 AM 00 00 %"),
            (1_709_251_199, "Thursday Thu 29 February Feb 02 2024 24 060 23 11 PM 59 59 %"),
            (4_107_542_399, "Sunday Sun 28 February Feb 02 2100 00 059 23 11 PM 59 59 %"),
            (1_735_646_400, "Tuesday Tue 31 December Dec 12 2024 24 366 12 12 PM 00 00 %"),
        ] {
            assert_eq!(strftime("%A %a %d %B %b %m %Y %y %j %H %I %p %M %S %%", seconds).unwrap(), wanted);
        }
        assert!(strftime("%", 0).is_err());
        assert_eq!(strftime_now("%Y").unwrap().len(), 4);
    }
}
