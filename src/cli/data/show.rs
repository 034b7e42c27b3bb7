//! `vlm data show`: what is in a dataset.

use crate::base::width::{in_line, sentence};
use crate::base::{Error, Result, counted};
use crate::cli::classes::Classes;
use crate::cli::model::PixelFlags;
use crate::cli::progress::Progress;
use crate::cli::{output, print, print_json};
use crate::data::census::{Census, Histogram, SheetSize, census};
use crate::data::dataset::{OnBad, read_dataset};
use crate::data::image::{self, PatchSpec};
use crate::data::messages::ImageSource;
use crate::data::sheet;
use crate::io::atomic;
use crate::qwen3vl::processor::read_patch_spec;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;

/// Lines of a list that are shown; --json has all.
const SHOWN: usize = 10;
const BAR: usize = 30;

/// Say what is in a dataset: classes, sizes, tokens per photo, and everything that looks odd
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm data show photos.jsonl --sheet sheet.png")]
pub struct Show {
    /// The dataset, JSONL
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Count tokens as this checkpoint cuts photos into patches [default: as the published Qwen3-VL models do]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelFlags,
    /// Write a contact sheet: photos of each class on one picture, PNG
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Photos of a class on the sheet
    #[arg(long, value_name = "N", default_value_t = 16, requires = "sheet")]
    per_class: usize,
    /// Replace the contact sheet
    #[arg(long, requires = "sheet")]
    overwrite: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub fn run(&self) -> Result<()> {
        let spec = self.model.as_ref().map_or_else(|| Ok(PatchSpec::default()), |dir| read_patch_spec(dir))?;
        let spec = spec.limited(self.pixels.min_pixels, self.pixels.max_pixels)?;
        if self.per_class == 0 {
            return Err(Error::Usage("--per-class 0: give 1 or more".into()));
        }
        // the question does not matter here
        let set = read_dataset(&self.file, Some(""), OnBad::Skip)?;
        if let Some(sheet) = &self.sheet {
            let photos = set.samples.iter().flat_map(|s| s.images()).filter_map(ImageSource::file);
            output::free(sheet, self.overwrite)?;
            output::not_an_input(sheet, photos.chain([self.file.as_path()]))?;
        }
        let bar = Mutex::new(Progress::new("photos"));
        let all = set.samples.iter().map(|s| s.images().count()).sum::<usize>() as u64;
        let done = |n: usize| {
            if let Ok(mut bar) = bar.lock() {
                bar.at(n as u64, all);
            }
        };
        let size = self.sheet.as_ref().map(|_| SheetSize { per_class: self.per_class, side: sheet::SIDE });
        let seen = census(&self.file, &set, &spec, size, &done)?;
        drop(bar);
        if let Some(file) = &self.sheet {
            if seen.sheet.is_empty() {
                return Err(Error::file(&self.file, "has no photo with a label to put on a contact sheet"));
            }
            let png = image::to_png(&sheet::contact_sheet(&seen.sheet))?;
            super::folder_for(file)?;
            atomic::write_file(file, |out| out.write(&png))?;
        }
        let stand_ins =
            seen.sheet.iter().enumerate().filter_map(|(i, s)| Some((sheet::stand_in(i, &s.class)?, s.class.clone())));
        let stand_ins: Vec<(String, String)> = stand_ins.collect();
        if self.json {
            let mut value = serde_json::to_value(&seen).map_err(|e| Error::file(&self.file, e.to_string()))?;
            if !stand_ins.is_empty() {
                value["on_sheet"] = stand_ins.into_iter().collect();
            }
            return print_json(&value);
        }
        let mut said = table(&seen);
        if let Some(file) = &self.sheet {
            _ = writeln!(said, "\ncontact sheet in {}", file.display());
            // its font has no such letters
            stand_ins.iter().for_each(|(there, class)| _ = writeln!(said, "  {there} there is {class}"));
        }
        print(&said)
    }
}

/// For a person.
pub fn table(seen: &Census) -> String {
    let mut said = format!(
        "{}, {}, {}\n",
        counted(seen.samples, "sample", "samples"),
        counted(seen.photos, "photo", "photos"),
        counted(seen.classes.len(), "class", "classes")
    );
    let classes = Classes::new(seen.classes.keys());
    let most = seen.classes.values().max().copied().unwrap_or(1);
    said += "\n";
    for (class, n) in &seen.classes {
        let percent = 100.0 * *n as f64 / seen.samples as f64;
        _ = writeln!(said, "{} {n:>7} {percent:>5.1} % {}", classes.cell(class), bar(*n, most));
    }
    said += &classes.legend();
    for (n, what) in [(seen.without_label, "without a label"), (seen.without_photo, "without a photo")] {
        if n > 0 {
            _ = writeln!(said, "{} {what}", counted(n, "sample", "samples"));
        }
    }
    for (name, values) in [("width", &seen.width), ("height", &seen.height), ("tokens per photo", &seen.tokens)] {
        if let Some(values) = values {
            histogram(&mut said, name, values);
        }
    }
    let formats: Vec<String> = seen.formats.iter().map(|(name, n)| format!("{name} {n}")).collect();
    _ = writeln!(said, "\nformats: {}", formats.join(", "));
    list(&mut said, "cannot be read", &seen.unreadable);
    let odd: Vec<String> =
        seen.odd.iter().map(|o| format!("line {}, {}: {}", o.line, o.image, o.what.join("; "))).collect();
    list(&mut said, "odd photos", &odd);
    let same = seen.same.iter().map(|s| {
        let lines: Vec<String> = s.lines.iter().map(usize::to_string).collect();
        let called = match s.labels.len() {
            0 | 1 => String::new(),
            _ => format!(", called {}", s.labels.join(" and ")),
        };
        format!("lines {}: {}{called}", lines.join(", "), s.images.first().map_or("", |i| i))
    });
    list(&mut said, "photos of the same bytes", &same.collect::<Vec<_>>());
    list(&mut said, "labels", &seen.labels);
    said
}

fn histogram(said: &mut String, name: &str, values: &Histogram) {
    _ = writeln!(said, "\n{name}: {} to {}, median {}", values.min, values.max, values.median);
    let most = values.bins.iter().map(|b| b.n).max().unwrap_or(1);
    for bin in values.bins.iter().filter(|_| values.bins.len() > 1) {
        let range = if bin.from == bin.to { bin.from.to_string() } else { format!("{} to {}", bin.from, bin.to) };
        _ = writeln!(said, "{range:>16} {:>7} {}", bin.n, bar(bin.n, most));
    }
}

fn bar(n: usize, most: usize) -> String {
    "#".repeat((n * BAR).div_ceil(most.max(1)))
}

fn list(said: &mut String, name: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    _ = writeln!(said, "\n{name}: {}", lines.len());
    lines.iter().take(SHOWN).for_each(|line| _ = writeln!(said, "  {}", sentence(&in_line(line))));
    if lines.len() > SHOWN {
        _ = writeln!(said, "  … (--json lists all)");
    }
}
