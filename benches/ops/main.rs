//! Each operation on a GPU at the shapes of Qwen3-VL 8B, 4B and 2B, beside cuBLASLt: `ops/mod.rs`.

#[path = "mod.rs"]
mod ops;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match ops::run(&ops::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
