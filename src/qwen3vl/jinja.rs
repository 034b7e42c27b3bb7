//! Jinja as transformers sets it up for chat templates (`utils/chat_template_utils.py`, 5.17): blocks trimmed, loop
//! controls, Python's methods on strings and maps, `tojson` that is `json.dumps` with nothing escaped,
//! `raise_exception`, `strftime_now`, and values printed as Python prints them.

use crate::base::date::{Date, date};
use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, StringInput, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, filters};
use minijinja_contrib::pycompat;
use serde_json::Value as Json;
use std::fmt::Write;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// `{% generation %}` … `{% endgeneration %}`: transformers' marks around the assistant's words, which print nothing.
static GENERATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("a constant pattern is valid"));

/// The lengths that fields of `str.format` ask for: `{:>80.3f}` asks for 80 and 3.
static LENGTHS: LazyLock<Regex> = LazyLock::new(|| {
    let spec = r"(?s):(?:.?[<>^])?[-+ ]?#?0?([0-9]*)[,_]?(?:\.([0-9]+))?[A-Za-z]?\}";
    Regex::new(spec).expect("a constant pattern is valid")
});

/// What a template may spend. A step costs one, and so do [`STEP_BYTES`] of the texts and lists that it makes, before they
/// are made wherever their size is known. A message costs about a hundred, and so many end after seconds.
///
/// There is no hook into what minijinja itself does to values, and so no limit holds a template back that doubles a list
/// with `+` more than 32 times; or that has values nested tens of thousands deep, holding themselves (a namespace as an
/// attribute of its own) or sharing parts over and over (`[x, x]` of `[x, x]`), and compares them, drops them, or makes
/// text of them with anything but `tojson`.
pub(super) const STEPS: u64 = 10_000_000;

/// What one of [`STEPS`] pays for: minijinja's own rate.
pub(super) const STEP_BYTES: u64 = 64;

/// How deep lists and maps may lie in each other for `tojson`. Python gives up at about 1000.
const NESTED: usize = 500;

/// An environment with one template, `name`.
pub(super) fn environment(name: &str, source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(STEPS));
    // an error says what it is that is undefined
    environment.set_debug(true);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(method);
    environment.add_filter("join", join);
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
        ValueKind::Seq | ValueKind::Map => Err(invalid(
            "the template prints a list or a map as it is; with |tojson it would have one meaning everywhere",
        )),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(invalid(message))
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// Takes what `bytes` of text cost out of [`STEPS`].
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / STEP_BYTES)
}

/// The same for texts that are to be joined.
fn pay_for_items(state: &State, items: &Value) -> Result<(), Error> {
    let items = items.try_iter().into_iter().flatten();
    items.map(|item| item.as_str().map_or(0, str::len)).try_for_each(|n| pay(state, n + STEP_BYTES as usize))
}

/// Python's methods, where their results are paid for before they are made.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), name, arguments) {
        (Some(format), "format", _) => pay(state, lengths(format))?,
        (Some(_), "join", [items, ..]) => pay_for_items(state, items)?,
        _ => {}
    }
    pycompat::unknown_method_callback(state, value, name, arguments)
}

/// All of [`LENGTHS`] in a format.
fn lengths(format: &str) -> usize {
    // doubled, they are text
    let format = format.replace("{{", "").replace("}}", "");
    let found = LENGTHS.captures_iter(&format).filter_map(Result::ok);
    let length = |found: &fancy_regex::Captures, group| {
        found.get(group).and_then(|digits| digits.as_str().parse().ok()).unwrap_or(0_usize)
    };
    found.fold(0, |sum, found| sum.saturating_add(length(&found, 1)).saturating_add(length(&found, 2)))
}

/// minijinja's filter, which pays for the texts between which it puts `joiner` only when they are joined.
fn join(
    state: &mut State,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<Value, Error> {
    pay_for_items(state, value)?;
    filters::join(state, value, joiner, attribute, options)
}

/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` with transformers' defaults.
fn tojson(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(invalid("tojson of a value that is not there"));
    }
    let indent: Option<usize> = options.get("indent")?;
    let (item, key): (String, String) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators are two strings")),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut dumps = Dumps { state, indent, item, key, ascii, sorted, unpaid: 0, out: String::new() };
    dumps.write(value, 0)?;
    Ok(dumps.out)
}

struct Dumps<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
    /// Bytes of `out` that are less than a step together.
    unpaid: usize,
    out: String,
}

impl Dumps<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > NESTED {
            return Err(invalid(format!("tojson of a value nested more than {NESTED} deep")));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                self.put("[")?;
                let mut is_empty = true;
                for (i, value) in value.try_iter()?.checked().enumerate() {
                    is_empty = false;
                    self.gap(i, depth + 1)?;
                    self.write(&value?, depth + 1)?;
                }
                self.close(is_empty, depth)?;
                self.put("]")
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|map| map.try_iter_pairs()).into_iter().flatten();
                let entries = pairs.map(|(key, value)| Ok((key_text(&key)?, value)));
                let mut entries: Vec<(String, Value)> = entries.collect::<Result<_, Error>>()?;
                if self.sorted {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.put("{")?;
                for (i, (key, value)) in entries.iter().enumerate() {
                    self.gap(i, depth + 1)?;
                    self.string(key)?;
                    self.pay(self.key.len())?;
                    self.out.push_str(&self.key);
                    self.write(value, depth + 1)?;
                }
                self.close(entries.is_empty(), depth)?;
                self.put("}")
            }
            _ => match scalar(value)? {
                Json::String(text) => self.string(&text),
                Json::Number(number) if number.is_f64() => self.put(&python_float(number.as_f64().unwrap_or(f64::NAN))),
                other => self.put(&other.to_string()),
            },
        }
    }

    /// Takes what is to be written out of [`STEPS`], before the memory for it is taken.
    fn pay(&mut self, bytes: usize) -> Result<(), Error> {
        let bytes = self.unpaid.saturating_add(bytes);
        self.unpaid = bytes % STEP_BYTES as usize;
        pay(self.state, bytes)
    }

    fn put(&mut self, text: &str) -> Result<(), Error> {
        self.pay(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// What stands before entry `i`.
    fn gap(&mut self, i: usize, depth: usize) -> Result<(), Error> {
        if i > 0 {
            self.pay(self.item.len())?;
            self.out.push_str(&self.item);
        }
        self.close(false, depth)
    }

    fn close(&mut self, is_empty: bool, depth: usize) -> Result<(), Error> {
        if let (Some(indent), false) = (self.indent, is_empty) {
            let spaces = indent.saturating_mul(depth);
            self.pay(spaces.saturating_add(1))?;
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', spaces));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        // serde_json escapes what Python's json does (quotes, backslash, below U+0020) and nothing else.
        let quoted = Json::from(text).to_string();
        self.pay(quoted.len())?;
        for c in quoted.chars() {
            if self.ascii && !c.is_ascii() {
                let mut units = [0; 2];
                self.out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            } else {
                self.out.push(c);
            }
        }
        Ok(())
    }
}

/// What is neither list nor map.
fn scalar(value: &Value) -> Result<Json, Error> {
    serde_json::to_value(value).map_err(|e| invalid(format!("tojson: {e}")))
}

fn key_text(key: &Value) -> Result<String, Error> {
    if matches!(key.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Err(invalid("tojson of a map with a list or a map as a key"));
    }
    Ok(match scalar(key)? {
        Json::String(text) => text,
        Json::Number(number) if number.is_f64() => python_float(number.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    })
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
                return Err(invalid(format!("strftime_now does not know %{directive}")));
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
