//! `vlm eval`: the score of a model on a labelled set.

use super::generate::SamplingFlags;
use super::model::{ModelFlags, choice};
use super::progress::Progress;
use crate::base::{Error, Result};
use crate::classify::evaluate::{self, MOST_CHOICES, Method, Prediction};
use crate::classify::metrics::{Metrics, metrics};
use crate::data::dataset::{OnBad, Sample, read_dataset};
use crate::io::atomic;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

/// Score a model on labelled photos: accuracy, a row per class, the confusion matrix
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm eval --model Qwen3-VL-2B-Instruct --data test.jsonl --out runs/base")]
pub struct Eval {
    #[command(flatten)]
    model: ModelFlags,
    /// The labelled set, JSONL
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Folder for predictions.jsonl and summary.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What to ask where the lines only hold an image and a label
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// The answers to score [default: the labels of the set, where they are at most 50]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = choice, conflicts_with = "generate")]
    choices: Vec<String>,
    /// Write answers, and compare them with the labels
    #[arg(long)]
    generate: bool,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Photos computed side by side
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch_size: usize,
    /// Leave lines out that cannot be read, and count them
    #[arg(long)]
    skip_bad: bool,
    /// Replace the results of an earlier run in the folder
    #[arg(long)]
    overwrite: bool,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub fn run(&self) -> Result<()> {
        if self.batch_size == 0 {
            return Err(Error::Usage("--batch-size 0: give 1 or more".into()));
        }
        let on_bad = if self.skip_bad { OnBad::Skip } else { OnBad::Fail };
        let data = read_dataset(&self.data, self.prompt.as_deref(), on_bad)?;
        for e in &data.skipped {
            eprintln!("vlm: left out: {e}");
        }
        if data.samples.is_empty() {
            return Err(Error::file(&self.data, "holds no samples to score"));
        }
        let (predictions_file, summary_file) = (self.out.join("predictions.jsonl"), self.out.join("summary.json"));
        if !self.overwrite && (predictions_file.exists() || summary_file.exists()) {
            let said = "holds the results of an earlier run; choose another folder or give --overwrite";
            return Err(Error::file(&self.out, said));
        }
        let classes = evaluate::classes(&self.data, &data.samples)?;
        let mut opened = self.model.open()?;
        let method = self.method(&classes, &data.samples, &opened)?;
        std::fs::create_dir_all(&self.out).map_err(|e| Error::io("create", &self.out, e))?;
        // an old summary beside new predictions would lie, should this run end early
        if summary_file.exists() {
            std::fs::remove_file(&summary_file).map_err(|e| Error::io("remove", &summary_file, e))?;
        }
        let io = |e| Error::io("write", &predictions_file, e);
        let mut file = std::io::BufWriter::new(std::fs::File::create(&predictions_file).map_err(io)?);
        let mut predictions: Vec<Prediction> = Vec::new();
        let mut bar = Progress::new("photos");
        let start = Instant::now();
        let mut done = |p: Prediction| {
            serde_json::to_writer(&mut file, &p).map_err(|e| io(e.into()))?;
            file.write_all(b"\n").and_then(|()| file.flush()).map_err(io)?;
            predictions.push(p);
            bar.at(predictions.len() as u64, data.samples.len() as u64);
            Ok(())
        };
        let (engine, preparer) = (&mut opened.engine, &opened.preparer);
        evaluate::evaluate(engine, preparer, &self.data, &data.samples, &method, self.batch_size, &mut done)?;
        let seconds = start.elapsed().as_secs_f64();
        drop(bar);
        let metrics = metrics(predictions.iter().map(|p| (p.label.as_str(), p.prediction.as_str())));
        let images: usize = predictions.iter().map(|p| p.images.len()).sum();
        let summary = json!({
            "model": self.model.model.display().to_string(),
            "adapter": self.model.adapter.as_ref().map(|a| a.display().to_string()),
            "data": self.data.display().to_string(),
            "method": match &method { Method::Choices(_) => "choices", Method::Generate { .. } => "generate" },
            "choices": match &method { Method::Choices(names) => Some(names), Method::Generate { .. } => None },
            "metrics": metrics,
            "skipped": data.skipped.len(),
            "seconds": seconds,
            "images_per_second": images as f64 / seconds,
            "device": opened.engine.device.name(),
        });
        let text = serde_json::to_string_pretty(&summary).map_err(|e| Error::file(&summary_file, e.to_string()))?;
        atomic::write_file(&summary_file, |out| out.write(text.as_bytes()))?;
        if self.json {
            return super::print_json(&summary);
        }
        let mut said = table(&metrics);
        _ = writeln!(
            said,
            "{seconds:.1} s, {:.2} images/s; results in {}",
            images as f64 / seconds,
            self.out.display()
        );
        super::print(&said)
    }

    /// By label probabilities where the answers are a closed set, else by generation; says which.
    fn method(&self, classes: &[String], samples: &[Sample], opened: &super::model::Opened) -> Result<Method> {
        let choices = if self.choices.is_empty() { classes.to_vec() } else { self.choices.clone() };
        if self.generate || choices.len() > MOST_CHOICES {
            let n_valid = opened.preparer.prompts.tokenizer().n_tokens();
            let settings = Box::new(self.sampling.settings(&opened.generation, n_valid)?);
            eprintln!("vlm: answers are generated and compared with the labels");
            return Ok(Method::Generate { settings, classes: classes.to_vec() });
        }
        if let Some(s) = samples.iter().find(|s| s.label.as_ref().is_some_and(|l| !choices.contains(l))) {
            let label = s.label.as_deref().unwrap_or_default();
            return Err(Error::line(&self.data, s.line, format!("the label {label:?} is not among --choices")));
        }
        eprintln!("vlm: answers are chosen among {} labels by their probability", choices.len());
        Ok(Method::Choices(choices))
    }
}

/// Accuracy, a row per class, the confusion matrix: for a person.
pub fn table(m: &Metrics) -> String {
    let mut said = String::new();
    let [low, high] = m.interval.map(|x| 100.0 * x);
    _ = writeln!(
        said,
        "accuracy {:.1} % ({} of {}; 95 % interval {low:.1} to {high:.1} %)\n",
        100.0 * m.accuracy,
        m.correct,
        m.n
    );
    let width = m.confusion.labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(5);
    let percent = |x: Option<f64>| x.map_or("-".into(), |x| format!("{:.1}", 100.0 * x));
    _ = writeln!(
        said,
        "{:width$} {:>6} {:>8} {:>10} {:>8} {:>6}",
        "class", "photos", "correct", "precision", "recall", "F1"
    );
    for (label, c) in &m.per_class {
        let (p, r, f) = (percent(c.precision), percent(c.recall), percent(c.f1));
        _ = writeln!(said, "{label:width$} {:>6} {:>8} {p:>10} {r:>8} {f:>6}", c.n, c.correct);
    }
    let column = width.max(6);
    let header: Vec<String> = m.confusion.labels.iter().map(|l| format!("{l:>column$}")).collect();
    _ = writeln!(said, "\n{:width$} {}   (rows: label, columns: prediction)", "", header.join(" "));
    for (label, row) in m.confusion.labels.iter().zip(&m.confusion.counts) {
        let row: Vec<String> = row.iter().map(|n| format!("{n:>column$}")).collect();
        _ = writeln!(said, "{label:width$} {}", row.join(" "));
    }
    said
}
