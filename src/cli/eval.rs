//! `vlm eval`: the score of a model on a labelled set.

use super::compute::Compute;
use super::endpoint::{EndpointFlags, OF_ENDPOINTS, limit};
use super::generate::{SamplingFlags, by_flag};
use super::model::{self, Opened, PixelFlags};
use super::notice::notice;
use super::progress::Progress;
use super::values::{choice, positive};
use super::{interrupt, output, table};
use crate::base::{Error, Result, counted, input};
use crate::classify::endpoint::Said;
use crate::classify::evaluate::{self, Classes, MOST_CHOICES, Method};
use crate::classify::folder::{Folder, Start};
use crate::classify::metrics::{Metrics, distinct, metrics};
use crate::classify::records::{CUT_OFF, FILTERED, REFUSED, Record, UNENDED, Usage, dollars};
use crate::data::dataset::{Dataset, OnBad, Sample, read_dataset};
use crate::data::whole::{left_out, whole};
use crate::infer::generate::Settings;
use crate::io::folder_kind::ADAPTER;
use crate::qwen3vl::generation_config::GenerationConfig;
use crate::train::{fingerprint, run_folder};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

/// Score a model on labelled photos: accuracy, a row per class, the confusion matrix, and what guessing would have got
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm eval --model Qwen3-VL-2B-Instruct --data test.jsonl --out runs/base\n\
                  Served elsewhere: vlm eval --endpoint https://api.openai.com/v1 --endpoint-model gpt-4o --data test.jsonl \
                  --out runs/gpt")]
#[command(group(clap::ArgGroup::new("who").required(true).args(["model", "endpoint"])))]
#[command(mut_arg("temperature", |flag| flag.help("Draw answers at it; 0 takes the likeliest tokens [default: 0]")))]
pub struct Eval {
    /// A checkpoint folder as Hugging Face publishes it
    #[arg(long, value_name = "DIR", conflicts_with_all = OF_ENDPOINTS)]
    model: Option<PathBuf>,
    /// A PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    served: EndpointFlags,
    #[command(flatten)]
    pixels: PixelFlags,
    #[command(flatten)]
    compute: Compute,
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
    /// A photo can have several labels, written as a list with commas
    #[arg(long)]
    multi_label: bool,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Photos computed side by side
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch_size: usize,
    /// What this machine costs an hour: the summary then has what the evaluation cost
    #[arg(long, value_name = "X", value_parser = positive)]
    dollars_per_hour: Option<f64>,
    /// Leave lines and photos out that cannot be read, and list them; count what an endpoint refuses as wrong answers
    #[arg(long)]
    skip_bad: bool,
    /// Go on with an evaluation in the folder that was stopped
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
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
        let files = Folder::FILES.map(|name| self.out.join(name));
        files.iter().try_for_each(|file| output::not_an_input(file, [self.data.as_path()]))?;
        let on_bad = OnBad::of(self.skip_bad);
        let data = read_dataset(&self.data, self.prompt.as_deref(), on_bad)?;
        // its fingerprint asks, too, but only when all photos have been looked at
        input::twice(&self.data)?;
        let mut bar = Progress::new("photos checked");
        let data = whole(&self.data, data, on_bad, &mut |n, all| {
            bar.at(n as u64, all as u64);
            Ok(())
        })?;
        drop(bar);
        data.unused_prompt.iter().for_each(notice);
        data.skipped.iter().for_each(|e| notice(format_args!("left out: {e}")));
        let classes = self.classes(&data)?;
        let Some(model) = &self.model else { return self.ask(&data, &classes) };
        if !self.generates(&classes) {
            self.sampling.refuse("where labels are scored by their probability; leave it out, or give --generate")?;
        } else if self.sampling.temperature().unwrap_or(0.0) == 0.0 {
            let place = "where the likeliest token is always taken; leave it out, or give --temperature above 0, too";
            self.sampling.refuse_draws(place)?;
        }
        let mut opened = model::open(model, self.adapter.as_deref(), &self.pixels, &self.compute)?;
        let method = self.method(&classes, &opened)?;
        evaluate::check(&opened.preparer, &self.data, &data.samples, &method)?;
        let limit = format!("--max-new-tokens {}", self.sampling.max_new_tokens());
        let mut folder = self.open_folder(self.identity(model, &data, &classes, &opened)?)?;
        if let Some(summary) = folder.finished(&lines(&data))? {
            return self.say_finished(folder, &classes, &summary, &limit);
        }
        let before = folder.done();
        let samples = in_batches(&data.samples, self.batch_size, &before);
        let start = Instant::now();
        {
            let mut bar = Progress::new("photos");
            let (all, mut n) = (data.samples.len() as u64, before.len() as u64);
            let mut done = |record: Record| {
                if !before.contains(&record.line) {
                    folder.append(record)?;
                    n += 1;
                    bar.at(n, all);
                }
                Ok(!interrupt::asked())
            };
            let (engine, preparer) = (&mut opened.engine, &opened.preparer);
            evaluate::evaluate(engine, preparer, &self.data, &samples, &method, self.batch_size, &mut done)?;
        }
        let about = json!({
            "model": model.display().to_string(),
            "adapter": self.adapter.as_ref().map(|a| a.display().to_string()),
            "method": method_name(&method),
            "choices": match &method { Method::Choices(names) | Method::Lists(names) => Some(names), _ => None },
            "training_samples": self.trained_on(model),
            "device": opened.engine.device.name(),
        });
        self.finish(folder, &data, &classes, start.elapsed().as_secs_f64(), about, &limit)
    }

    /// The same, where the model is served elsewhere.
    fn ask(&self, data: &Dataset, classes: &Classes) -> Result<()> {
        let (temperature, tokens) = (self.sampling.temperature(), self.sampling.max_new_tokens());
        let suffix = (!self.choices.is_empty()).then(|| match self.multi_label {
            false => format!("Answer with exactly one of: {}.", self.choices.join(", ")),
            true => format!("Answer with a list of some of: {}.", self.choices.join(", ")),
        });
        let mut endpoint = self.served.endpoint(temperature, tokens, suffix, self.skip_bad)?;
        let mut identity = self.question(data, classes)?;
        identity.insert("--endpoint".into(), endpoint.address()?.into());
        identity.insert("--endpoint-model".into(), endpoint.model.as_str().into());
        identity.insert("the options".into(), Value::Object(endpoint.options.clone()));
        identity.insert("the list of choices".into(), json!(endpoint.suffix));
        let mut folder = self.open_folder(identity)?;
        if let Some(summary) = folder.finished(&lines(data))? {
            return self.say_finished(folder, classes, &summary, &limit(&endpoint));
        }
        if let Some(sent) = folder.sent() {
            endpoint.go_on_with(sent.clone());
        }
        let mut sent = endpoint.options.clone();
        let answered = folder.records().iter().any(|r| !r.tagged(REFUSED));
        let before = folder.done();
        let samples: Vec<Sample> = data.samples.iter().filter(|s| !before.contains(&s.line)).cloned().collect();
        let start = Instant::now();
        let mut n = before.len();
        let asked = {
            let mut bar = Progress::new("photos");
            let mut said = |said: Said| match said {
                Said::Note(text) => {
                    bar.note(&text);
                    Ok(())
                }
                Said::Changed(options) => {
                    sent = options.clone();
                    folder.send(options)
                }
                Said::Answer(record) => {
                    folder.append(*record)?;
                    n += 1;
                    bar.at(n as u64, data.samples.len() as u64);
                    Ok(())
                }
            };
            endpoint.ask(&self.data, &samples, classes, answered, &interrupt::asked, &mut said)
        };
        let seconds = start.elapsed().as_secs_f64();
        if let Err(e) = asked {
            folder.stop(seconds)?;
            return Err(e);
        }
        let records = folder.records();
        let count = |of: &dyn Fn(&Usage) -> u64| records.iter().filter_map(|r| r.usage.as_ref()).map(of).sum::<u64>();
        let usage =
            Usage { prompt_tokens: count(&|u| u.prompt_tokens), completion_tokens: count(&|u| u.completion_tokens) };
        let uncounted = records.iter().filter(|r| r.usage.is_none()).count();
        let dollars = self.served.dollars(&usage);
        if dollars.is_some() && uncounted > 0 {
            notice(format_args!(
                "{} came without a count of tokens: the cost is higher than what is said",
                counted(uncounted, "answer", "answers")
            ));
        }
        sent.retain(|_, value| !value.is_null());
        let about = json!({
            "endpoint": endpoint.address()?,
            "endpoint_model": endpoint.model,
            "endpoint_options": sent,
            "method": "generate",
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "answers_without_count": uncounted,
            },
            "dollars": dollars,
            "dollars_are_incomplete": dollars.is_some() && uncounted > 0,
        });
        self.finish(folder, data, classes, seconds, about, &limit(&endpoint))
    }

    /// What can be answered: the labels of the set, or the choices, of which every label has to be one.
    fn classes(&self, data: &Dataset) -> Result<Classes> {
        let mut classes = Classes::of(&self.data, &data.samples, self.multi_label)?;
        let spellings: BTreeSet<&String> = data.samples.iter().filter_map(|s| s.label.as_ref()).collect();
        if !self.multi_label && spellings.len() > classes.names.len() {
            let (labels, of) = (spellings.len(), counted(classes.names.len(), "class", "classes"));
            notice(format_args!(
                "the set has {labels} labels of {of}: those that differ only in case, in spaces around them or in \
                 a final full stop are one class"
            ));
        }
        if self.choices.is_empty() {
            return Ok(classes);
        }
        if distinct(self.choices.clone()).len() < self.choices.len() {
            let said = "--choices: two of them are one answer, as case and a final full stop do not count";
            return Err(Error::Usage(said.into()));
        }
        classes.names = self.choices.clone();
        for s in &data.samples {
            let one = Classes::of(&self.data, std::slice::from_ref(s), self.multi_label)?;
            if let Some(label) = one.names.iter().find(|l| classes.class(l).is_none()) {
                return Err(Error::line(&self.data, s.line, format!("the label {label:?} is not among --choices")));
            }
        }
        Ok(classes)
    }

    /// Whether a model that is computed here writes its answers.
    fn generates(&self, classes: &Classes) -> bool {
        self.generate || classes.names.len() > MOST_CHOICES
    }

    /// By label probabilities where the answers are a closed set, else by generation; says which.
    fn method(&self, classes: &Classes, opened: &Opened) -> Result<Method> {
        let labels = counted(classes.names.len(), "label", "labels");
        if self.generates(classes) {
            let settings = Box::new(self.settings(opened)?);
            notice("answers are generated and compared with the labels");
            return Ok(Method::Generate { settings, classes: classes.clone() });
        }
        if self.multi_label {
            notice(format_args!("answers are lists of {labels}, chosen by their probability"));
            return Ok(Method::Lists(classes.names.clone()));
        }
        notice(format_args!("answers are chosen among {labels} by their probability"));
        Ok(Method::Choices(classes.names.clone()))
    }

    /// How answers are written: greedily unless --temperature draws, whatever generation_config.json says of that. So a
    /// score has no luck in it, and is got in the same way as an endpoint's.
    fn settings(&self, opened: &Opened) -> Result<Settings> {
        let greedy = GenerationConfig { do_sample: false, ..opened.generation.clone() };
        self.sampling.settings(&greedy, opened.preparer.prompts.tokenizer().n_tokens())
    }

    /// What has a say in the answers.
    fn identity(
        &self,
        model: &std::path::Path,
        data: &Dataset,
        classes: &Classes,
        opened: &Opened,
    ) -> Result<Map<String, Value>> {
        let mut identity = self.question(data, classes)?;
        identity.insert("the model".into(), fingerprint::of_model(model)?.into());
        identity.insert("the tokenizer, templates or processor".into(), fingerprint::of_processing(model)?.into());
        if let Some(adapter) = &self.adapter {
            let files = ADAPTER.map(|name| adapter.join(name));
            let files = files.iter().map(|file| fingerprint::of_file(file)).collect::<Result<Vec<_>>>()?;
            identity.insert("the adapter".into(), json!(files));
        }
        // what a photo gets depends in its last digits on those beside it: a product of more rows sums in another order
        identity.insert("--batch-size".into(), self.batch_size.into());
        let spec = &opened.preparer.spec;
        identity.insert("--min-pixels".into(), spec.min_pixels.into());
        identity.insert("--max-pixels".into(), spec.max_pixels.into());
        identity.insert("--precision".into(), json!(opened.engine.precision));
        if self.generates(classes) {
            identity.insert("the sampling".into(), Value::Object(by_flag(&self.settings(opened)?)));
        }
        Ok(identity)
    }

    /// The part of the identity that no model has.
    fn question(&self, data: &Dataset, classes: &Classes) -> Result<Map<String, Value>> {
        let identity = json!({
            "the set": fingerprint::of_file(&self.data)?,
            "the photos": fingerprint::of_photos(&data.samples)?,
            "--prompt": self.prompt,
            "the classes": classes.names,
            "--multi-label": classes.several,
        });
        match identity {
            Value::Object(identity) => Ok(identity),
            _ => Ok(Map::new()),
        }
    }

    fn open_folder(&self, identity: Map<String, Value>) -> Result<Folder> {
        let start = match (self.resume, self.overwrite) {
            (true, _) => Start::Resume,
            (false, true) => Start::Overwrite,
            (false, false) => Start::New,
        };
        interrupt::watch();
        Folder::open(&self.out, identity, start)
    }

    fn trained_on(&self, model: &std::path::Path) -> Option<usize> {
        match &self.adapter {
            Some(run) => run_folder::training_samples(run),
            // a model that --full left below its run
            None => run_folder::training_samples(model.parent()?),
        }
    }

    /// The end of an evaluation, whoever answered: `about` says who, and stands first in the summary; `limit` is what an
    /// answer is cut off at.
    fn finish(
        &self,
        mut folder: Folder,
        data: &Dataset,
        classes: &Classes,
        seconds: f64,
        about: Value,
        limit: &str,
    ) -> Result<()> {
        let n_done = folder.records().len();
        if n_done < data.samples.len() && interrupt::asked() {
            folder.stop(seconds)?;
            let all = counted(data.samples.len(), "photo", "photos");
            interrupt::exit(&format!(" after {n_done} of {all}; the same command with --resume goes on"));
        }
        let seconds = folder.seconds + seconds;
        let records = folder.records();
        let metrics = metrics(&classes.names, records);
        let images: usize = records.iter().map(|r| r.images().len()).sum();
        let mut summary = about;
        let rest = json!({
            "data": self.data.display().to_string(),
            "multi_label": classes.several,
            "metrics": metrics,
            "skipped": data.skipped.len(),
            "seconds": seconds,
            "images_per_second": images as f64 / seconds,
        });
        if let (Value::Object(all), Value::Object(rest)) = (&mut summary, rest) {
            all.extend(rest);
            all.extend(UNENDED.map(|tag| (tag.to_string(), n_tagged(records, tag).into())));
        }
        let unended = unended(records, limit);
        let hourly = self.dollars_per_hour.map(|x| x * seconds / 3600.0);
        if summary["dollars"].is_null() {
            summary["dollars"] = json!(hourly);
        }
        folder.finish(&summary)?;
        self.say(&metrics, &summary, &unended)
    }

    /// An evaluation that --resume finds finished: its result again.
    fn say_finished(&self, mut folder: Folder, classes: &Classes, summary: &Value, limit: &str) -> Result<()> {
        notice("this evaluation is finished; --overwrite does it again");
        let records = folder.records();
        self.say(&metrics(&classes.names, records), summary, &unended(records, limit))
    }

    fn say(&self, metrics: &Metrics, summary: &Value, unended: &str) -> Result<()> {
        if self.json {
            return super::print_json(summary);
        }
        let number = |key: &str| summary[key].as_f64();
        let mut said = table::metrics(metrics);
        let skipped = summary["skipped"].as_u64().unwrap_or(0);
        said.extend(left_out(skipped as usize).map(|left_out| left_out + "\n"));
        said.push_str(unended);
        let [seconds, rate] = ["seconds", "images_per_second"].map(|key| number(key).unwrap_or(f64::NAN));
        _ = write!(said, "{seconds:.1} s, {rate:.2} images/s");
        if let Some(dollars) = summary.as_object().and_then(|s| dollars(s, |dollars| format!("{dollars:.4}"))) {
            _ = write!(said, ", {dollars} dollars");
        }
        _ = writeln!(said, "; results in {}", self.out.display());
        super::print(&said)
    }
}

fn n_tagged(records: &[Record], tag: &str) -> usize {
    records.iter().filter(|r| r.tagged(tag)).count()
}

/// A line for each way of ending that is not the model's own: where it is frequent, the score says little of the model.
fn unended(records: &[Record], limit: &str) -> String {
    let ways = [
        (REFUSED, "question was", "questions were", "refused by the endpoint, and count as wrong".to_string()),
        (CUT_OFF, "answer was", "answers were", format!("cut off at {limit}: raise it")),
        (FILTERED, "answer was", "answers were", "stopped by the endpoint's content filter".to_string()),
    ];
    let said = ways.map(|(tag, one, many, how)| match n_tagged(records, tag) {
        0 => String::new(),
        n => format!("{n} of {} {how}\n", counted(records.len(), one, many)),
    });
    said.concat()
}

/// Those that an evaluation has a record of when it is finished.
fn lines(data: &Dataset) -> BTreeSet<usize> {
    data.samples.iter().map(|s| s.line).collect()
}

/// The samples of the batches that are not answered whole. Whole batches, because what a photo gets depends in its last
/// digits on those beside it: an evaluation that goes on gets the numbers of one that was never stopped.
fn in_batches(samples: &[Sample], batch: usize, answered: &BTreeSet<usize>) -> Vec<Sample> {
    let open = |batch: &&[Sample]| !batch.iter().all(|s| answered.contains(&s.line));
    samples.chunks(batch).filter(open).flatten().cloned().collect()
}

fn method_name(method: &Method) -> &'static str {
    match method {
        Method::Choices(_) => "choices",
        Method::Lists(_) => "lists",
        Method::Generate { .. } => "generate",
    }
}
