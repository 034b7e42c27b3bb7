//! Draws what the bundled base model is trained on; assets/README.md has the commands.
//!
//! ```text
//! cargo run --release --example base_task -- paper-cells 3000 OUT   single cells of 32 x 32 on gray paper, "What is here?"
//! cargo run --release --example base_task -- cells 6000 OUT         on sheets and car panels
//! cargo run --release --example base_task -- paper 4000 OUT         marks on gray paper, 128 x 96, up to five questions
//! cargo run --release --example base_task -- rising 32000 OUT       the paper becomes a car panel from first to last
//! cargo run --release --example base_task -- hazy 40000 OUT         other pictures, of panels in more or less of a haze
//! ```
//!
//! OUT/train.jsonl has the questions; OUT/which.jsonl of whole pictures only asks which mark it is.

use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use vlm::base::{Error, Result};
use vlm::data::drawn::marks::{Ground, Marked, Turn, picture};
use vlm::data::image::{Rgb, resize, to_png};

/// Pictures are drawn twice as large as the model sees them.
const DRAWN: (usize, usize) = (256, 192);
const SEEN: (usize, usize) = (128, 96);
/// The side of a cell.
const CELL: usize = 32;
/// Where the numbers of hazy pictures begin: no other picture has them.
const HAZY: u64 = 1_000_000;

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
    Error::Usage("wanted paper-cells, cells, paper, rising or hazy, a number of pictures and a folder".into())
}

fn draw(what: &str, n: u64, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    let lines = (0..n).into_par_iter().map(|number| match what {
        "paper" => whole(out, number, Ground::Paper),
        // what is around the marks comes up bit by bit
        "rising" => whole(out, number, Ground::Panel(number as f32 / n as f32)),
        "hazy" => whole(out, HAZY + number, Ground::Haze(0.2 + 0.4 * number as f32 / n as f32)),
        "paper-cells" => cells(out, number, Ground::Paper),
        "cells" => cells(out, number, if number % 3 == 0 { Ground::Sheet } else { Ground::Panel(1.0) }),
        _ => Err(usage()),
    });
    let (all, which): (Vec<String>, Vec<String>) = lines.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    for (name, lines) in [("train.jsonl", all), ("which.jsonl", which)] {
        let file = out.join(name);
        std::fs::write(&file, lines.concat()).map_err(|e| Error::io("write", &file, e))?;
    }
    Ok(())
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

/// A picture with its questions as one conversation, and one that only asks which mark it is.
fn whole(out: &Path, number: u64, on: Ground) -> Result<(String, String)> {
    let name = format!("{number:06}.png");
    let Marked { picture, turns, .. } = seen(number, on);
    save(out, &name, &picture)?;
    let which = turns.iter().filter(|(question, _)| *question == "Which mark?").cloned().collect();
    Ok((conversation(&name, turns), conversation(&name, which)))
}

/// The line of a picture and what is asked about it.
fn conversation(image: &str, turns: Vec<Turn>) -> String {
    let mut messages: Vec<Value> = Vec::new();
    for (question, answer) in turns {
        let text = json!({"type": "text", "text": question});
        let content = match messages.is_empty() {
            true => json!([{"type": "image", "image": image}, text]),
            false => json!([text]),
        };
        messages.extend([json!({"role": "user", "content": content}), json!({"role": "assistant", "content": answer})]);
    }
    format!("{}\n", json!({"messages": messages}))
}

/// Each cell with something in it as a picture of its own, and a tenth of the empty ones.
fn cells(out: &Path, number: u64, on: Ground) -> Result<(String, String)> {
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
        lines += &conversation(&name, vec![("What is here?", word.to_string())]);
    }
    Ok((lines, String::new()))
}
