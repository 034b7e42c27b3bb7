//! A table of photos and labels: a header with the columns `image` and `label`, then a row a photo.
//!
//! As spreadsheets write it: separated by commas, semicolons or tabs (the header says which), values with commas in
//! quotes, with or without a byte order mark, UTF-8. Spaces around a value do not count; other columns are not used.

use super::place::place;
use super::{Imported, Named, Options, Photo, Place, images_folder, take};
use crate::base::{Error, Result, counted, input};
use crate::data::label::composed;
use std::path::Path;

/// Reads the table `file`. Errors: unreadable, empty, UTF-16, no such columns, a header alone.
pub fn table(file: &Path, options: &Options) -> Result<Imported> {
    let text = input::read_unmarked(file)?;
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return Err(Error::file(file, "is UTF-16; save it as CSV UTF-8"));
    }
    if text.trim_ascii().is_empty() {
        return Err(Error::file(file, "is empty; wanted a header image,label and a row a photo"));
    }
    let first = text.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let delimiter = [b',', b';', b'\t'].into_iter().max_by_key(|d| {
        // of equals the last wins, and a comma is to
        (first.iter().filter(|byte| *byte == d).count(), *d == b',')
    });
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(delimiter.unwrap_or(b','))
        .flexible(true)
        .trim(::csv::Trim::All)
        .from_reader(&text[..]);
    let unread = |e: ::csv::Error| {
        let line = e.position().map_or(1, |p| p.line() as usize);
        Error::line(file, line.max(1), format!("cannot be read as CSV: {e}"))
    };
    let header = reader.byte_headers().map_err(unread)?.clone();
    let names: Vec<String> = header.iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect();
    let [image, label] = options.columns.clone().unwrap_or(["image".into(), "label".into()]);
    let column = |wanted: &str| {
        let mut at = names.iter().enumerate().filter(|(_, name)| **name == wanted.to_lowercase()).map(|(i, _)| i);
        match (at.next(), at.next()) {
            (Some(at), None) => Ok(at),
            (Some(_), Some(_)) => Err(Error::line(file, 1, format!("has two columns {wanted}; rename one"))),
            (None, _) => Err(Error::line(
                file,
                1,
                format!(
                    "wanted a header with the columns {image} and {label}, found {}; --columns IMAGE,LABEL names others",
                    names.join(", ")
                ),
            )),
        }
    };
    let columns = (column(&image)?, column(&label)?);
    let root = images_folder(file, options.images.as_deref())?;
    let (mut found, mut named) = (Imported::default(), Vec::new());
    let mut record = ::csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(unread)? {
        let line = record.position().map_or(0, |p| p.line() as usize);
        match row(&record, header.len(), columns, &root) {
            Ok(photo) => named.push(Named { place: Place::Line(line), photo }),
            Err(reason) => found.bad.push(Error::line(file, line, reason)),
        }
    }
    if named.is_empty() && found.bad.is_empty() {
        return Err(Error::file(file, "has a header and no rows"));
    }
    take(file, named, &mut found);
    Ok(found)
}

fn row(
    record: &::csv::ByteRecord,
    wanted: usize,
    (image, label): (usize, usize),
    root: &Path,
) -> Result<Photo, String> {
    if record.len() != wanted {
        return Err(format!(
            "has {} where the header has {wanted}; a value with a comma has to stand in quotes",
            counted(record.len(), "value", "values")
        ));
    }
    let value = |at: usize| {
        let bytes = record.get(at).unwrap_or_default();
        let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8; save the file as CSV UTF-8".to_string())?;
        match text.contains('\n') {
            true => Err("a value goes over several lines: is a quote not closed?".to_string()),
            false => Ok(text),
        }
    };
    let class = value(label)?;
    if class.is_empty() {
        return Err("the label is empty".into());
    }
    Ok(Photo { path: place(value(image)?, root)?, class: composed(class) })
}
