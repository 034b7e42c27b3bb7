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
use clap::{CommandFactory, FromArgMatches, Parser};
use notice::notice;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "vlm", version, about = "Qwen3-VL: ask it about photos, score it, merge its adapters.")]
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
    let filter = tracing_subscriber::EnvFilter::try_from_env(crate::base::env::LOG).unwrap_or_else(|_| "warn".into());
    // what cannot be logged is not worth a panic
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.log_internal_errors(false).init();
    let given = with_negative_numbers(Arguments::command()).get_matches();
    let arguments = Arguments::from_arg_matches(&given).unwrap_or_else(|e| e.exit());
    match arguments.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            notice(&e);
            ExitCode::from(if e.is_usage() { 2 } else { 1 })
        }
    }
}

/// Takes `--flag -1` as a value of the flag, in every command, so that it is the flag that says what is wrong with it.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let takes_values =
        |a: &clap::Arg| a.get_action().takes_values() && a.get_num_args().is_none_or(|n| n.takes_values());
    let flag = |argument: clap::Arg| match !argument.is_positional() && takes_values(&argument) {
        true => argument.allow_negative_numbers(true),
        false => argument,
    };
    command.mut_args(flag).mut_subcommands(with_negative_numbers)
}

/// Writes to stdout. A reader that has gone away (`vlm inspect | head`) is no failure.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(crate::base::Error::io("write to", "stdout", e)),
        _ => Ok(()),
    }
}

/// One JSON object on stdout.
fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value}\n"))
}
