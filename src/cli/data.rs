//! `vlm data`: datasets.

use crate::base::{Error, Result};
use crate::data::import;
use crate::io::atomic;
use serde_json::{Map, json};
use std::path::{Path, PathBuf};

/// Make datasets of folders of photos
#[derive(Debug, clap::Args)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Import(Import),
}

/// Write a dataset, JSONL, of a folder with a folder of photos per class
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm data import photos --out photos.jsonl --prompt \"Which damage is this?\"")]
struct Import {
    /// The folder; each folder in it is a class
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The dataset to write; image paths in it are relative to its folder
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write conversations that ask this and answer with the class, instead of images with labels
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Replace the file
    #[arg(long)]
    overwrite: bool,
    /// Print the counts as one JSON object
    #[arg(long)]
    json: bool,
}

impl Data {
    pub fn run(&self) -> Result<()> {
        match &self.command {
            Command::Import(c) => c.run(),
        }
    }
}

impl Import {
    fn run(&self) -> Result<()> {
        if self.out.exists() && !self.overwrite {
            return Err(Error::file(&self.out, "is there already; name another file or give --overwrite"));
        }
        let found = import::class_folders(&self.source)?;
        let folder = self.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        let lines = import::lines(&found.photos, self.prompt.as_deref(), folder)?;
        atomic::write_file(&self.out, |out| {
            lines.iter().try_for_each(|line| out.write(line.as_bytes()).and_then(|()| out.write(b"\n")))
        })?;
        for e in &found.left_out {
            eprintln!("vlm: left out: {e}");
        }
        let classes: Vec<(&str, usize)> = found
            .photos
            .chunk_by(|a, b| a.class == b.class)
            .filter_map(|photos| Some((photos.first()?.class.as_str(), photos.len())))
            .collect();
        let (n, left_out) = (found.photos.len(), found.left_out.len());
        if self.json {
            let classes: Map<_, _> = classes.into_iter().map(|(name, n)| (name.to_string(), n.into())).collect();
            let out = self.out.display().to_string();
            return super::print_json(&json!({"out": out, "photos": n, "classes": classes, "left_out": left_out}));
        }
        let counts: Vec<String> = classes.iter().map(|(name, n)| format!("{name} {n}")).collect();
        let out = self.out.display();
        super::print(&format!("{n} photos of {} classes in {out}: {}\n", classes.len(), counts.join(", ")))?;
        match left_out {
            0 => Ok(()),
            n => super::print(&format!("{n} entries were left out\n")),
        }
    }
}
