//! The command line: arguments, printing, progress, exit codes; a file per subcommand.
//!
//! Floor 9: may use everything; the only room that writes to stdout and stderr. Start at [`main`], then [`generate`].

mod assets;
pub mod bench;
mod classes;
mod compare;
mod compute;
mod curve;
mod data;
mod demo;
mod doctor;
mod dump;
mod endpoint;
mod eval;
mod generate;
mod init;
mod inspect;
mod interrupt;
mod itself;
mod merge;
mod model;
mod notice;
mod output;
mod preprocess;
mod progress;
mod report;
mod shares;
mod sweep;
mod table;
pub mod train;
mod values;
mod verify;

use crate::base::Result;
use crate::base::width::visible;
use clap::Parser;
use notice::notice;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "vlm", version, about = "Qwen3-VL: make datasets of photos, fine-tune it on them, score it, ask it.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Demo(demo::Demo),
    Generate(generate::Generate),
    Eval(Box<eval::Eval>),
    Compare(compare::Compare),
    Report(report::Report),
    Merge(merge::Merge),
    Train(Box<train::Train>),
    Preprocess(preprocess::Preprocess),
    Dump(dump::Dump),
    Verify(verify::Verify),
    Data(data::Data),
    Curve(curve::CurveCommand),
    Sweep(sweep::SweepCommand),
    Init(init::Init),
    Inspect(inspect::Inspect),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
}

impl Command {
    fn run(&self) -> Result<()> {
        match self {
            Command::Demo(c) => c.run(),
            Command::Generate(c) => c.run(),
            Command::Eval(c) => c.run(),
            Command::Compare(c) => c.run(),
            Command::Report(c) => c.run(),
            Command::Merge(c) => c.run(),
            Command::Train(c) => c.run(),
            Command::Preprocess(c) => c.run(),
            Command::Dump(c) => c.run(),
            Command::Verify(c) => c.run(),
            Command::Data(c) => c.run(),
            Command::Curve(c) => c.run(),
            Command::Sweep(c) => c.run(),
            Command::Init(c) => c.run(),
            Command::Inspect(c) => c.run(),
            Command::Bench(c) => c.run(),
            Command::Doctor(c) => c.run(),
        }
    }
}

/// Runs the program: 0, 1 for a failure with one message on stderr, 2 for wrong usage.
pub fn main() -> ExitCode {
    // what the tokenizers library warns of, src/qwen3vl/tokenizer.rs refuses
    let default = || "warn,tokenizers=off".into();
    let filter = tracing_subscriber::EnvFilter::try_from_env(crate::base::env::LOG).unwrap_or_else(|_| default());
    // what cannot be logged is not worth a panic
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.log_internal_errors(false).init();
    let arguments = Arguments::parse_from(with_numbers_joined(std::env::args_os()));
    match arguments.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            notice(&e);
            ExitCode::from(if e.is_usage() { 2 } else { 1 })
        }
    }
}

/// The words of the command line, a number below 0 joined to the flag before it: `--flag -1e-3` becomes `--flag=-1e-3`. Else
/// it would be a flag that nobody knows, where the flag that it is for has a say about it.
fn with_numbers_joined(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let below_0 = |word: &str| {
        let number = word.strip_prefix('-').unwrap_or_default();
        number.starts_with(|c: char| c.is_ascii_digit() || c == '.') || number.parse::<f64>().is_ok()
    };
    let takes_one = |flag: &str| flag.len() > 2 && flag.starts_with("--") && !flag.contains('=');
    let mut joined: Vec<OsString> = Vec::new();
    for word in words {
        match joined.last_mut() {
            Some(flag) if word.to_str().is_some_and(below_0) && flag.to_str().is_some_and(takes_one) => {
                flag.push("=");
                flag.push(word);
            }
            _ => joined.push(word),
        }
    }
    joined
}

/// Writes text for a person to stdout.
fn print(text: &str) -> Result<()> {
    print_bytes(visible(text).as_bytes())
}

/// Writes what a program may read to stdout, to the byte; where a person reads it, as [`print`].
fn print_exact(text: &str) -> Result<()> {
    if std::io::stdout().is_terminal() { print(text) } else { print_bytes(text.as_bytes()) }
}

/// Writes to stdout. A reader that has gone away (`vlm inspect | head`) is no failure.
fn print_bytes(bytes: &[u8]) -> Result<()> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(crate::base::Error::io("write to", "stdout", e)),
        _ => Ok(()),
    }
}

/// One JSON object on stdout.
fn print_json(value: &serde_json::Value) -> Result<()> {
    print_exact(&format!("{value}\n"))
}
