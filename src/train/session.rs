//! A run from its settings to its adapter: the loop over steps, with evaluation, checkpoints and an early end.

use super::checkpoint::Position;
use super::examples::{Kept, Samples};
use super::fingerprint;
use super::lora::Lora;
use super::metrics::{EvalMetrics, StepMetrics};
use super::order::{Order, Spread, Step, pick};
use super::run_folder::{RunFolder, Start, identity_of};
use super::settings::Settings;
use super::step::{Optimizer, Trainer};
use crate::base::{Error, Precision, Result};
use crate::classify::evaluate::{self, Classes, MOST_CHOICES, Method};
use crate::data::dataset::{OnBad, Sample, read_dataset};
use crate::device::Device;
use crate::infer::engine::Engine;
use crate::io::{HostData, HostTensor, host_tensor};
use crate::qwen3vl::adapter::Adapter;
use crate::qwen3vl::adapter_write::{Pair, write_adapter};
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::model::Model;
use crate::qwen3vl::prepare::Preparer;
use crate::qwen3vl::processor::read_patch_spec;
use crate::qwen3vl::save::save_trained;
use crate::qwen3vl::trainable::Trainable;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// An overfit check is passed when the loss of a step is below this.
const OVERFIT_LOSS: f64 = 0.01;

/// What the caller is told on the way, and asked.
pub struct Watch<'a> {
    pub said: &'a mut dyn FnMut(Said),
    /// Whether to stop after the step that is running.
    pub interrupted: &'a dyn Fn() -> bool,
}

pub enum Said {
    /// A sentence for a person.
    Note(String),
    Step(StepMetrics, u64),
    Eval(EvalMetrics),
}

/// How to begin, besides the settings.
pub struct Begin {
    pub start: Start,
    /// Write the gradients of step 1 here.
    pub first_gradients: Option<PathBuf>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// All steps done, or stopped early by its evaluations.
    Done { steps: u64, loss: Option<f64> },
    /// Saved after a signal; `--resume` goes on.
    Interrupted { steps: u64 },
}

/// Where the best evaluation was.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Best {
    step: u64,
    correct: u64,
    /// Evaluations since.
    since: u64,
}

/// What a run trains, and in what form its result is written.
enum Kind {
    Lora(Box<Lora>),
    Full,
}

struct Session<'a> {
    settings: &'a Settings,
    checkpoint: &'a Checkpoint,
    kind: Kind,
    trainer: Trainer,
    folder: RunFolder,
    evaluation: Option<(PathBuf, Vec<Sample>, Vec<String>)>,
    best: Option<Best>,
}

/// Trains as `settings` say.
pub fn train(
    settings: &Settings,
    device: Device,
    precision: Precision,
    begin: &Begin,
    watch: &mut Watch,
) -> Result<End> {
    if settings.dropout > 0.0 {
        let said = format!("--dropout {}: adapters are trained without dropout; leave it at 0", settings.dropout);
        return Err(Error::Unsupported(said));
    }
    let checkpoint = Checkpoint::open(&settings.model)?;
    let mut spec = read_patch_spec(&settings.model)?;
    spec.min_pixels = settings.min_pixels.unwrap_or(spec.min_pixels);
    spec.max_pixels = settings.max_pixels.unwrap_or(spec.max_pixels);
    let preparer = Preparer::open(&settings.model, &checkpoint.config, spec)?;
    let on_bad = if settings.skip_bad { OnBad::Skip } else { OnBad::Fail };
    let data = read_dataset(&settings.data, settings.prompt.as_deref(), on_bad)?;
    data.skipped.iter().for_each(|e| (watch.said)(Said::Note(format!("left out: {e}"))));
    let samples = chosen(settings, data.samples)?;
    let evaluation = match &settings.eval_data {
        Some(file) => {
            let samples = read_dataset(file, settings.prompt.as_deref(), on_bad)?.samples;
            let classes = Classes::of(file, &samples, false)?.names;
            if classes.len() > MOST_CHOICES {
                let said = format!("has {} answers; a run is evaluated on at most {MOST_CHOICES}", classes.len());
                return Err(Error::file(file, said));
            }
            Some((file.clone(), samples, classes))
        }
        None => None,
    };
    let mut inputs = fingerprint::Fingerprints::new();
    inputs.insert("the model".into(), fingerprint::of_model(&settings.model)?);
    inputs.insert("the training set".into(), fingerprint::of_file(&settings.data)?);
    inputs.insert("the photos of the training set".into(), fingerprint::of_photos(&samples)?);
    let identity = identity_of(settings, inputs)?;
    let init = settings.init_adapter.as_ref().map(|dir| Adapter::open(dir, &checkpoint.config)).transpose()?;
    let (kind, trainable) = if settings.full {
        (Kind::Full, Trainable::full(&checkpoint))
    } else {
        let lora = Lora::resolve(settings, init.as_ref().map(|a| &a.config), &checkpoint.config)?;
        let trainable = Trainable::lora(&lora.modules, lora.config.rank, lora.scale);
        (Kind::Lora(Box::new(lora)), trainable)
    };
    let mut device = device;
    trainable.allocate(&mut device)?;
    match (&kind, &init) {
        (Kind::Full, _) => trainable.start_full(&mut device, &checkpoint)?,
        (Kind::Lora(_), Some(init)) => trainable.start_from(&mut device, init)?,
        (Kind::Lora(_), None) => trainable.start_lora(&mut device, settings.seed)?,
    }
    let opened = RunFolder::open(settings, identity, begin.start, now())?;
    opened.warnings.iter().for_each(|w| (watch.said)(Said::Note(w.clone())));
    let (mut done, mut best) = (0, None);
    if let Some(from) = &opened.resumed {
        let n = trainable.values.shape.elements();
        let (mut values, mut first, mut second) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        from.read_into(&mut [("values", &mut values), ("first", &mut first), ("second", &mut second)])?;
        device.memory().write_f32(trainable.values, &values)?;
        device.memory().write_f32(trainable.first, &first)?;
        device.memory().write_f32(trainable.second, &second)?;
        done = from.about.position.step;
        best = serde_json::from_value(from.about.state["best"].clone()).unwrap_or_default();
        (watch.said)(Said::Note(format!("goes on after step {done}")));
    }
    let order = Order::new(
        samples.len(),
        settings.batch_size,
        settings.grad_accumulation,
        settings.sequence(),
        settings.length(),
    )?;
    let model = Model::training(&checkpoint, &trainable)?;
    let budget = settings.memory.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let trainer = Trainer { engine: Engine::new(model, device, precision), trainable, budget };
    (watch.said)(Said::Note(format!(
        "{} samples, {} steps, {} trained parameters in {} tensors",
        samples.len(),
        order.total_steps(),
        trainer.trainable.parameters(),
        trainer.trainable.entries.len()
    )));
    let mut session =
        Session { settings, checkpoint: &checkpoint, kind, trainer, folder: opened.folder, evaluation, best };
    let samples = Samples { file: &settings.data, all: &samples, preparer: &preparer };
    session.run(&samples, &order, done, begin, watch)
}

/// The samples of `--subset` or `--overfit`, or all.
fn chosen(settings: &Settings, all: Vec<Sample>) -> Result<Vec<Sample>> {
    let labels: Vec<Option<&str>> = all.iter().map(|s| s.label.as_deref()).collect();
    let picked = match (settings.overfit, settings.subset) {
        (Some(n), _) => pick(&labels, n, Spread::Even, settings.seed, "--overfit")?,
        (None, Some(n)) => pick(&labels, n, Spread::Stratified, settings.seed, "--subset")?,
        (None, None) => return Ok(all),
    };
    Ok(picked.into_iter().map(|at| all[at].clone()).collect())
}

/// Seconds since 1970, for TensorBoard.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

impl Session<'_> {
    fn run(&mut self, samples: &Samples, order: &Order, done: u64, begin: &Begin, watch: &mut Watch) -> Result<End> {
        let keep = self.trainer.keeps_features();
        let mut kept = Kept::new(samples.all.len(), keep);
        let total = order.total_steps();
        let per_epoch = order.steps_per_epoch();
        let (mut at, mut loss) = (done, None);
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            scope.spawn(move || samples.ahead(order, done, keep, send));
            for prepared in receive {
                let (step, fresh) = prepared?;
                let start = Instant::now();
                kept.take(&mut self.trainer, fresh)?;
                let metrics = self.step(samples, order, &step, &kept, start, begin)?;
                kept.release(&step);
                self.folder.log(&metrics, now())?;
                (watch.said)(Said::Step(metrics, total));
                (at, loss) = (step.number, Some(metrics.loss));
                let overfitted = self.settings.overfit.is_some() && metrics.loss < OVERFIT_LOSS;
                let last = at == total || overfitted;
                let ends_epoch = at.is_multiple_of(per_epoch);
                let mut stop = overfitted;
                if last || self.settings.eval_every.map_or(ends_epoch, |n| at.is_multiple_of(n)) {
                    stop |= self.evaluate(samples.preparer, &step, watch)?;
                }
                let interrupted = (watch.interrupted)();
                let due = self.settings.save_every.map_or(ends_epoch, |n| at.is_multiple_of(n));
                if due || last || stop || interrupted {
                    self.save(&step)?;
                }
                if interrupted && !last && !stop {
                    return Ok(End::Interrupted { steps: at });
                }
                if stop {
                    break;
                }
            }
            if self.best.is_none() {
                self.write_result()?;
            }
            if let (Some(n), Some(loss)) = (self.settings.overfit, loss)
                && loss >= OVERFIT_LOSS
            {
                return Err(Error::Unsupported(format!(
                    "the overfit check failed: after {at} steps the loss on {n} samples is {loss:.4}, not below \
                     {OVERFIT_LOSS}; raise --learning-rate, --rank or --max-steps, or look for labels that contradict \
                     each other"
                )));
            }
            Ok(End::Done { steps: at, loss })
        })
    }

    /// One step; what it logs.
    fn step(
        &mut self,
        samples: &Samples,
        order: &Order,
        step: &Step,
        kept: &Kept,
        start: Instant,
        begin: &Begin,
    ) -> Result<StepMetrics> {
        let batches: Vec<Vec<_>> = step.micro_batches.iter().map(|batch| kept.of(batch)).collect();
        let label_tokens: usize = batches.iter().flatten().map(|e| e.label_tokens()).sum();
        let tokens: usize = batches.iter().flatten().map(|e| e.sequence.ids.len()).sum();
        self.trainer.zero_gradients()?;
        let mut loss = 0.0;
        for (examples, batch) in batches.iter().zip(&step.micro_batches) {
            let losses = self.trainer.micro_batch(examples, 1.0 / label_tokens as f32)?;
            if let Some(bad) = losses.iter().position(|l| !l.is_finite()) {
                let line = samples.all[batch[bad]].line;
                return Err(Error::line(
                    samples.file,
                    line,
                    format!(
                        "the loss of this sample is {} at step {}: lower --learning-rate, or look at the sample; the \
                         last checkpoint is kept",
                        losses[bad], step.number
                    ),
                ));
            }
            loss += losses.iter().sum::<f64>();
        }
        let grad_norm = self.trainer.gradient_norm()?;
        if step.number == 1
            && let Some(file) = &begin.first_gradients
        {
            host_tensor::write(file, &self.named_gradients()?)?;
        }
        let total = order.total_steps();
        let lr = self.settings.schedule(total).lr(step.number);
        self.trainer.update(&Optimizer {
            number: u32::try_from(step.number).unwrap_or(u32::MAX),
            learning_rate: lr,
            vision_learning_rate: self.settings.vision_schedule(total).lr(step.number),
            betas: self.settings.betas,
            eps: 1e-8,
            weight_decay: self.settings.weight_decay,
            max_norm: self.settings.max_norm(),
        })?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(StepMetrics {
            step: step.number,
            epoch: step.epochs_done,
            loss: loss / label_tokens as f64,
            lr,
            grad_norm,
            label_tokens: label_tokens as u64,
            tokens: tokens as u64,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            mfu: None,
        })
    }

    /// Every trained tensor's gradient under the name that files give it.
    fn named_gradients(&mut self) -> Result<Vec<(String, HostTensor)>> {
        let prefix = match self.kind {
            Kind::Lora(_) => "base_model.model.",
            Kind::Full => "",
        };
        let gradients = self.trainer.gradients()?;
        Ok(gradients.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect())
    }

    /// Scores the evaluation set; keeps the result where it is the best so far. True: stop here.
    fn evaluate(&mut self, preparer: &Preparer, step: &Step, watch: &mut Watch) -> Result<bool> {
        let Some((file, samples, classes)) = &self.evaluation else { return Ok(false) };
        let start = Instant::now();
        let method = Method::Choices(classes.clone());
        let (mut correct, mut n) = (0, 0);
        let batch = self.settings.batch_size;
        evaluate::evaluate(&mut self.trainer.engine, preparer, file, samples, &method, batch, &mut |p| {
            correct += p.right as u64;
            n += 1;
            Ok(true)
        })?;
        let metrics = EvalMetrics {
            step: step.number,
            epoch: step.epochs_done,
            eval_accuracy: correct as f64 / n as f64,
            eval_correct: correct,
            eval_samples: n,
            eval_loss: None,
            eval_seconds: start.elapsed().as_secs_f64(),
        };
        self.folder.log(&metrics, now())?;
        (watch.said)(Said::Eval(metrics));
        let better = self.best.is_none_or(|best| correct > best.correct);
        self.best = Some(match self.best {
            Some(best) if !better => Best { since: best.since + 1, ..best },
            _ => Best { step: step.number, correct, since: 0 },
        });
        if better {
            self.write_result()?;
        }
        let since = self.best.map_or(0, |b| b.since);
        Ok(self.settings.early_stop.is_some_and(|n| since >= n))
    }

    fn save(&mut self, step: &Step) -> Result<()> {
        let memory = self.trainer.engine.device.memory();
        let t = &self.trainer.trainable;
        let (values, first, second) =
            (memory.read_f32(t.values)?, memory.read_f32(t.first)?, memory.read_f32(t.second)?);
        let position = Position { step: step.number, epoch: step.epoch, in_epoch: step.in_epoch };
        let state = json!({"best": self.best});
        self.folder.save(position, state, &[("values", &values), ("first", &first), ("second", &second)])
    }

    /// Writes the trained adapter, or the trained model, into the run's folder.
    fn write_result(&mut self) -> Result<()> {
        let dir = self.folder.dir().to_path_buf();
        let tensors = self.trainer.values()?;
        match &self.kind {
            Kind::Lora(lora) => {
                let values = |name: String| {
                    tensors.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, t)| match &t.data {
                        HostData::F32(values) => values,
                        HostData::I64(_) => &[],
                    })
                };
                let pairs: Vec<Pair> = lora
                    .modules
                    .iter()
                    .map(|m| Pair {
                        path: &m.path,
                        rank: lora.config.rank,
                        inputs: m.inputs,
                        outputs: m.outputs,
                        a: values(format!("{}.lora_A.weight", m.path)),
                        b: values(format!("{}.lora_B.weight", m.path)),
                    })
                    .collect();
                write_adapter(&dir, &lora.config, &self.settings.model.display().to_string(), &pairs)
            }
            Kind::Full => save_trained(self.checkpoint, &dir.join("model"), &|name| {
                tensors.iter().find(|(n, _)| n == name).and_then(|(_, t)| match &t.data {
                    HostData::F32(values) => Some(&values[..]),
                    HostData::I64(_) => None,
                })
            }),
        }
    }
}

/// Where `--full` leaves its model, below the run's folder.
pub fn model_folder(out: &Path) -> PathBuf {
    out.join("model")
}
