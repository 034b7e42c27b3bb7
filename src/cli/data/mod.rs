//! `vlm data`: datasets.

mod dedupe;
mod import;
mod show;
mod split;

use crate::base::{Error, Result};
use std::path::Path;

/// Make datasets of photos
#[derive(Debug, clap::Args)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Import(import::Import),
    Show(show::Show),
    Split(Box<split::Split>),
    Dedupe(Box<dedupe::Dedupe>),
}

impl Data {
    pub fn run(&self) -> Result<()> {
        match &self.command {
            Command::Import(c) => c.run(),
            Command::Show(c) => c.run(),
            Command::Split(c) => c.run(),
            Command::Dedupe(c) => c.run(),
        }
    }
}

/// The folder that a file is written into, created.
fn folder_for(file: &Path) -> Result<&Path> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    Ok(folder)
}
