//! Draws what the bundled base model is trained on; assets/README.md has the commands.
//!
//! ```text
//! cargo run --release --example base_task -- cells 12000 OUT     single cells of 32 x 32, "What is here?"
//! cargo run --release --example base_task -- sheets 4000 OUT     marks on plain sheets, 128 x 96
//! cargo run --release --example base_task -- panels 8000 OUT     marks on car panels, 128 x 96
//! ```

use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use vlm::base::{Error, Result};
use vlm::data::drawn::marks::{Ground, Marked, picture};
use vlm::data::image::{Rgb, resize, to_png};

/// Pictures are drawn twice as large as the model sees them.
const DRAWN: (usize, usize) = (256, 192);
const SEEN: (usize, usize) = (128, 96);
/// The side of a cell.
const CELL: usize = 32;

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match &arguments[..] {
        [what, n, out] => n.parse().map_err(|_| usage()).and_then(|n| draw(what, n, Path::new(out))),
        _ => Err(usage()),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("base_task: {e}");
            std::process::ExitCode::from(if e.is_usage() { 2 } else { 1 })
        }
    }
}

fn usage() -> Error {
    Error::Usage("wanted cells, sheets or panels, a number of pictures and a folder".into())
}

fn draw(what: &str, n: u64, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    let lines = (0..n).into_par_iter().map(|number| match what {
        "sheets" => whole(out, number, Ground::Sheet),
        "panels" => whole(out, number, Ground::Panel),
        "cells" => cells(out, number, if number % 3 == 0 { Ground::Sheet } else { Ground::Panel }),
        _ => Err(usage()),
    });
    let lines = lines.collect::<Result<Vec<String>>>()?.concat();
    let file = out.join("train.jsonl");
    std::fs::write(&file, lines).map_err(|e| Error::io("write", &file, e))
}

fn seen(number: u64, on: Ground) -> Marked {
    let mut marked = picture(number, 0, on, DRAWN.0, DRAWN.1);
    marked.picture = resize(&marked.picture, SEEN.1, SEEN.0);
    marked
}

fn save(out: &Path, name: &str, picture: &Rgb) -> Result<()> {
    let path = out.join(name);
    std::fs::write(&path, to_png(picture)?).map_err(|e| Error::io("write", &path, e))
}

/// A picture with its questions, as one conversation.
fn whole(out: &Path, number: u64, on: Ground) -> Result<String> {
    let name = format!("{number:06}.png");
    let Marked { picture, turns, .. } = seen(number, on);
    save(out, &name, &picture)?;
    let mut messages: Vec<Value> = Vec::new();
    for (question, answer) in turns {
        let text = json!({"type": "text", "text": question});
        let content = match messages.is_empty() {
            true => json!([{"type": "image", "image": name}, text]),
            false => json!([text]),
        };
        messages.extend([json!({"role": "user", "content": content}), json!({"role": "assistant", "content": answer})]);
    }
    Ok(format!("{}\n", json!({"messages": messages})))
}

/// Each cell with something in it as a picture of its own, and a tenth of the empty ones.
fn cells(out: &Path, number: u64, on: Ground) -> Result<String> {
    let Marked { picture, cells, .. } = seen(number, on);
    let columns = picture.width / CELL;
    let mut lines = String::new();
    for (at, word) in cells.into_iter().enumerate() {
        if word == "none" && !(number + at as u64).is_multiple_of(10) {
            continue;
        }
        let (left, top) = (at % columns * CELL, at / columns * CELL);
        let rows = picture.pixels.chunks_exact(picture.width * 3).skip(top).take(CELL);
        let pixels = rows.flat_map(|row| &row[left * 3..(left + CELL) * 3]).copied().collect();
        let name = format!("{number:06}-{at:02}.png");
        save(out, &name, &Rgb { width: CELL, height: CELL, pixels })?;
        let content = json!([{"type": "image", "image": name}, {"type": "text", "text": "What is here?"}]);
        let messages = json!([{"role": "user", "content": content}, {"role": "assistant", "content": word}]);
        lines += &format!("{}\n", json!({"messages": messages}));
    }
    Ok(lines)
}
