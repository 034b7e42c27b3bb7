//! `vlm data split`: a dataset in parts.

use super::dedupe::{self, Tower};
use crate::base::width::{left, shortened};
use crate::base::{Error, Result, counted};
use crate::cli::classes::Classes;
use crate::cli::notice::{notice, plain};
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::{print, print_json};
use crate::data::alike;
use crate::data::dataset::{OnBad, Sample, read_dataset};
use crate::data::look::{self, Look};
use crate::data::messages::ImageSource;
use crate::data::pairs::read_pairs;
use crate::data::rewrite::Lines;
use crate::data::split::{Amount, Item, Part, Sizes, split};
use crate::data::whole;
use crate::dedupe::leaks;
use crate::io::atomic;
use crate::io::lock::FolderLock;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Classes that a notice names, and columns for each.
const NAMED: usize = 5;
const NAME: usize = 40;

/// Cut a dataset into train, validation and test: each class in proportion, photos that look the same on one side
#[derive(Debug, clap::Args)]
#[command(mut_arg("device", |flag| flag.requires("model")), mut_arg("precision", |flag| flag.requires("model")))]
#[command(after_help = "Example: vlm data split photos.jsonl --out split --train 319 --test 98
         vlm data split photos.jsonl --out split --validation 0.1 --test 0.2

Where a photo goes follows from its content and the seed: a set that has grown keeps nearly all photos where they were.
Photos that look the same at a glance are kept together; --pairs and --model keep those together that vlm data dedupe finds.")]
pub struct Split {
    /// The dataset, JSONL
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder for train.jsonl, validation.jsonl and test.jsonl
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A share (0.8) or a number of samples [default: what is left]
    #[arg(long, value_name = "N|X", value_parser = amount)]
    train: Option<Amount>,
    /// A share or a number of samples [default: 0; 0.1 where no amount is given at all]
    #[arg(long, value_name = "N|X", value_parser = amount)]
    validation: Option<Amount>,
    /// A share or a number of samples [default: 0; 0.1 where no amount is given at all]
    #[arg(long, value_name = "N|X", value_parser = amount)]
    test: Option<Amount>,
    /// The same seed gives the same split
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Near-duplicates, as vlm data dedupe writes them
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// Find near-duplicates by this checkpoint's vision tower too, as vlm data dedupe does
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    tower: Tower,
    /// Leave lines and photos out that cannot be read, and list them
    #[arg(long)]
    skip_bad: bool,
    /// Replace an earlier split in the folder
    #[arg(long)]
    overwrite: bool,
    /// Print the counts as one JSON object
    #[arg(long)]
    json: bool,
}

/// A share has a point or a per cent sign, a number has none.
fn amount(text: &str) -> Result<Amount, String> {
    let wrong = || "wanted a share such as 0.2 or 20%, or a whole number of samples".to_string();
    if let Ok(count) = text.parse() {
        return Ok(Amount::Count(count));
    }
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse().map(|x: f64| x / 100.0),
        None => text.parse(),
    };
    share.ok().filter(|share| (0.0..=1.0).contains(share)).map(Amount::Share).ok_or_else(wrong)
}

impl Split {
    pub fn run(&self) -> Result<()> {
        self.free()?;
        let read = [Some(&self.file), self.pairs.as_ref()];
        for part in Part::ALL {
            output::not_an_input(&self.file_of(part), read.into_iter().flatten().map(PathBuf::as_path))?;
        }
        let on_bad = OnBad::of(self.skip_bad);
        // the question stays as it is in the lines
        let set = read_dataset(&self.file, Some(""), on_bad)?;
        let lines = Lines::read(&self.file)?;
        let mut bar = Progress::new("photos");
        let mut done = |n: usize, all: usize| {
            bar.at(n as u64, all as u64);
            Ok(())
        };
        let look = |source: &ImageSource| look::look(source, None);
        let (samples, damaged) = whole::seen(&self.file, set.samples, on_bad, look, &mut done)?;
        drop(bar);
        let left_out: Vec<Error> = set.skipped.into_iter().chain(damaged).collect();
        left_out.iter().for_each(|e| notice(format_args!("left out: {e}")));
        let groups = self.groups(&samples)?;
        let items: Vec<Item> = samples
            .iter()
            .zip(&groups)
            .map(|((sample, looks), group)| Item {
                label: sample.label.as_deref(),
                content: content(sample, looks),
                group: *group,
            })
            .collect();
        let sizes = Sizes { train: self.train, validation: self.validation, test: self.test };
        let parts = split(&items, &sizes, self.seed)?;

        let _lock = FolderLock::create(&self.out)?;
        // again: another may have written a split since
        self.free()?;
        let to = self.out.canonicalize().map_err(|e| Error::io("use as a folder", &self.out, e))?;
        let mut files = Vec::new();
        let mut counts: BTreeMap<Option<&str>, [usize; 3]> = BTreeMap::new();
        for part in Part::ALL {
            let chosen: Vec<&Sample> =
                samples.iter().zip(&parts).filter(|(_, p)| **p == Some(part)).map(|((sample, _), _)| sample).collect();
            chosen.iter().for_each(|s| counts.entry(s.label.as_deref()).or_default()[part as usize] += 1);
            let text = chosen.iter().map(|s| Ok(lines.moved(s.line, &to)? + "\n")).collect::<Result<String>>()?;
            files.push((self.file_of(part), (!chosen.is_empty()).then_some(text)));
        }
        // a part of an earlier split beside the others of this one could hold what they do
        atomic::write_together(&files)?;
        let mut members: HashMap<usize, usize> = HashMap::new();
        groups.iter().for_each(|g| *members.entry(*g).or_default() += 1);
        let together: Vec<usize> = members.into_values().filter(|n| *n > 1).collect();
        let unused = parts.iter().filter(|p| p.is_none()).count();
        self.say(&counts, &together, unused, left_out.len())
    }

    fn file_of(&self, part: Part) -> PathBuf {
        self.out.join(format!("{}.jsonl", part.name()))
    }

    /// Errors: the folder holds a split, and nobody said `--overwrite`.
    fn free(&self) -> Result<()> {
        match !self.overwrite && Part::ALL.iter().any(|part| self.file_of(*part).exists()) {
            true => Err(Error::file(&self.out, "holds a split already; name another folder or give --overwrite")),
            false => Ok(()),
        }
    }

    /// The group of each sample: photos of the same bytes, of the same look, or of a pair.
    fn groups(&self, samples: &[(Sample, Vec<Look>)]) -> Result<Vec<usize>> {
        let photos: Vec<(usize, &Look)> =
            samples.iter().enumerate().flat_map(|(i, (_, looks))| looks.iter().map(move |look| (i, look))).collect();
        let prints: Vec<_> = photos.iter().map(|(_, look)| &look.print).collect();
        let mut pairs: Vec<(usize, usize)> =
            alike::pairs(&prints).into_iter().map(|(a, b)| (photos[a].0, photos[b].0)).collect();
        let mut by_hash: HashMap<[u8; 32], usize> = HashMap::new();
        for (i, look) in &photos {
            pairs.extend(by_hash.insert(look.sha256, *i).map(|other| (other, *i)));
        }
        if let Some(model) = &self.model {
            pairs.extend(self.found(model, samples)?);
        }
        if let Some(file) = &self.pairs {
            let folder = file.parent().unwrap_or(Path::new(""));
            let mut by_path: HashMap<PathBuf, usize> = HashMap::new();
            for (i, (sample, _)) in samples.iter().enumerate() {
                for path in sample.images().filter_map(ImageSource::file) {
                    by_path.insert(path.canonicalize().map_err(|e| Error::io("find", path, e))?, i);
                }
            }
            let at = |image: &str| folder.join(image).canonicalize().ok().and_then(|path| by_path.get(&path).copied());
            let read = read_pairs(file)?;
            let known: Vec<_> = read.iter().filter_map(|p| Some((at(&p.a.image)?, at(&p.b.image)?))).collect();
            if known.is_empty() && !read.is_empty() {
                return Err(Error::file(file, format!("none of its pairs is of photos in {}", self.file.display())));
            }
            pairs.extend(known);
        }
        Ok(alike::groups(samples.len(), pairs))
    }

    /// Pairs of samples by the tower of `model`.
    fn found(&self, model: &Path, samples: &[(Sample, Vec<Look>)]) -> Result<Vec<(usize, usize)>> {
        let on_bad = OnBad::of(self.skip_bad);
        let options = self.tower.options(self.seed, false, on_bad)?;
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("create", &self.out, e))?;
        let out = self.out.canonicalize().map_err(|e| Error::io("use as a folder", &self.out, e))?;
        let mut embedder = self.tower.open(model, &out)?;
        let outcome =
            dedupe::search(&leaks::open(std::slice::from_ref(&self.file), on_bad)?, &mut embedder, &options, &out)?;
        outcome.calibration.iter().for_each(|c| plain(dedupe::calibration(c).trim_end()));
        let by_line: HashMap<usize, usize> = samples.iter().enumerate().map(|(i, (s, _))| (s.line, i)).collect();
        let known = |line: usize| by_line.get(&line).copied();
        Ok(outcome.pairs.iter().filter_map(|p| Some((known(p.a.line)?, known(p.b.line)?))).collect())
    }

    fn say(
        &self,
        counts: &BTreeMap<Option<&str>, [usize; 3]>,
        together: &[usize],
        unused: usize,
        left_out: usize,
    ) -> Result<()> {
        let of = |part: Part| counts.values().map(|c| c[part as usize]).sum::<usize>();
        let (groups, grouped) = (together.len(), together.iter().sum::<usize>());
        if self.json {
            let mut said = Map::new();
            for part in Part::ALL {
                let classes: Map<String, Value> =
                    counts.iter().map(|(l, c)| (l.unwrap_or("").to_string(), c[part as usize].into())).collect();
                said.insert(part.name().into(), json!({"samples": of(part), "classes": classes}));
            }
            said.insert("groups".into(), json!({"groups": groups, "samples": grouped}));
            said.insert("unused".into(), unused.into());
            said.insert("left_out".into(), left_out.into());
            said.insert("out".into(), self.out.display().to_string().into());
            return print_json(&said.into());
        }
        let name = |label: &Option<&'_ str>| label.unwrap_or("(none)").to_string();
        let classes = Classes::new(counts.keys().map(name));
        let head = left("", classes.width());
        let mut said = format!("{head} {:>10} {:>10} {:>10}\n", "train", "validation", "test");
        let mut row = |name: String, c: [usize; 3]| {
            _ = writeln!(said, "{name} {:>10} {:>10} {:>10}", c[0], c[1], c[2]);
        };
        counts.iter().for_each(|(label, c)| row(classes.cell(&name(label)), *c));
        row(left("all", classes.width()), Part::ALL.map(of));
        said += &classes.legend();
        if groups > 0 {
            _ = writeln!(
                said,
                "groups of photos that look the same, each on one side: {groups}, of {grouped} photos in all"
            );
        }
        if unused > 0 {
            let samples = counted(unused, "sample is", "samples are");
            _ = writeln!(said, "{samples} in no part");
        }
        said.extend(whole::left_out(left_out).map(|left_out| left_out + "\n"));
        _ = writeln!(said, "in {}", self.out.display());
        print(&said)?;
        for (label, c) in counts.iter().filter(|(_, c)| c[Part::Test as usize] == 0 && of(Part::Test) > 0) {
            notice(format_args!("no photo of {:?} is in test ({} in train)", label.unwrap_or(""), c[0]));
        }
        let unlearnt = counts.iter().filter(|(_, c)| c[Part::Train as usize] == 0 && of(Part::Train) > 0);
        let unlearnt = unlearnt.filter(|(_, c)| c[Part::Validation as usize] + c[Part::Test as usize] > 0);
        let mut unlearnt: Vec<String> =
            unlearnt.filter_map(|(label, _)| Some(format!("\"{}\"", shortened((*label)?, NAME)))).collect();
        if !unlearnt.is_empty() {
            let classes = counted(unlearnt.len(), "class is", "classes are");
            let them = if unlearnt.len() == 1 { "it" } else { "them" };
            let more = unlearnt.len().saturating_sub(NAMED);
            unlearnt.truncate(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            notice(format_args!(
                "{classes} in validation or test and not in train, where no model can learn {them}: {}{more}",
                unlearnt.join(", ")
            ));
        }
        Ok(())
    }
}

/// A hash of a sample's photos, or of its text where it has none: the same wherever the files lie.
fn content(sample: &Sample, looks: &[Look]) -> [u8; 32] {
    match looks {
        [] => look::sha256(format!("{:?}", sample.conversation).as_bytes()),
        [one] => one.sha256,
        _ => look::sha256(&looks.iter().flat_map(|look| look.sha256).collect::<Vec<u8>>()),
    }
}
