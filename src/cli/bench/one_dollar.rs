//! `vlm bench one-dollar`: a few hundred photos, three epochs of LoRA, a test set scored; cold and warm.

use super::job::{self, Job, Times};
use super::shapes::Shape;
use crate::base::date::today;
use crate::base::{DType, Error, Precision, Result, counted, input};
use crate::cli::compute::Compute;
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::cli::{interrupt, values};
use crate::data::dataset::{OnBad, read_dataset};
use crate::data::drawn::photos::{Set, write_set};
use crate::data::import;
use crate::io::atomic;
use crate::io::lock::FolderLock;
use crate::qwen3vl::config::Config;
use crate::qwen3vl::init::{self, Options};
use crate::qwen3vl::names::Counts;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::processor::read_patch_spec;
use crate::qwen3vl::save;
use crate::qwen3vl::template::Ending;
use crate::train::mfu;
use crate::train::settings::DeviceChoice;
use rayon::prelude::*;
use serde_json::json;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the photos' conversations ask.
const PROMPT: &str = "Which damage is this?";
/// Marks a folder as one that this bench made, so that it writes over nothing else.
const MARK: &str = "one-dollar.json";
const RECIPE: &str = include_str!("../../../recipes/one-dollar.toml");

/// Fine-tune on 319 drawn photos of 1000 x 667 and score 98, by the clock, twice
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm bench one-dollar --shape 8b --device cuda --out /scratch/one-dollar
         vlm bench one-dollar --shape tiny --photos 12 --test 6 --size 320x213 --out one-dollar

N is the number of weights in the language model's linear layers, head apart. Frozen weights cost 2 N operations a token
forward and 2 N backward, and no weight gradient: MFU = 4 N tokens / (seconds of the steps x peak). Tokens are those of
text and images, none of them padding; adapters, attention, tower and head are left out of it.")]
pub struct OneDollar {
    /// Folder for photos, weights and runs; what it holds from before is used again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Random weights of this shape
    #[arg(long, value_enum, default_value = "8b")]
    shape: Shape,
    /// A checkpoint folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// What activations and weights are stored in while computing [default: f32 on the CPU, bf16 on a GPU]
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Photos to train on
    #[arg(long, value_name = "N", default_value_t = 319, value_parser = values::count)]
    photos: u32,
    /// Photos to score
    #[arg(long, value_name = "N", default_value_t = 98, value_parser = values::count)]
    test: u32,
    /// Width and height of the photos
    #[arg(long, value_name = "WxH", default_value = "1000x667", value_parser = photo_size)]
    size: (usize, usize),
    /// How often every photo is seen
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = values::count)]
    epochs: u32,
    /// Rank of the adapters on q, k, v and o
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = values::count)]
    rank: u32,
    /// Photos computed together
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = values::count)]
    batch_size: u32,
    /// The device's peak, in 10^12 operations a second: MFU is then given
    #[arg(long, value_name = "X", value_parser = values::positive)]
    peak_tflops: Option<f64>,
    /// Add a line per run to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// The columns of --csv.
const HEAD: &str = "date,device,model,photos,test,width,height,epochs,rank,batch_size,run,load_s,preprocess_s,vision_s,\
                    steps_s,rest_s,score_s,total_s,steps,tokens,tokens_per_second,mfu\n";

/// Errors: a file that is there and no table of this bench, to which no line may be added.
fn check_table(file: &Path) -> Result<()> {
    let error = |e| Error::io("read", file, e);
    let mut head = Vec::new();
    let Some(found) = input::if_there(input::open(file))? else { return Ok(()) };
    found.take(HEAD.len() as u64).read_to_end(&mut head).map_err(error)?;
    match head == HEAD.as_bytes() {
        true => Ok(()),
        false => {
            Err(Error::file(file, "is no table of this bench, whose columns it would begin with; name another file"))
        }
    }
}

/// What can be drawn.
fn photo_size(text: &str) -> Result<(usize, usize), String> {
    let (width, height) = values::size(text)?;
    match [width, height].iter().all(|side| (16..=8192).contains(side)) {
        true => Ok((width, height)),
        false => Err("wanted two sides of 16 to 8192 pixels, such as 1000x667".into()),
    }
}

impl OneDollar {
    pub fn run(&self) -> Result<()> {
        Compute::check(self.device)?;
        self.csv.as_deref().map_or(Ok(()), check_table)?;
        let _lock = FolderLock::create(&self.out)?;
        output::holds(&self.out, MARK, "bench one-dollar")?;
        output::mark(&self.out, MARK, &json!({"bench": "one-dollar"}))?;
        let photos = self.photos()?;
        let model = self.model()?;
        let recipe = self.out.join("one-dollar.toml");
        atomic::write_file(&recipe, |out| out.write(RECIPE.as_bytes()))?;
        let mut sets = Vec::new();
        for part in ["train", "test"] {
            let found = import::folders::class_folders(&photos.join(part))?;
            let lines = import::lines(&found.photos, Some(PROMPT), &self.out)?;
            let file = self.out.join(format!("{part}.jsonl"));
            atomic::write_file(&file, |out| lines.iter().try_for_each(|l| out.write(format!("{l}\n").as_bytes())))?;
            sets.push((file, found.photos));
        }
        let [(train, train_photos), (test, _)] = &sets[..] else { return Ok(()) };
        let preprocess = self.preprocess(&model, train)?;
        let mut compute = vec!["--device".to_string(), self.device.to_string()];
        compute.extend(self.precision.iter().flat_map(|p| ["--precision".to_string(), p.dtype().to_string()]));
        let flags = [
            ("--epochs", self.epochs.to_string()),
            ("--rank", self.rank.to_string()),
            ("--batch-size", self.batch_size.to_string()),
        ];
        let job = Job {
            model: &model,
            recipe: &recipe,
            train,
            test,
            photo: &train_photos[0].path,
            prompt: PROMPT,
            out: self.out.clone(),
            batch_size: self.batch_size,
            flags: flags.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]).collect(),
            compute,
        };
        interrupt::watch_beside_commands();
        let (cold, warm) = (job.run()?, job.run()?);
        self.report(&Config::read(&model)?, preprocess, &cold, &warm)
    }

    /// The drawn photos, in a folder that names all that they depend on.
    fn photos(&self) -> Result<PathBuf> {
        let (width, height) = self.size;
        let (train, test) = (self.photos as usize, self.test as usize);
        let dir = self.out.join(format!("photos-{width}x{height}-{train}-{test}"));
        if !dir.exists() {
            let set = Set { train, test, planted: 0, width, height, seed: 0 };
            let mut bar = Progress::new("photos drawn");
            atomic::write_folder(&dir, |dir| write_set(dir, &set, &mut |done, all| bar.at(done, all)).map(|_| ()))?;
        }
        Ok(dir)
    }

    /// The checkpoint folder; random weights are made once.
    fn model(&self) -> Result<PathBuf> {
        if let Some(model) = &self.model {
            return Ok(model.clone());
        }
        let name = self.shape.name();
        let (config, model) = (self.out.join(format!("config-{name}")), self.out.join(format!("random-{name}")));
        if !config.exists() {
            self.shape.write(&config)?;
        }
        if !model.exists() {
            let options = Options { seed: 0, dtype: DType::Bf16, shard_bytes: save::SHARD_BYTES };
            let mut bar = Progress::new("bytes of random weights");
            init::init(&config, None, &model, options, &mut |done, all| bar.at(done, all))?;
        }
        Ok(model)
    }

    /// Seconds to decode, resize and cut every training photo, on all cores.
    fn preprocess(&self, model: &Path, train: &Path) -> Result<f64> {
        let config = Config::read(model)?;
        let preparer = Preparer::open(model, &config, read_patch_spec(model)?)?;
        let set = read_dataset(train, None, OnBad::Fail)?;
        let start = Instant::now();
        set.samples.par_iter().try_for_each(|s| preparer.prepare(&s.conversation, Ending::Complete).map(|_| ()))?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn report(&self, config: &Config, preprocess: f64, cold: &Times, warm: &Times) -> Result<()> {
        let per_token = mfu::flops_per_token(config, false);
        let rate = |t: &Times| per_token * t.tokens_per_second();
        let mfu = |t: &Times| self.peak_tflops.map(|peak| mfu::mfu(per_token, t.tokens_per_second(), peak * 1e12));
        let parameters = Counts::of(config).parameters();
        let name = self.model.as_ref().map_or(self.shape.name().to_string(), |m| m.display().to_string());
        if let Some(file) = &self.csv {
            self.add_lines(file, &name, preprocess, &[("cold", cold, mfu(cold)), ("warm", warm, mfu(warm))])?;
        }
        if self.json {
            let run = |t: &Times| {
                let mut run = t.json();
                run["tflops"] = json!(rate(t) / 1e12);
                run["mfu"] = json!(mfu(t));
                run
            };
            return crate::cli::print_json(&json!({
                "model": name, "parameters": parameters, "device": self.device, "photos": self.photos,
                "test": self.test, "size": [self.size.0, self.size.1], "epochs": self.epochs, "rank": self.rank,
                "batch_size": self.batch_size, "preprocess_seconds": preprocess, "cold": run(cold), "warm": run(warm),
            }));
        }
        let mut said = format!(
            "{name}, {parameters} parameters, --device {}; {} of {}x{}, {}, rank {}, batches of {}\n\n",
            self.device,
            counted(self.photos, "photo", "photos"),
            self.size.0,
            self.size.1,
            counted(self.epochs, "epoch", "epochs"),
            self.rank,
            self.batch_size
        );
        said += &job::table(cold, warm);
        _ = writeln!(said, "\npreprocessing all photos alone: {preprocess:.2} s");
        _ = writeln!(said, "{}, {} tokens", counted(warm.n_steps, "step", "steps"), warm.tokens);
        for (name, t) in [("cold", cold), ("warm", warm)] {
            _ = write!(said, "{name}: {:.0} tokens/s, {:.4} TFLOP/s", t.tokens_per_second(), rate(t) / 1e12);
            _ = writeln!(said, "{}", mfu(t).map_or(String::new(), |m| format!(", MFU {:.1} %", 100.0 * m)));
        }
        crate::cli::print(&said)
    }

    fn add_lines(&self, file: &Path, name: &str, preprocess: f64, runs: &[(&str, &Times, Option<f64>)]) -> Result<()> {
        let error = |e| Error::io("write", file, e);
        let fresh = !file.exists();
        let mut out = std::fs::OpenOptions::new().create(true).append(true).open(file).map_err(error)?;
        let mut lines = String::new();
        if fresh {
            lines += HEAD;
        }
        for (run, t, mfu) in runs {
            let optional = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
            _ = writeln!(
                lines,
                "{},{},\"{}\",{},{},{},{},{},{},{},{run},{:.3},{preprocess:.3},{},{:.3},{:.3},{:.3},{:.3},{},{},{:.1},{}",
                today(),
                self.device,
                name.replace('"', "\"\""),
                self.photos,
                self.test,
                self.size.0,
                self.size.1,
                self.epochs,
                self.rank,
                self.batch_size,
                t.load,
                optional(t.vision),
                t.steps,
                t.rest,
                t.score,
                t.total,
                t.n_steps,
                t.tokens,
                t.tokens_per_second(),
                optional(mfu.as_ref().copied()),
            );
        }
        out.write_all(lines.as_bytes()).map_err(error)
    }
}
