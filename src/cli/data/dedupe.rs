//! `vlm data dedupe`: photos that leak from one set into another.

use crate::base::width::in_line;
use crate::base::{Error, Result, counted};
use crate::cli::compute::Compute;
use crate::cli::interrupt;
use crate::cli::notice::notice;
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::values::pixels;
use crate::cli::{print, print_json};
use crate::data::dataset::OnBad;
use crate::data::whole;
use crate::dedupe::cache::Cache;
use crate::dedupe::calibrate::{Calibration, Plan};
use crate::dedupe::embed::{Embedder, Watch};
use crate::dedupe::leaks::{self, Options, Outcome, Set};
use crate::infer::engine::Engine;
use crate::io::lock::FolderLock;
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::model::Model;
use crate::qwen3vl::processor::read_patch_spec;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Pairs that are shown; the file has all.
const SHOWN: usize = 10;
/// 512 x 512: enough to tell whether two photos show the same.
const MAX_PIXELS: u64 = 1 << 18;
const CACHE: &str = "embeddings.bin";

/// The model whose tower looks, and how.
#[derive(Debug, clap::Args)]
pub struct Tower {
    /// Shrink photos to at most this many pixels before they are compared
    #[arg(long, value_name = "N", default_value_t = MAX_PIXELS, value_parser = pixels, requires = "model")]
    max_pixels: u64,
    /// Where embeddings are kept between runs [default: embeddings.bin in --out]
    #[arg(long, value_name = "FILE", requires = "model")]
    cache: Option<PathBuf>,
    /// Photos that are changed to calibrate the threshold
    #[arg(long, value_name = "N", default_value_t = 100, requires = "model")]
    plant: usize,
    /// The cosine from which on two photos are near-duplicates [default: calibrated on changed copies of the photos]
    #[arg(long, value_name = "X", requires = "model")]
    threshold: Option<f64>,
    #[command(flatten)]
    compute: Compute,
}

/// Find photos that show the same by the model's own vision tower, and clean the sets of what leaks
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: vlm data dedupe --model Qwen3-VL-2B-Instruct split/train.jsonl split/test.jsonl --out clean

A photo of a later set that shows what one of an earlier set shows is left out of the later. Sets named train come
first, then those named val or dev, then the others. Pixels tell that a photo was saved again, made brighter or cropped;
the tower's embeddings tell that two photos show one thing, from a threshold on that means nothing for another model or
other photos: unless one is given, it is calibrated on crops, re-encodes and brightness changes of your own photos.
Precision and recall of both together are said."
)]
pub struct Dedupe {
    /// A checkpoint folder as Hugging Face publishes it
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The datasets, JSONL; of one alone the pairs inside it are listed
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Folder for pairs.jsonl, summary.json and the cleaned sets
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    tower: Tower,
    /// Of photos that show the same within a set, keep only the first
    #[arg(long)]
    within: bool,
    /// Seed of the changes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Leave lines and photos out that cannot be read, and list them
    #[arg(long)]
    skip_bad: bool,
    /// Replace an earlier result in the folder
    #[arg(long)]
    overwrite: bool,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

impl Tower {
    /// The embedder of a model; embeddings are kept in `--cache` or below `out`.
    pub fn open(&self, model: &Path, out: &Path) -> Result<Embedder> {
        let (device, precision) = self.compute.open()?;
        let checkpoint = Checkpoint::open(model)?;
        let spec = read_patch_spec(model)?;
        let most = spec.max_pixels.min(self.max_pixels);
        let spec = spec.limited(None, Some(most))?;
        let engine = Engine::new(Model::load(&checkpoint, None)?, device, precision);
        let cache = Cache::open(&self.cache.clone().unwrap_or_else(|| out.join(CACHE)))?;
        Embedder::new(engine, &checkpoint, spec, cache)
    }

    pub fn options(&self, seed: u64, within: bool, on_bad: OnBad) -> Result<Options> {
        if let Some(x) = self.threshold.filter(|x| !(-1.0..=1.0).contains(x)) {
            return Err(Error::Usage(format!("--threshold {x}: wanted a cosine, from -1 to 1")));
        }
        if self.plant == 0 {
            return Err(Error::Usage("--plant 0: give 1 or more".into()));
        }
        Ok(Options { threshold: self.threshold, plan: Plan { photos: self.plant, seed }, within, on_bad })
    }
}

/// Searches with a progress bar; ends the program where Ctrl-C came, with what was computed in the cache.
pub fn search(sets: &[Set], embedder: &mut Embedder, options: &Options, out: &Path) -> Result<Outcome> {
    interrupt::watch();
    let mut bar = Progress::new("photos");
    let mut done = |n: usize, all: usize| bar.at(n as u64, all as u64);
    let mut watch = Watch { done: &mut done, interrupted: &interrupt::asked };
    let found = leaks::search(sets, embedder, options, out, &mut watch)?;
    drop(bar);
    match found {
        Some(outcome) => Ok(outcome),
        None => interrupt::exit("; the embeddings so far are kept, and the same command goes on from there"),
    }
}

impl Dedupe {
    pub fn run(&self) -> Result<()> {
        let start = Instant::now();
        let on_bad = OnBad::of(self.skip_bad);
        let options = self.tower.options(self.seed, self.within, on_bad)?;
        let taken = [leaks::PAIRS, leaks::SUMMARY].iter().any(|name| self.out.join(name).exists());
        if taken && !self.overwrite {
            return Err(Error::file(&self.out, "holds an earlier result; name another folder or give --overwrite"));
        }
        let sets = leaks::open(&self.files, on_bad)?;
        for file in leaks::files(&sets, self.within, &self.out) {
            output::not_an_input(&file, self.files.iter().map(PathBuf::as_path))?;
            output::free(&file, self.overwrite)?;
        }
        let _lock = FolderLock::create(&self.out)?;
        let out = self.out.canonicalize().map_err(|e| Error::io("use as a folder", &self.out, e))?;
        let mut embedder = self.tower.open(&self.model, &out)?;
        let outcome = search(&sets, &mut embedder, &options, &out)?;
        let skipped = sets.iter().flat_map(|set| &set.data.skipped).chain(&outcome.damaged);
        skipped.for_each(|e| notice(format_args!("left out: {e}")));
        leaks::write(&sets, &outcome, &out)?;
        if self.json {
            let mut summary = leaks::summary(&outcome);
            summary["seconds"] = start.elapsed().as_secs_f64().into();
            return print_json(&summary);
        }
        let mut said = outcome.calibration.as_ref().map_or(String::new(), calibration);
        said += &table(&outcome);
        _ = writeln!(said, "{:.1} s; results in {}", start.elapsed().as_secs_f64(), self.out.display());
        print(&said)
    }
}

/// What the threshold is worth.
pub fn calibration(c: &Calibration) -> String {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let precision = c.precision.map_or("-".into(), percent);
    let kinds: Vec<String> = c.recall_of.iter().map(|(name, x)| format!("{name} {}", percent(*x))).collect();
    let mut said = format!(
        "threshold {:.4}, calibrated on {} changed copies of {} photos, half of them to choose it, half to test it:\n\
         precision {precision}, recall {} ({})\n\n",
        c.threshold,
        c.planted,
        c.photos,
        percent(c.recall),
        kinds.join(", ")
    );
    _ = writeln!(said, "{:>9} {:>10} {:>8}", "threshold", "precision", "recall");
    for p in &c.curve {
        let here = if p.threshold == c.threshold { " *" } else { "" };
        let precision = p.precision.map_or("-".into(), |x| format!("{:.1}", 100.0 * x));
        _ = writeln!(said, "{:>9.4} {precision:>10} {:>8.1}{here}", p.threshold, 100.0 * p.recall);
    }
    if let Some(p) = c.better() {
        let better = [percent(p.precision.unwrap_or(0.0)), percent(p.recall)];
        _ = writeln!(
            said,
            "the half that tests does better with --threshold {}: precision {}, recall {}",
            p.threshold, better[0], better[1]
        );
    }
    said + "\n"
}

/// The pairs, and what goes.
fn table(outcome: &Outcome) -> String {
    let n = outcome.pairs.len();
    let mut said = format!("{} of {}", counted(n, "pair", "pairs"), counted(outcome.photos, "photo", "photos"));
    if outcome.sets.len() > 1 {
        _ = write!(said, ", {} of them across sets", outcome.crossing());
    }
    said += "\n";
    // those across sets are what matters
    let mut pairs: Vec<_> = outcome.pairs.iter().collect();
    pairs.sort_by_key(|p| !p.crosses());
    for p in pairs.into_iter().take(SHOWN) {
        let called = match (&p.a.label, &p.b.label) {
            (Some(a), Some(b)) if a != b => format!("  called {} and {}", in_line(a), in_line(b)),
            _ => String::new(),
        };
        let how = if p.by_pixels { "pixels".into() } else { format!("{:.4}", p.cosine) };
        _ = writeln!(said, "  {how}  {} {}  {} {}{called}", p.a.set, p.a.image, p.b.set, p.b.image);
    }
    if n > SHOWN {
        _ = writeln!(said, "  … ({} has all)", leaks::PAIRS);
    }
    for set in &outcome.sets {
        let all = counted(set.samples, "sample", "samples");
        _ = write!(said, "{}: {} of {all} removed", set.name, set.removed);
        said.extend(whole::left_out(set.skipped).map(|left_out| format!("; {left_out}")));
        said += "\n";
    }
    said
}
