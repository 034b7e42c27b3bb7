//! `vlm train`: the flags, and the settings that they and a recipe make together.

use super::compute::Compute;
use super::notice::plain;
use super::progress::Progress;
use super::shares::Shares;
use super::values::{pixels, positive};
use super::{interrupt, output};
use crate::base::{Error, Precision, Result, counted};
use crate::data::dataset::{OnBad, Sample, read_dataset};
use crate::data::messages::ImageSource;
use crate::io::folder_kind::{ADAPTER, CONFIG};
use crate::train::config_file;
use crate::train::forms::{betas, bytes};
use crate::train::plan::{self, Plan};
use crate::train::roof::Roof;
use crate::train::run_folder::{self, Start};
use crate::train::schedule::Decay;
use crate::train::session::{self, Begin, End, Said, Watch, Why};
use crate::train::sets::Sets;
use crate::train::settings::{DeviceChoice, Settings, writable};
use serde::Serialize;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Fine-tune a model on labelled photos or conversations: LoRA, or every weight with --full
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm train --model Qwen3-VL-2B-Instruct --data train.jsonl --out runs/cars \\
           --eval-data validation.jsonl
         vlm train --config recipes/one-dollar.toml --model Qwen3-VL-8B-Instruct --data train.jsonl --out runs/cars")]
pub struct Train {
    /// A TOML file of the settings below, named as the flags; flags win, its paths are relative to it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub given: Given,
    /// Go on where an earlier run in the folder stopped; the settings and the data must be the same
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace an earlier run in the folder, and the file of --dump-first-gradients
    #[arg(long)]
    pub overwrite: bool,
    /// Write every trained tensor's gradient at step 1, before clipping, under the adapter's names
    #[arg(long, value_name = "FILE")]
    pub dump_first_gradients: Option<PathBuf>,
    /// What an hour of this machine costs: the run's cost then stands in its run.json
    #[arg(long, value_name = "X", value_parser = positive)]
    pub dollars_per_hour: Option<f64>,
    /// Say what the run would need, from a dry run on its own data, and stop: bytes, seconds, dollars
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: reckon with this speed of products instead of timing the device
    #[arg(long, value_name = "X", value_parser = positive, requires_all = ["dry_run", "peak_gbs"])]
    pub peak_tflops: Option<f64>,
    /// With --dry-run: reckon with this bandwidth, in gigabytes a second
    #[arg(long, value_name = "X", value_parser = positive, requires_all = ["dry_run", "peak_tflops"])]
    pub peak_gbs: Option<f64>,
    /// With --dry-run: one JSON object
    #[arg(long, requires = "dry_run")]
    pub json: bool,
}

/// Settings that were given as flags; what is None or false was not.
#[derive(Debug, clap::Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Given {
    /// A checkpoint folder as Hugging Face publishes it
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The training set, JSONL
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Folder of the run: adapter, metrics, checkpoints
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What to ask where the lines only hold an image and a label
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Leave lines and photos out that cannot be read, and list them
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    skip_bad: bool,
    /// Where to compute [default: auto, CUDA where it works, else the CPU]
    #[arg(long, value_enum)]
    device: Option<DeviceChoice>,
    /// What activations and weights are stored in while computing [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Use at most so many bytes of the device's memory, such as 24G (K, M, G, T: powers of 1024) [default: what is free]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Enlarge pictures to at least this many pixels [default: the model's, with an adapter its own, or --max-pixels if less]
    #[arg(long, value_name = "N", value_parser = pixels)]
    min_pixels: Option<u64>,
    /// Shrink pictures to at most this many pixels [default: the model's, with an adapter its own, or --min-pixels if more]
    #[arg(long, value_name = "N", value_parser = pixels)]
    max_pixels: Option<u64>,

    /// Rank of the adapters' matrices [default: 16]
    #[arg(long, value_name = "N", help_heading = "What is trained")]
    rank: Option<usize>,
    /// An adapter's product is multiplied with alpha / rank [default: 32]
    #[arg(long, value_name = "X", help_heading = "What is trained")]
    alpha: Option<f64>,
    /// Part of an adapter's input that is left out at random [default: 0]
    #[arg(long, value_name = "X", help_heading = "What is trained")]
    dropout: Option<f64>,
    /// Names of modules, or one regex for their whole paths [default: all seven of the language model's layers]
    #[arg(long, value_name = "A,B,C|REGEX", help_heading = "What is trained")]
    target_modules: Option<String>,
    /// Adapters on the blocks of the vision tower too
    #[arg(long, help_heading = "What is trained")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lora_vision: bool,
    /// Adapters on the mergers too, which make tokens of patches
    #[arg(long, help_heading = "What is trained")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lora_merger: bool,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "What is trained")]
    rslora: Option<bool>,
    /// Start from this adapter, and take rank, alpha and targets from it
    #[arg(long, value_name = "DIR", help_heading = "What is trained")]
    init_adapter: Option<PathBuf>,
    /// Train every weight of the model instead of adapters
    #[arg(long, help_heading = "What is trained")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    full: bool,

    /// Peak learning rate [default: 2e-4]
    #[arg(long, value_name = "X", help_heading = "Optimiser")]
    learning_rate: Option<f64>,
    /// Peak learning rate of the vision tower and the mergers [default: --learning-rate]
    #[arg(long, value_name = "X", help_heading = "Optimiser")]
    vision_learning_rate: Option<f64>,
    /// AdamW's, decoupled; with --full not on biases and norms [default: 0]
    #[arg(long, value_name = "X", help_heading = "Optimiser")]
    weight_decay: Option<f64>,
    /// AdamW's [default: 0.9,0.999]
    #[arg(long, value_name = "X,X", value_parser = betas, help_heading = "Optimiser")]
    betas: Option<[f64; 2]>,
    /// How the learning rate falls after the warm-up, as Hugging Face's schedules [default: cosine]
    #[arg(long, value_enum, help_heading = "Optimiser")]
    schedule: Option<Decay>,
    /// Steps over which the learning rate rises from 0 [default: 0]
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    warmup_steps: Option<u64>,
    /// The same as a part of all steps, rounded up
    #[arg(long, value_name = "X", help_heading = "Optimiser")]
    warmup_ratio: Option<f64>,
    /// Longer gradients are shortened to this; 0 leaves them [default: 1]
    #[arg(long, value_name = "X", help_heading = "Optimiser")]
    max_grad_norm: Option<f64>,

    /// Samples computed together [default: 4]
    #[arg(long, value_name = "N", help_heading = "Order and length")]
    batch_size: Option<usize>,
    /// Batches whose gradients make one step [default: 1]
    #[arg(long, value_name = "N", help_heading = "Order and length")]
    grad_accumulation: Option<usize>,
    /// How often every sample is seen [default: 3]
    #[arg(long, value_name = "N", help_heading = "Order and length")]
    epochs: Option<u64>,
    /// Length in steps instead of epochs
    #[arg(long, value_name = "N", help_heading = "Order and length")]
    max_steps: Option<u64>,
    /// The same seed gives the same run [default: 0]
    #[arg(long, value_name = "N", help_heading = "Order and length")]
    seed: Option<u64>,
    /// Learn in the order of the file
    #[arg(long, help_heading = "Order and length")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_shuffle: bool,
    /// Train on N samples, each class in proportion; a smaller subset lies within a larger one
    #[arg(long, value_name = "N", help_heading = "Order and length")]
    subset: Option<usize>,
    /// Check that N samples, spread over the classes, can be learnt: no schedule, until the loss is near 0
    #[arg(long, value_name = "N", help_heading = "Order and length")]
    overfit: Option<usize>,

    /// Score the adapter on these samples on the way, and keep the best; never the set that is reported as the test set
    #[arg(long, value_name = "FILE", help_heading = "Evaluation and checkpoints")]
    eval_data: Option<PathBuf>,
    /// Steps between evaluations [default: an epoch]
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    eval_every: Option<u64>,
    /// Stop after N evaluations without a better score
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    early_stop: Option<u64>,
    /// Steps between checkpoints for --resume [default: an epoch]
    #[arg(long, value_name = "N", help_heading = "Evaluation and checkpoints")]
    save_every: Option<u64>,
}

const NEVER_AT_ITS_RATE: &str =
    "vlm: the warm-up is as long as the run, or longer: no step is taken at the learning rate that was asked for";

/// Whether the warm-up leaves no step for the peak of the learning rate.
fn short_of_its_rate(settings: &Settings, total: u64) -> bool {
    let schedule = settings.schedule(total);
    !(1..=total).any(|step| schedule.lr(step) >= settings.learning_rate)
}

/// Ends the program where a signal came before there was a run.
fn begun<T>(result: Result<T>) -> Result<T> {
    match result {
        Err(Error::Interrupted) => interrupt::exit(" before the run began; nothing was written"),
        result => result,
    }
}

/// The photos of both sets that are files.
fn photos(settings: &Settings) -> Result<Vec<PathBuf>> {
    let on_bad = OnBad::of(settings.skip_bad);
    let mut photos = Vec::new();
    for set in [Some(&settings.data), settings.eval_data.as_ref()].into_iter().flatten() {
        let samples = read_dataset(set, settings.prompt.as_deref(), on_bad)?.samples;
        photos.extend(samples.iter().flat_map(Sample::images).filter_map(ImageSource::file).map(PathBuf::from));
    }
    Ok(photos)
}

/// Errors: `file`, which is written after a step is computed, would have no folder to lie in then, or is something that the
/// run in the folder `out` makes itself.
fn beside_the_run(file: &Path, out: &Path) -> Result<()> {
    let whole = std::path::absolute(file).map_err(|e| Error::io("find the whole path of", file, e))?;
    let (at, run) = (output::resolved(&whole), output::resolved(out));
    // `x/` and `x/.` have the name x, and can be folders alone
    let ends_in = |name: &OsStr| file.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes());
    if run.starts_with(&at) || !file.file_name().is_some_and(ends_in) {
        return Err(Error::file(file, "is a folder, and --dump-first-gradients writes a file; name one"));
    }
    if run_folder::files(out).any(|own| output::resolved(&own) == at)
        || run_folder::folders(out).iter().any(|own| at.starts_with(output::resolved(own)))
    {
        return Err(Error::file(file, "is a name that the run itself uses; give --dump-first-gradients another"));
    }
    match at.parent() {
        // the run makes its own
        Some(folder) if folder.is_dir() || folder == run => Ok(()),
        _ => Err(Error::file(file, "there is no folder to write it into; make it first, or name another file")),
    }
}

impl Train {
    pub fn run(&self) -> Result<()> {
        let settings = self.settings()?;
        self.check_outputs(&settings)?;
        let (mut device, precision) = Compute::of(settings.device, settings.precision).open()?;
        let start = match (self.resume, self.overwrite) {
            (true, _) => Start::Resume,
            (false, true) => Start::Overwrite,
            (false, false) => Start::New,
        };
        interrupt::watch();
        let mut bar = Progress::new("steps");
        let mut last = Instant::now();
        let mut shares = Shares::default();
        let mut photos = None;
        let mut said = |said: Said| match said {
            Said::Note(text) => bar.note(&format!("vlm: {text}")),
            Said::Checked(n, all) => {
                photos.get_or_insert_with(|| Progress::new("photos checked")).at(n as u64, all as u64);
                photos = photos.take().filter(|_| n < all);
            }
            Said::Eval(e) => bar.note(&format!(
                "step {}: {} of {} right, {:.1} %, loss {:.4}",
                e.step,
                e.eval_correct,
                e.eval_samples,
                100.0 * e.eval_accuracy,
                e.eval_loss
            )),
            Said::Step(m, total) => {
                bar.at(m.step, total);
                shares.add(&m);
                if m.step == 1 && short_of_its_rate(&settings, total) {
                    bar.note(NEVER_AT_ITS_RATE);
                }
                if m.step == 1 || m.step == total || last.elapsed() > Duration::from_secs(5) {
                    let mfu = m.mfu.map_or(String::new(), |mfu| format!(", MFU {:.1} %", 100.0 * mfu));
                    bar.note(&format!(
                        "step {} of {total}: loss {:.4}, norm {:.3}, {:.0} tokens/s{mfu}",
                        m.step, m.loss, m.grad_norm, m.tokens_per_second
                    ));
                    last = Instant::now();
                }
            }
        };
        let mut watch = Watch { said: &mut said, interrupted: &interrupt::asked };
        if self.dry_run {
            let plan = session::dry_run(&settings, &mut device, precision, self.stated(), &mut watch);
            drop(bar);
            let plan = begun(plan)?;
            if short_of_its_rate(&settings, plan.steps) {
                plain(NEVER_AT_ITS_RATE);
            }
            return self.print_plan(&plan);
        }
        let first_gradients = self.dump_first_gradients.clone();
        let begin = Begin { start, first_gradients, dollars_per_hour: self.dollars_per_hour };
        let end = session::train(&settings, device, precision, &begin, &mut Sets::default(), &mut watch);
        drop(bar);
        let end = begun(end)?;
        let result = if settings.full { run_folder::model_folder(&settings.out) } else { settings.out.clone() };
        match end {
            End::Done { steps, loss, why, best } => {
                let loss = loss.map_or(String::new(), |l| format!(", loss {l:.4}"));
                let taken = counted(steps, "step", "steps");
                let done = match why {
                    Why::Steps => format!("{taken}{loss}"),
                    Why::Passed { samples, answered } => format!(
                        "the overfit check is passed: {} learnt by heart after {taken}{loss}{}; data and settings can work",
                        counted(samples, "sample is", "samples are"),
                        if answered { ", every answer right" } else { "" }
                    ),
                    Why::Early { evaluations } => {
                        format!("{taken}{loss}, stopped early by --early-stop {evaluations}")
                    }
                };
                let best =
                    best.map_or(String::new(), |step| format!(", as it was at step {step}, the best evaluation"));
                super::print(&format!("{done}; the result is in {}{best}\n{shares}", result.display()))
            }
            End::Interrupted { steps } => {
                interrupt::exit(&format!(" after step {steps} and saved; the same command with --resume goes on"))
            }
        }
    }

    /// Errors: a file of somebody's would be replaced, or one that the run reads.
    fn check_outputs(&self, settings: &Settings) -> Result<()> {
        let adapter = settings.init_adapter.iter().flat_map(|folder| ADAPTER.map(|name| folder.join(name)));
        let sets = [Some(&settings.data), settings.eval_data.as_ref()].into_iter().flatten().cloned();
        let files: Vec<PathBuf> = adapter.chain(sets).collect();
        for file in run_folder::files(&settings.out) {
            // the settings of a run are read where it wrote them, to do it again there
            let again = |from: &Path| file.ends_with(run_folder::CONFIG) && config_file::is_of_a_run(from);
            let recipe = self.config.as_deref().filter(|from| !again(from));
            output::not_an_input(&file, files.iter().map(PathBuf::as_path).chain(recipe))?;
        }
        let model = settings.model.join(CONFIG);
        let own = run_folder::model_folder(&settings.out);
        output::not_an_input(&own.join(CONFIG), [model.as_path()])?;
        let optional = [&settings.init_adapter, &settings.eval_data, &self.config].into_iter().flatten();
        let read: Vec<&Path> = optional.chain([&settings.model, &settings.data]).map(PathBuf::as_path).collect();
        output::no_input_within(&run_folder::checkpoints_folder(&settings.out), read.iter().copied())?;
        // of an earlier run it is removed
        if settings.full || self.overwrite {
            output::no_input_within(&own, read.iter().copied())?;
        }
        let Some(file) = &self.dump_first_gradients else { return Ok(()) };
        let photos = photos(settings)?;
        output::not_an_input(file, read.into_iter().chain(photos.iter().map(PathBuf::as_path)))?;
        beside_the_run(file, &settings.out)?;
        match self.resume {
            // it may have been written before the run was stopped
            true => output::free_or_own(file, self.overwrite, session::GRADIENTS),
            false => output::free(file, self.overwrite),
        }
    }

    fn stated(&self) -> Option<Roof> {
        let (tflops, gbs) = self.peak_tflops.zip(self.peak_gbs)?;
        Some(Roof { flops_per_second: 1e12 * tflops, bytes_per_second: 1e9 * gbs, seconds_per_operation: 0.0 })
    }

    fn print_plan(&self, plan: &Plan) -> Result<()> {
        let dollars = self.dollars_per_hour.zip(plan.seconds).map(|(rate, seconds)| rate * seconds / 3600.0);
        if self.json {
            let mut object = serde_json::json!(plan);
            object["bytes"] = plan.bytes().into();
            object["dollars"] = dollars.into();
            return super::print_json(&object);
        }
        let mut said = format!("{}\n", plan::table(plan));
        if plan.recompute_level > 0 {
            said += &format!("computes values twice: level {} of {}\n", plan.recompute_level, plan.recompute_levels);
        }
        said += &format!(
            "{} over {}, {} tokens: {:.2} TFLOP\n",
            counted(plan.steps, "step", "steps"),
            counted(plan.samples, "sample", "samples"),
            plan.tokens,
            plan.flops / 1e12
        );
        if let Some(seconds) = plan.seconds {
            let apart = match plan.preparing_seconds {
                Some(s) => format!("{s:.0} s to read photos included; evaluations and checkpoints come on top"),
                None => "reading photos, evaluations and checkpoints apart".into(),
            };
            said += &format!("about {seconds:.0} s at what the device reaches, {apart}");
            said += &dollars.map_or("\n".into(), |dollars| format!("; {dollars:.2} dollars\n"));
        }
        super::print(&said)
    }

    /// The flags on top of the file of --config, checked. Errors: see [`config_file::settings`].
    pub fn settings(&self) -> Result<Settings> {
        let Given { model, data, out, eval_data, init_adapter, .. } = &self.given;
        let paths = [("model", model), ("data", data), ("out", out)];
        for (name, path) in paths.into_iter().chain([("eval-data", eval_data), ("init-adapter", init_adapter)]) {
            path.as_ref().map_or(Ok(()), |path| writable(name, path))?;
        }
        config_file::settings(self.config.as_deref(), &self.given)
    }
}
