//! What a run is asked for: every flag of `vlm train` that has a say in its result, with its default.
//!
//! Start at [`Settings`]; [`super::config_file`] reads and writes it as TOML, the flags on top.

use super::forms;
use super::order::{Length, Sequence};
use super::schedule::{Decay, Schedule, WarmUp};
use crate::base::{Error, Precision, Result};
use crate::data::image::PatchSpec;
use crate::qwen3vl::adapter::AdapterConfig;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What LoRA is put on where nothing is said: every linear map of the language model.
pub const TARGET_MODULES: &str = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj";
pub const RANK: usize = 16;
pub const ALPHA: f64 = 32.0;
/// Where an overfit check gives up.
const OVERFIT_STEPS: u64 = 200;

/// Where to compute, by the names of --device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// CUDA where it works, else the CPU
    Auto,
    Cpu,
    Cuda,
    /// The GPU kernels, run on the CPU
    Emulated,
}

impl std::fmt::Display for DeviceChoice {
    /// As the flag has it.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// The names are those of the flags, here and in TOML (with `-` for `_`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Paths are absolute once [`Settings::finish`] has seen them.
    pub model: PathBuf,
    pub data: PathBuf,
    pub out: PathBuf,
    /// The question to lines of an image and a label.
    pub prompt: Option<String>,
    pub skip_bad: bool,
    pub device: DeviceChoice,
    /// None: what suits the device.
    pub precision: Option<Precision>,
    /// Bytes of the device's memory that may be used.
    #[serde(deserialize_with = "forms::bytes_in_file")]
    pub memory: Option<u64>,
    pub min_pixels: Option<u64>,
    pub max_pixels: Option<u64>,

    /// Trains every tensor of the model and no adapter.
    pub full: bool,
    /// These four are None where nobody said anything: then `init_adapter` decides, else the defaults.
    pub rank: Option<usize>,
    pub alpha: Option<f64>,
    pub rslora: Option<bool>,
    pub target_modules: Option<String>,
    pub dropout: f64,
    pub lora_vision: bool,
    pub lora_merger: bool,
    pub init_adapter: Option<PathBuf>,

    pub learning_rate: f64,
    /// Of the tower and the mergers; None: `learning_rate`.
    pub vision_learning_rate: Option<f64>,
    pub weight_decay: f64,
    #[serde(deserialize_with = "forms::betas_in_file")]
    pub betas: [f64; 2],
    pub schedule: Decay,
    /// At most one of the two.
    pub warmup_steps: Option<u64>,
    pub warmup_ratio: Option<f64>,
    /// 0: gradients are not clipped.
    pub max_grad_norm: f64,

    /// Samples of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub grad_accumulation: usize,
    /// Exactly one of the two, once [`Settings::finish`] has been called.
    pub epochs: Option<u64>,
    pub max_steps: Option<u64>,
    pub seed: u64,
    pub no_shuffle: bool,
    pub subset: Option<usize>,
    pub overfit: Option<usize>,

    pub eval_data: Option<PathBuf>,
    /// Steps; None: after every epoch.
    pub eval_every: Option<u64>,
    /// Evaluations without a better score.
    pub early_stop: Option<u64>,
    /// Steps; None: after every epoch.
    pub save_every: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            model: PathBuf::new(),
            data: PathBuf::new(),
            out: PathBuf::new(),
            prompt: None,
            skip_bad: false,
            device: DeviceChoice::Auto,
            precision: None,
            memory: None,
            min_pixels: None,
            max_pixels: None,
            full: false,
            rank: None,
            alpha: None,
            rslora: None,
            target_modules: None,
            dropout: 0.0,
            lora_vision: false,
            lora_merger: false,
            init_adapter: None,
            learning_rate: 2e-4,
            vision_learning_rate: None,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            schedule: Decay::Cosine,
            warmup_steps: None,
            warmup_ratio: None,
            max_grad_norm: 1.0,
            batch_size: 4,
            grad_accumulation: 1,
            epochs: None,
            max_steps: None,
            seed: 0,
            no_shuffle: false,
            subset: None,
            overfit: None,
            eval_data: None,
            eval_every: None,
            early_stop: None,
            save_every: None,
        }
    }
}

impl Settings {
    pub fn length(&self) -> Length {
        match (self.max_steps, self.epochs) {
            (Some(steps), _) => Length::Steps(steps),
            (None, epochs) => Length::Epochs(epochs.unwrap_or(3)),
        }
    }

    pub fn sequence(&self) -> Sequence {
        if self.no_shuffle { Sequence::File } else { Sequence::Shuffled { seed: self.seed } }
    }

    /// The learning rates of a run of so many steps.
    pub fn schedule(&self, total_steps: u64) -> Schedule {
        Schedule::new(self.schedule, self.learning_rate, self.warm_up(), total_steps)
    }

    /// The same for the vision tower and the mergers.
    pub fn vision_schedule(&self, total_steps: u64) -> Schedule {
        let peak = self.vision_learning_rate.unwrap_or(self.learning_rate);
        Schedule::new(self.schedule, peak, self.warm_up(), total_steps)
    }

    fn warm_up(&self) -> WarmUp {
        self.warmup_ratio.map_or(WarmUp::Steps(self.warmup_steps.unwrap_or(0)), WarmUp::Ratio)
    }

    pub fn max_norm(&self) -> Option<f64> {
        (self.max_grad_norm > 0.0).then_some(self.max_grad_norm)
    }

    /// The same with what is used in the place of every default: two runs that do the same have the same, however much of it
    /// was spelled out. `adapter` is what is trained, None with `full`; `pixels` has the limits that hold; an epoch has
    /// `steps_per_epoch`.
    pub fn resolved(&self, adapter: Option<&AdapterConfig>, pixels: &PatchSpec, steps_per_epoch: u64) -> Settings {
        let mut resolved = self.clone();
        if let Some(adapter) = adapter {
            resolved.rank = Some(adapter.rank);
            resolved.alpha = Some(adapter.alpha);
            resolved.rslora = Some(adapter.use_rslora);
            if self.init_adapter.is_some() {
                // its modules are trained, whether they were named or not
                (resolved.target_modules, resolved.lora_vision, resolved.lora_merger) = (None, false, false);
            } else {
                resolved.target_modules.get_or_insert_with(|| TARGET_MODULES.into());
            }
        }
        resolved.min_pixels = Some(pixels.min_pixels);
        resolved.max_pixels = Some(pixels.max_pixels);
        resolved.vision_learning_rate.get_or_insert(self.learning_rate);
        if self.warmup_ratio.is_none() {
            resolved.warmup_steps.get_or_insert(0);
        }
        if self.eval_data.is_some() {
            resolved.eval_every.get_or_insert(steps_per_epoch);
        }
        resolved.save_every.get_or_insert(steps_per_epoch);
        resolved
    }

    /// Settles what depends on several settings, makes paths absolute and checks all of it. Errors: wrong usage, one
    /// sentence with the flag's name and value.
    pub fn finish(mut self) -> Result<Settings> {
        self.check_values().map_err(Error::Usage)?;
        self.check_together().map_err(Error::Usage)?;
        // whatever the model's own limits are
        PatchSpec::default().limited(self.min_pixels, self.max_pixels)?;
        if self.overfit.is_some() {
            self.schedule = Decay::Constant;
            self.max_steps.get_or_insert(OVERFIT_STEPS);
        } else if self.max_steps.is_none() {
            self.epochs.get_or_insert(3);
        }
        let optional = [("eval-data", self.eval_data.as_mut()), ("init-adapter", self.init_adapter.as_mut())];
        let needed = [("model", &mut self.model), ("data", &mut self.data), ("out", &mut self.out)];
        let optional = optional.into_iter().filter_map(|(name, path)| Some((name, path?)));
        for (name, path) in needed.into_iter().chain(optional) {
            *path = absolute(path)?;
            writable(name, path)?;
        }
        Ok(self)
    }

    fn check_values(&self) -> Result<(), String> {
        let at_least_one = [
            ("rank", self.rank.map(|n| n as u64)),
            ("batch-size", Some(self.batch_size as u64)),
            ("grad-accumulation", Some(self.grad_accumulation as u64)),
            ("epochs", self.epochs),
            ("max-steps", self.max_steps),
            ("subset", self.subset.map(|n| n as u64)),
            ("overfit", self.overfit.map(|n| n as u64)),
            ("eval-every", self.eval_every),
            ("early-stop", self.early_stop),
            ("save-every", self.save_every),
            ("memory", self.memory),
        ];
        if let Some((name, _)) = at_least_one.iter().find(|(_, n)| *n == Some(0)) {
            return Err(format!("--{name} 0: wanted 1 or more"));
        }
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let below_one = |x: f64| (0.0..1.0).contains(&x);
        let numbers = [
            ("alpha", self.alpha, (|x| x.is_finite() && x > 0.0) as fn(f64) -> bool, "a number above 0"),
            ("dropout", Some(self.dropout), below_one, "from 0 to below 1"),
            ("learning-rate", Some(self.learning_rate), |x| x.is_finite() && x > 0.0, "a number above 0"),
            ("vision-learning-rate", self.vision_learning_rate, not_negative, "0 or more"),
            ("weight-decay", Some(self.weight_decay), not_negative, "0 or more"),
            ("betas", Some(self.betas[0]), below_one, "two numbers from 0 to below 1"),
            ("betas", Some(self.betas[1]), below_one, "two numbers from 0 to below 1"),
            ("warmup-ratio", self.warmup_ratio, |x| (0.0..=1.0).contains(&x), "from 0 to 1"),
            ("max-grad-norm", Some(self.max_grad_norm), not_negative, "0 (no clipping) or more"),
        ];
        for (name, value, good, wanted) in numbers {
            if let Some(x) = value.filter(|x| !good(*x)) {
                return Err(format!("--{name} {x}: wanted {wanted}"));
            }
        }
        Ok(())
    }

    fn check_together(&self) -> Result<(), String> {
        for (name, path) in [("model", &self.model), ("data", &self.data), ("out", &self.out)] {
            if path.as_os_str().is_empty() {
                return Err(format!("--{name} is missing: give the flag, or `{name}` in the file of --config"));
            }
        }
        let given = self.given();
        let excluded: [(&str, &[&str], &str); 6] = [
            ("epochs", &["max-steps"], "both say how long the run is"),
            ("warmup-steps", &["warmup-ratio"], "both say how long the warm-up is"),
            (
                "full",
                &["rank", "alpha", "dropout", "rslora", "target-modules", "lora-vision", "lora-merger", "init-adapter"],
                "every tensor is trained itself, without an adapter",
            ),
            ("overfit", &["subset", "eval-data", "early-stop"], "the check is about a few samples that it is to learn"),
            ("overfit", &["epochs"], "the check runs until the loss is near 0; --max-steps bounds it"),
            ("overfit", &["warmup-steps", "warmup-ratio"], "the check has no schedule"),
        ];
        for (one, others, why) in excluded {
            if let Some(other) = others.iter().find(|other| given.contains(other)).filter(|_| given.contains(&one)) {
                return Err(format!("--{one} and --{other}: {why}; keep one"));
            }
        }
        for name in ["eval-every", "early-stop"] {
            if given.contains(&name) && self.eval_data.is_none() {
                return Err(format!("--{name} without --eval-data: there is nothing to evaluate on"));
            }
        }
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if self.eval_data.as_ref().is_some_and(|file| real(file) == real(&self.data)) {
            return Err("--eval-data is the training data: what is learnt cannot tell which adapter is best".into());
        }
        Ok(())
    }

    /// Of the settings that exclude others, those that differ from doing nothing.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("epochs", self.epochs.is_some()),
            ("max-steps", self.max_steps.is_some()),
            ("warmup-steps", self.warmup_steps.is_some()),
            ("warmup-ratio", self.warmup_ratio.is_some()),
            ("full", self.full),
            ("rank", self.rank.is_some()),
            ("alpha", self.alpha.is_some()),
            ("dropout", self.dropout != 0.0),
            ("rslora", self.rslora.is_some()),
            ("target-modules", self.target_modules.is_some()),
            ("lora-vision", self.lora_vision),
            ("lora-merger", self.lora_merger),
            ("init-adapter", self.init_adapter.is_some()),
            ("overfit", self.overfit.is_some()),
            ("subset", self.subset.is_some()),
            ("eval-data", self.eval_data.is_some()),
            ("eval-every", self.eval_every.is_some()),
            ("early-stop", self.early_stop.is_some()),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

/// Errors: the path of the setting `name` is not UTF-8, as a TOML file has to be: the run's config.toml could not name it.
pub fn writable(name: &str, path: &Path) -> Result<()> {
    let said = "config.toml cannot hold this path, because it is not UTF-8; rename it, or give a link to it";
    path.to_str().map(|_| ()).ok_or_else(|| Error::Usage(format!("--{name} {}: {said}", path.display())))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find the whole path of", path, e))
}
