//! `vlm data import`: a dataset of other people's shapes.

use crate::base::width::in_line;
use crate::base::{Result, counted};
use crate::cli::notice::notice;
use crate::cli::{output, print, print_json};
use crate::data::import::{self, Options};
use crate::io::atomic;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Write a dataset, JSONL, of a folder with a folder of photos per class, a CSV file or COCO annotations
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm data import photos --out photos.jsonl --prompt \"Which damage is this?\"
         vlm data import labels.csv --images photos --out photos.jsonl
         vlm data import annotations.json --images train2017 --majority --out photos.jsonl

Relative paths in a CSV or COCO file start from --images and stay inside it; one that leads out by .. is refused,
one that begins with / is taken as it stands.")]
pub struct Import {
    /// A folder, each folder in it a class; a CSV file with the columns image and label; or COCO annotations (.json):
    /// photos whose annotations are all of one category
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The dataset to write; image paths in it are relative to its folder
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write conversations that ask this and answer with the class, instead of images with labels
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Where the photos of a CSV or COCO file lie [default: its folder]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The columns of a CSV file with image and label [default: image,label]
    #[arg(long, value_name = "IMAGE,LABEL", value_parser = columns)]
    columns: Option<[String; 2]>,
    /// COCO: a photo of several categories is of that with the largest area, instead of being left out
    #[arg(long)]
    majority: bool,
    /// Leave wrong entries out, and list them
    #[arg(long)]
    skip_bad: bool,
    /// Replace the file
    #[arg(long)]
    overwrite: bool,
    /// Print the counts as one JSON object
    #[arg(long)]
    json: bool,
}

impl Import {
    pub fn run(&self) -> Result<()> {
        output::free(&self.out, self.overwrite)?;
        let options = Options {
            images: self.images.clone(),
            columns: self.columns.clone(),
            majority: self.majority,
            skip_bad: self.skip_bad,
        };
        let found = import::import(&self.source, &options)?;
        // beside the class folders, and in one of them, there is room for the dataset
        let source = Some(self.source.as_path()).filter(|source| source.is_file());
        output::not_an_input(
            &self.out,
            source.into_iter().chain(found.photos.iter().map(|photo| photo.path.as_path())),
        )?;
        let lines = import::lines(&found.photos, self.prompt.as_deref(), super::folder_for(&self.out)?)?;
        atomic::write_file(&self.out, |out| {
            lines.iter().try_for_each(|line| out.write(line.as_bytes()).and_then(|()| out.write(b"\n")))
        })?;
        for e in &found.left_out {
            notice(format_args!("left out: {e}"));
        }
        for e in &found.bad {
            notice(format_args!("left out, wrong: {e}"));
        }
        let mut classes: BTreeMap<&str, usize> = BTreeMap::new();
        found.photos.iter().for_each(|photo| *classes.entry(&photo.class).or_default() += 1);
        let (n, left_out, bad) = (found.photos.len(), found.left_out.len(), found.bad.len());
        if self.json {
            let classes: Map<_, _> = classes.into_iter().map(|(name, n)| (name.to_string(), n.into())).collect();
            let out = self.out.display().to_string();
            return print_json(&json!({"out": out, "photos": n, "classes": classes, "left_out": left_out, "bad": bad}));
        }
        let counts: Vec<String> = classes.iter().map(|(name, n)| format!("{} {n}", in_line(name))).collect();
        let out = self.out.display();
        let (photos, of) = (counted(n, "photo", "photos"), counted(classes.len(), "class", "classes"));
        print(&format!("{photos} of {of} in {out}: {}\n", counts.join(", ")))?;
        match (left_out, bad) {
            (0, 0) => Ok(()),
            (n, 0) => print(&format!("left out: {n}\n")),
            (n, bad) => print(&format!("left out: {n}, and {}\n", counted(bad, "that is wrong", "that are wrong"))),
        }
    }
}

fn columns(text: &str) -> Result<[String; 2], String> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_string()).collect();
    let two = <[String; 2]>::try_from(names).ok().filter(|names| names.iter().all(|n| !n.is_empty()));
    two.ok_or_else(|| "wanted two names, such as filename,class".into())
}
