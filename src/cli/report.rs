//! `vlm report`: one page of runs and evaluations.

use super::notice::notice;
use super::output;
use super::progress::Progress;
use crate::base::{Result, counted, error::first_of};
use crate::report;
use serde_json::json;
use std::path::PathBuf;

/// Write one self-contained HTML page: scores, confusion matrices, loss curves, and every photo to search and filter
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm report scores/base scores/tuned runs/cars --out report.html")]
pub struct Report {
    /// Folders of vlm eval (the first is before, the last is after), vlm train and vlm compare, or folders of
    /// these (untrained first, then as they were written); files of pairs (vlm data dedupe) and of a curve (vlm curve --json)
    #[arg(value_name = "DIR", required = true)]
    sources: Vec<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The page's heading
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Replace the file
    #[arg(long)]
    overwrite: bool,
    /// Print what was written as one JSON object
    #[arg(long)]
    json: bool,
}

impl Report {
    pub fn run(&self) -> Result<()> {
        output::free(&self.out, self.overwrite)?;
        // a page may lie in one of the folders that it shows
        let is_page = self.out.extension().is_some_and(|e| e == "html" || e == "htm");
        let read = self.sources.iter().filter(|source| !(is_page && source.is_dir()));
        output::not_an_input(&self.out, read.map(PathBuf::as_path))?;
        let page = report::Report::read(&self.sources)?;
        output::not_an_input(&self.out, page.shown().iter().map(PathBuf::as_path))?;
        let mut bar = Progress::new("photos");
        let mut at = |done: usize, all: usize| bar.at(done as u64, all as u64);
        let built = page.write(self.title.as_deref(), &self.out, &mut at)?;
        drop(bar);
        if !built.missing.is_empty() {
            let photos = counted(built.missing.len(), "photo is", "photos are");
            notice(format_args!("{photos} shown without a picture: {}", first_of(&built.missing)));
        }
        built.notes.iter().for_each(notice);
        let out = self.out.display().to_string();
        if self.json {
            return super::print_json(&json!({
                "out": out, "evaluations": built.evaluations, "runs": built.runs, "photos": built.photos,
                "missing": built.missing.len(), "bytes": built.bytes, "seconds": built.seconds,
            }));
        }
        super::print(&format!(
            "{out}: photos {}, evaluations {}, runs {}; {:.2} MB in {:.1} s\n",
            built.photos,
            built.evaluations,
            built.runs,
            built.bytes as f64 / 1e6,
            built.seconds
        ))
    }
}
