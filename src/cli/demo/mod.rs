//! `vlm demo`: the whole recipe on photos that it draws and a small model that is part of the program.
//!
//! Each step is a command that a user could type in the demo's folder; [`recipe`] lists them, this file runs them and
//! says what came out.

mod recipe;

use super::compute::Compute;
use super::itself;
use super::output::{self, Holds};
use super::progress::Progress;
use super::{assets, interrupt, print, table};
use crate::base::{Error, Result, counted};
use crate::classify::colour;
use crate::classify::records::Evaluation;
use crate::data::dataset::{OnBad, read_dataset};
use crate::data::drawn::photos::{Planted, Set, write_set};
use crate::data::pairs::read_pairs;
use crate::dedupe::leaks::PAIRS;
use crate::io::atomic;
use crate::io::lock::FolderLock;
use crate::train::settings::DeviceChoice;
use recipe::{BASE, Part, RECIPE};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

/// Marks a folder as the demo's own, so that --overwrite deletes nothing else.
const MARK: &str = "demo.json";

/// What training is told.
const SETTINGS: &str = include_str!("../../../recipes/demo.toml");

/// Fine-tune a small model on drawn photos of damaged cars, from folders of photos to a page: no GPU, no download
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm demo --out demo

The base model is part of the program. Every number is computed in the run.")]
pub struct Demo {
    /// Folder for photos, model, runs, scores and the page
    #[arg(long, value_name = "DIR", default_value = "demo")]
    out: PathBuf,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// Photos to train on
    #[arg(long, value_name = "N", default_value_t = 1500, value_parser = clap::value_parser!(u32).range(30..=9999))]
    photos: u32,
    /// Photos to score, some of them copies of photos to train on, which the search for leaks has to find
    #[arg(long, value_name = "N", default_value_t = 240, value_parser = clap::value_parser!(u32).range(12..=9999))]
    test: u32,
    /// Other seeds draw other photos
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Replace what an earlier demo left in the folder
    #[arg(long)]
    overwrite: bool,
}

impl Demo {
    pub fn run(&self) -> Result<()> {
        let start = Instant::now();
        Compute::check(self.device)?;
        interrupt::watch_beside_commands();
        let _lock = self.make_folder()?;
        let planted = self.draw()?;
        for part in RECIPE {
            self.part(part)?;
        }
        self.summary(&planted, start)
    }

    /// An empty folder with the base model in it, and its lock.
    fn make_folder(&self) -> Result<FolderLock> {
        let out = &self.out;
        let mut lock = FolderLock::create(out)?;
        match (output::holds(out, MARK, "demo")?, self.overwrite) {
            (Holds::Nothing, _) => (),
            (Holds::Ours, true) => {
                std::fs::remove_dir_all(out).map_err(|e| Error::io("delete", out, e))?;
                lock = FolderLock::create(out)?;
            }
            (Holds::Ours, false) => {
                return Err(Error::file(
                    out,
                    "holds an earlier demo; name another folder with --out or give --overwrite",
                ));
            }
        }
        let settings = serde_json::json!({"photos": self.photos, "test": self.test, "seed": self.seed});
        output::mark(out, MARK, &settings)?;
        atomic::write_file(&out.join("demo.toml"), |file| file.write(SETTINGS.as_bytes()))?;
        assets::write_base_model(&out.join(BASE))?;
        Ok(lock)
    }

    fn draw(&self) -> Result<Vec<Planted>> {
        let planted = self.test as usize / 8;
        let set = Set {
            train: self.photos as usize,
            test: self.test as usize - planted,
            planted,
            width: 256,
            height: 192,
            seed: self.seed,
        };
        heading("Photos")?;
        let mut bar = Progress::new("photos drawn");
        let found = write_set(&self.out.join("photos"), &set, &mut |done, all| {
            if interrupt::asked() {
                interrupt::exit(" while photos were drawn; the same command with --overwrite begins again");
            }
            bar.at(done, all);
        })?;
        drop(bar);
        print(&format!(
            "drew {} photos of cracks, dents and scratches to train on and {} to score; {planted} of these are crops, \
             re-encodes\nand brighter or darker copies of photos to train on: leaks, as in many a real set\n",
            set.train, self.test
        ))?;
        Ok(found)
    }

    fn part(&self, part: &Part) -> Result<()> {
        heading(part.heading)?;
        for line in part.commands {
            let mut line = line.replace("PART", &(self.photos / 4).to_string());
            let mut words = recipe::words(&line);
            if self.device != DeviceChoice::Auto && recipe::computes(&words) {
                _ = write!(line, " --device {}", self.device);
                words.extend(["--device".into(), self.device.to_string()]);
            }
            print(&format!("$ vlm {line}\n"))?;
            let stopped = format!(
                "; vlm demo does not go on, and begins again with --overwrite; --resume is for the command above, typed in {}",
                self.out.display()
            );
            itself::run(&words, Some(&self.out), &stopped)?;
        }
        Ok(())
    }

    /// What came out of it all, read from the files that the commands left.
    fn summary(&self, planted: &[Planted], start: Instant) -> Result<()> {
        heading("What came out")?;
        let read = |name: &str| Evaluation::read(&self.out.join("scores").join(name));
        let (base, part, tuned, merged) = (read("base")?, read("part")?, read("tuned")?, read("merged")?);
        let (found, crossing) = self.found(planted)?;
        let samples =
            |name: &str| read_dataset(&self.out.join("clean").join(name), None, OnBad::Fail).map(|d| d.samples);
        let (right, n) = colour::probe(&samples("train.jsonl")?, &samples("test.jsonl")?)?;
        let answers = |e: &Evaluation| e.records.iter().map(|r| r.prediction.clone()).collect::<Vec<_>>();
        let same = match answers(&tuned) == answers(&merged) {
            true => "the same answers",
            false => "other answers than the adapter's",
        };
        let colour = 100.0 * right as f64 / n.max(1) as f64;
        let pairs = counted(crossing, "pair", "pairs");
        let pairs = format!("{}; found {found} of them, in {pairs} across the sets", planted.len());
        let rows = [
            ("leaks planted", pairs),
            ("mean colour alone", format!("{colour:.1} % ({right} of {n})")),
            ("base model", table::accuracy(&base.metrics)),
            ("tuned on a part", table::accuracy(&part.metrics)),
            ("tuned on all", table::accuracy(&tuned.metrics)),
            ("merged into the weights", format!("{}, {same}", table::accuracy(&merged.metrics))),
        ];
        let mut said: String = rows.iter().map(|(name, result)| format!("{name:<25}{result}\n")).collect();
        for (name, file) in [("adapter", "run"), ("merged model", "merged"), ("page", "report.html")] {
            _ = writeln!(said, "{name:<25}{}", self.out.join(file).display());
        }
        _ = writeln!(said, "{:.0} s in all", start.elapsed().as_secs_f64());
        print(&said)
    }

    /// How many planted pairs were found, and how many pairs across the sets there are.
    fn found(&self, planted: &[Planted]) -> Result<(usize, usize)> {
        let pairs = read_pairs(&self.out.join("clean").join(PAIRS))?;
        let crossing: BTreeSet<(&str, &str)> =
            pairs.iter().filter(|p| p.crosses()).map(|p| (p.a.image.as_str(), p.b.image.as_str())).collect();
        // as seen from the folder of the pairs
        let image = |path: &str| format!("../photos/{path}");
        let is_found = |p: &&Planted| crossing.contains(&(image(&p.train).as_str(), image(&p.test).as_str()));
        Ok((planted.iter().filter(is_found).count(), crossing.len()))
    }
}

fn heading(text: &str) -> Result<()> {
    print(&format!("\n== {text}\n"))
}
