//! A run from its settings to its adapter: the loop over steps, with evaluation, checkpoints and an early end.

use super::checkpoint::Position;
use super::examples::{Fresh, Kept, Samples};
use super::features::Store;
use super::fingerprint;
use super::lora::Lora;
use super::metrics::{EvalMetrics, StepMetrics, words_are_timed};
use super::mfu;
use super::order::{Order, Spread, Step, pick};
use super::plan::{Plan, Planner, Roof};
use super::run_folder::{self, RunFolder, Start, identity_of};
use super::sets::Sets;
use super::settings::Settings;
use super::step::{Example, Optimizer, Trainer};
use crate::base::rng::Stream;
use crate::base::{Error, Precision, Result, counted};
use crate::classify::evaluate::{self, Classes, MOST_CHOICES, Method};
use crate::data::dataset::Sample;
use crate::device::{Device, Facts};
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
use rayon::prelude::*;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// An overfit check is passed when the loss of a step is below this.
const OVERFIT_LOSS: f64 = 0.01;

/// Who wrote a file of the first step's gradients.
pub const GRADIENTS: &str = "vlm train --dump-first-gradients";

/// The random numbers of what drops out ("drop").
const DROPOUT: u64 = 0x6472_6f70;

/// What the caller is told on the way, and asked.
pub struct Watch<'a> {
    pub said: &'a mut dyn FnMut(Said),
    /// Whether to stop after the step that is running.
    pub interrupted: &'a dyn Fn() -> bool,
}

pub enum Said {
    /// A sentence for a person.
    Note(String),
    /// So many samples of so many have whole photos, or were left out.
    Checked(usize, usize),
    Step(StepMetrics, u64),
    Eval(EvalMetrics),
}

/// How to begin, besides the settings.
pub struct Begin {
    pub start: Start,
    /// Write the gradients of step 1 here.
    pub first_gradients: Option<PathBuf>,
    /// What an hour of this machine costs.
    pub dollars_per_hour: Option<f64>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// `best`: the step of the evaluation whose weights are kept, where there were evaluations.
    Done { steps: u64, loss: Option<f64>, why: Why, best: Option<u64> },
    /// Saved after a signal; `--resume` goes on.
    Interrupted { steps: u64 },
}

/// Why a run that is done ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// All its steps are done.
    Steps,
    /// The overfit check is passed: so many samples are learnt. Whether their answers, which are right, were looked at: they
    /// have to be a closed set.
    Passed { samples: usize, answered: bool },
    /// So many evaluations brought nothing better.
    Early { evaluations: u64 },
}

/// Where the best evaluation was.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Best {
    step: u64,
    correct: u64,
    /// Evaluations since.
    since: u64,
}

/// What a checkpoint holds beside the numbers.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct State {
    best: Option<Best>,
    below: u64,
    seconds: f64,
}

/// What a run trains, and in what form its result is written.
enum Kind {
    Lora(Box<Lora>),
    Full,
}

/// What a run stands on, read and checked, before anything is computed.
struct Inputs {
    checkpoint: Checkpoint,
    preparer: Preparer,
    samples: Vec<Sample>,
    evaluation: Option<Evaluation>,
    kind: Kind,
    /// The adapter to start from.
    init: Option<Adapter>,
    trainable: Trainable,
    order: Order,
}

/// A validation set and its answers.
struct Evaluation {
    file: PathBuf,
    samples: Vec<Sample>,
    classes: Vec<String>,
}

struct Session<'a> {
    settings: &'a Settings,
    checkpoint: &'a Checkpoint,
    kind: Kind,
    trainer: Trainer,
    features: Store,
    folder: RunFolder,
    evaluation: Option<Evaluation>,
    best: Option<Best>,
    /// Steps in a row whose loss passes an overfit check.
    below: u64,
    /// Steps so far that had photos.
    vision_steps: u32,
    /// Of earlier processes of this run.
    seconds_before: f64,
    started: Instant,
    dollars_per_hour: Option<f64>,
}

/// Trains as `settings` say. `sets` are those that earlier runs have read.
pub fn train(
    settings: &Settings,
    device: Device,
    precision: Precision,
    begin: &Begin,
    sets: &mut Sets,
    watch: &mut Watch,
) -> Result<End> {
    let started = Instant::now();
    run_folder::may_begin(&settings.out, begin.start)?;
    let Inputs { checkpoint, preparer, samples: all, evaluation, kind, init, trainable, order } =
        Inputs::read(settings, sets, watch)?;
    let most_tokens = checkpoint.config.text.max_position_embeddings;
    let samples = Samples { file: &settings.data, all: &all, preparer: &preparer, most_tokens };
    let model = Model::training(&checkpoint, &trainable)?;
    // before anything else that reads the photos: its errors name the line
    let measured = samples.measure()?;
    let identity = identity_of(settings, fingerprints(settings, &all, evaluation.as_ref())?)?;
    let facts = device.facts().cloned();
    let evaluated = measured_evaluation(evaluation.as_ref(), &preparer, most_tokens)?;
    let batch = settings.batch_size;
    let planner = Planner {
        model: &model,
        trainable: &trainable,
        precision,
        facts,
        measured: &measured,
        evaluated: &evaluated,
        batch,
    };
    let budget = budget(settings, &device);
    let plan = planner.plan(&order, budget, None)?;
    planner.refusal(&plan, budget, settings.memory.is_some(), settings.batch_size)?;
    if let Kind::Lora(_) = kind {
        planner.every_tensor_is_reached(&order)?;
    }
    drop(measured);
    let mut device = device;
    trainable.allocate(&mut device)?;
    match (&kind, &init) {
        (Kind::Full, _) => trainable.start_full(&mut device, &checkpoint)?,
        (Kind::Lora(_), Some(init)) => trainable.start_from(&mut device, init)?,
        (Kind::Lora(_), None) => trainable.start_lora(&mut device, settings.seed)?,
    }
    let opened = RunFolder::open(settings, identity, begin.start, now())?;
    opened.warnings.iter().for_each(|w| (watch.said)(Said::Note(w.clone())));
    let (mut done, mut state) = (0, State::default());
    if let Some(from) = &opened.resumed {
        let n = trainable.values.shape.elements();
        let (mut values, mut first, mut second) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        from.read_into(&mut [("values", &mut values), ("first", &mut first), ("second", &mut second)])?;
        device.memory().write_f32(trainable.values, &values)?;
        device.memory().write_f32(trainable.first, &first)?;
        device.memory().write_f32(trainable.second, &second)?;
        done = from.about.position.step;
        state = serde_json::from_value(from.about.state.clone()).unwrap_or_default();
        (watch.said)(Said::Note(format!("goes on after step {done}")));
    }
    let left = budget.saturating_sub(plan.fixed() + plan.features_bytes);
    let mut trainer = Trainer::new(Engine::new(model, device, precision), trainable, Some(left));
    (watch.said)(Said::Note(format!(
        "{}, {}, {} trained parameters in {}",
        counted(all.len(), "sample", "samples"),
        counted(order.total_steps(), "step", "steps"),
        trainer.trainable.parameters(),
        counted(trainer.trainable.entries.len(), "tensor", "tensors")
    )));
    if plan.recompute_level > 0 {
        (watch.said)(Said::Note(format!(
            "computes some values twice so that the activations fit: level {} of {}",
            plan.recompute_level, plan.recompute_levels
        )));
    }
    let features = Store::new(&mut trainer.engine.device, plan.features)?;
    let vision_steps = order.steps_after(0).take_while(|s| s.number <= done).filter(|s| samples.pictured(s)).count();
    let mut session = Session {
        vision_steps: u32::try_from(vision_steps).unwrap_or(u32::MAX),
        settings,
        checkpoint: &checkpoint,
        kind,
        trainer,
        features,
        folder: opened.folder,
        evaluation,
        best: state.best,
        below: state.below,
        seconds_before: state.seconds,
        started,
        dollars_per_hour: begin.dollars_per_hour,
    };
    session.run(&samples, &order, done, begin, watch)
}

/// What a run would need, without running it; `stated` is taken for what the device reaches, else it is timed.
pub fn dry_run(
    settings: &Settings,
    device: &mut Device,
    precision: Precision,
    stated: Option<Roof>,
    watch: &mut Watch,
) -> Result<Plan> {
    let inputs = Inputs::read(settings, &mut Sets::default(), watch)?;
    let config = &inputs.checkpoint.config;
    let most_tokens = config.text.max_position_embeddings;
    let samples = Samples { file: &settings.data, all: &inputs.samples, preparer: &inputs.preparer, most_tokens };
    let measured = samples.measure()?;
    let model = Model::training(&inputs.checkpoint, &inputs.trainable)?;
    let (trainable, facts) = (&inputs.trainable, device.facts().cloned());
    let evaluated = measured_evaluation(inputs.evaluation.as_ref(), &inputs.preparer, most_tokens)?;
    let batch = settings.batch_size;
    let planner =
        Planner { model: &model, trainable, precision, facts, measured: &measured, evaluated: &evaluated, batch };
    let budget = budget(settings, device);
    let roof = match stated {
        Some(roof) => roof,
        None => Roof::measure(device, precision, config.text.hidden_size)?,
    };
    let mut plan = planner.plan(&inputs.order, budget, Some(roof))?;
    planner.refusal(&plan, budget, settings.memory.is_some(), settings.batch_size)?;
    if let Kind::Lora(_) = inputs.kind {
        planner.every_tensor_is_reached(&inputs.order)?;
    }
    if stated.is_none() {
        let step = batch.saturating_mul(settings.grad_accumulation);
        plan.add_preparing(samples.seconds_each(step)?, device.facts().is_none());
    }
    Ok(plan)
}

/// Bytes that the arenas may take together.
fn budget(settings: &Settings, device: &Device) -> usize {
    match settings.memory {
        Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        None => device.free_bytes().unwrap_or(usize::MAX),
    }
}

impl Inputs {
    fn read(settings: &Settings, sets: &mut Sets, watch: &mut Watch) -> Result<Inputs> {
        let checkpoint = Checkpoint::open(&settings.model)?;
        let spec = read_patch_spec(&settings.model)?.limited(settings.min_pixels, settings.max_pixels)?;
        let preparer = Preparer::open(&settings.model, &checkpoint.config, spec)?;
        let init = settings.init_adapter.as_ref().map(|dir| Adapter::open(dir, &checkpoint.config)).transpose()?;
        let (kind, trainable) = if settings.full {
            (Kind::Full, Trainable::full(&checkpoint))
        } else {
            let lora = Lora::resolve(settings, init.as_ref().map(|a| &a.config), &checkpoint.config)?;
            let trainable = Trainable::lora(&lora.modules, lora.config.rank, lora.scale).with_dropout(settings.dropout);
            (Kind::Lora(Box::new(lora)), trainable)
        };
        let samples = chosen(settings, sets.samples(&settings.data, settings, watch)?)?;
        let evaluation = match &settings.eval_data {
            Some(file) => Some(Evaluation::of(file, sets.samples(file, settings, watch)?)?),
            None => None,
        };
        let (batch, accumulation) = (settings.batch_size, settings.grad_accumulation);
        let order = Order::new(samples.len(), batch, accumulation, settings.sequence(), settings.length())?;
        Ok(Inputs { checkpoint, preparer, samples, evaluation, kind, init, trainable, order })
    }
}

/// The samples that a run is evaluated on, without pixels.
fn measured_evaluation(
    evaluation: Option<&Evaluation>,
    preparer: &Preparer,
    most_tokens: usize,
) -> Result<Vec<Example>> {
    let Some(Evaluation { file, samples, .. }) = evaluation else { return Ok(Vec::new()) };
    Samples { file, all: samples, preparer, most_tokens }.measure()
}

impl Evaluation {
    fn of(file: &Path, samples: Vec<Sample>) -> Result<Evaluation> {
        let classes = Classes::of(file, &samples, false)?.names;
        if classes.len() > MOST_CHOICES {
            let said = format!("has {} answers; a run is evaluated on at most {MOST_CHOICES}", classes.len());
            return Err(Error::file(file, said));
        }
        Ok(Evaluation { file: file.into(), samples, classes })
    }
}

/// What must not change while a run is interrupted.
fn fingerprints(
    settings: &Settings,
    samples: &[Sample],
    evaluation: Option<&Evaluation>,
) -> Result<fingerprint::Fingerprints> {
    let mut inputs = fingerprint::Fingerprints::new();
    inputs.insert("the model".into(), fingerprint::of_model(&settings.model)?);
    inputs.insert("the training set".into(), fingerprint::of_file(&settings.data)?);
    inputs.insert("the photos of the training set".into(), fingerprint::of_photos(samples)?);
    if let Some(evaluation) = evaluation {
        inputs.insert("the validation set".into(), fingerprint::of_file(&evaluation.file)?);
        inputs.insert("the photos of the validation set".into(), fingerprint::of_photos(&evaluation.samples)?);
    }
    if let Some(dir) = &settings.init_adapter {
        inputs
            .insert("the adapter to start from".into(), fingerprint::of_file(&dir.join("adapter_model.safetensors"))?);
    }
    Ok(inputs)
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
        let mut kept = Kept::new(samples.all.len());
        let keep = self.features.keeps();
        let total = order.total_steps();
        let per_epoch = order.steps_per_epoch();
        let (mut at, mut loss, mut why) = (done, None, Why::Steps);
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            scope.spawn(move || samples.ahead(order, done, keep, send));
            for prepared in receive {
                let (step, fresh) = prepared?;
                let start = Instant::now();
                if words_are_timed(step.number) {
                    self.trainer.engine.clock.start();
                }
                kept.take(&mut self.trainer, &mut self.features, fresh)?;
                let metrics = self.step(samples, order, &step, &kept, start, begin)?;
                kept.release(&mut self.features, step.micro_batches.iter().flatten().copied());
                self.folder.log(&metrics, now())?;
                let step_loss = metrics.loss;
                (watch.said)(Said::Step(metrics, total));
                (at, loss) = (step.number, Some(step_loss));
                if self.settings.overfit.is_some()
                    && let Some(passed) = self.overfitted(samples, step_loss, per_epoch)?
                {
                    why = passed;
                }
                let last = at == total || why != Why::Steps;
                let ends_epoch = at.is_multiple_of(per_epoch);
                if (last || self.settings.eval_every.map_or(ends_epoch, |n| at.is_multiple_of(n)))
                    && let Some(since) = self.evaluate(samples.preparer, &step, watch)?
                    && !last
                {
                    why = Why::Early { evaluations: since };
                }
                let stop = why != Why::Steps;
                let interrupted = (watch.interrupted)();
                let due = self.settings.save_every.map_or(ends_epoch, |n| at.is_multiple_of(n));
                if due || last || stop || interrupted {
                    self.save(&step)?;
                }
                if interrupted && !last && !stop {
                    self.folder.saved()?;
                    self.summary(at, loss)?;
                    return Ok(End::Interrupted { steps: at });
                }
                if stop {
                    break;
                }
            }
            if self.best.is_none() {
                self.write_result()?;
            }
            self.folder.saved()?;
            self.summary(at, loss)?;
            if let (Some(n), Why::Steps, Some(loss)) = (self.settings.overfit, why, loss) {
                let answers = counted(n, "answer", "answers");
                let right =
                    self.answers(samples)?.map_or(String::new(), |right| format!(", {right} of {answers} right"));
                return Err(Error::Unsupported(format!(
                    "the overfit check failed: after {} the loss is {loss:.4}{right}; wanted are a loss below {OVERFIT_LOSS} \
                     on every batch and every answer right; before that, more photos do not help: raise --learning-rate, \
                     --rank or --max-steps, or look for labels that contradict each other",
                    counted(at, "step", "steps")
                )));
            }
            Ok(End::Done { steps: at, loss, why, best: self.best.map(|best| best.step) })
        })
    }

    /// [`Why::Passed`] where all samples are learnt: every batch of one pass over them has a loss below the bound, and every
    /// answer is right.
    fn overfitted(&mut self, samples: &Samples, loss: f64, per_epoch: u64) -> Result<Option<Why>> {
        self.below = if loss < OVERFIT_LOSS { self.below + 1 } else { 0 };
        if self.below < per_epoch {
            return Ok(None);
        }
        let (right, n) = (self.answers(samples)?, samples.all.len());
        let passed = right.is_none_or(|right| right == n);
        Ok(passed.then_some(Why::Passed { samples: n, answered: right.is_some() }))
    }

    /// How many of the samples are answered right; None where their answers are no closed set.
    fn answers(&mut self, samples: &Samples) -> Result<Option<usize>> {
        if samples.all.iter().any(|s| s.label.is_none()) {
            return Ok(None);
        }
        let classes = Classes::of(samples.file, samples.all, false)?.names;
        if classes.len() > MOST_CHOICES {
            return Ok(None);
        }
        let (method, batch) = (Method::Choices(classes), self.settings.batch_size);
        let mut right = 0;
        let engine = &mut self.trainer.engine;
        evaluate::evaluate(engine, samples.preparer, samples.file, samples.all, &method, batch, &mut |p| {
            right += usize::from(p.right);
            Ok(true)
        })?;
        Ok(Some(right))
    }

    /// Seconds of this run, of its earlier processes too.
    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Writes run.json: how long the run took, and what that cost.
    fn summary(&self, steps: u64, loss: Option<f64>) -> Result<()> {
        let seconds = self.seconds();
        let mut summary = json!({"steps": steps, "loss": loss, "seconds": seconds,
            "trained_parameters": self.trainer.trainable.parameters()});
        if let Some(rate) = self.dollars_per_hour {
            summary["dollars_per_hour"] = rate.into();
            summary["dollars"] = (rate * seconds / 3600.0).into();
        }
        if let Some(best) = self.best {
            summary["best_step"] = best.step.into();
        }
        self.folder.write_result(&summary)
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
        let random = Stream::new(self.settings.seed, &[DROPOUT, step.number]);
        let mut loss = 0.0;
        for (examples, batch) in batches.iter().zip(&step.micro_batches) {
            let losses = self.trainer.micro_batch(examples, 1.0 / label_tokens as f32, random)?;
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
            host_tensor::write(file, GRADIENTS, &self.named_gradients()?)?;
        }
        let total = order.total_steps();
        let lr = self.settings.schedule(total).lr(step.number);
        let pictured = samples.pictured(step);
        self.vision_steps = self.vision_steps.saturating_add(u32::from(pictured));
        self.trainer.update(&Optimizer {
            number: u32::try_from(step.number).unwrap_or(u32::MAX),
            vision_number: pictured.then_some(self.vision_steps),
            learning_rate: lr,
            vision_learning_rate: self.settings.vision_schedule(total).lr(step.number),
            betas: self.settings.betas,
            eps: 1e-8,
            weight_decay: self.settings.weight_decay,
            max_norm: self.settings.max_norm(),
        })?;
        let word_seconds = self.trainer.engine.clock.stop()?;
        let seconds = start.elapsed().as_secs_f64();
        let tokens_per_second = tokens as f64 / seconds;
        let peak = self.trainer.engine.device.facts().and_then(Facts::peak_flops_per_second);
        let per_token = mfu::flops_per_token(&self.checkpoint.config, self.settings.full);
        Ok(StepMetrics {
            step: step.number,
            epoch: step.epochs_done,
            loss: loss / label_tokens as f64,
            lr,
            grad_norm,
            label_tokens: label_tokens as u64,
            tokens: tokens as u64,
            seconds,
            tokens_per_second,
            mfu: peak.map(|peak| mfu::mfu(per_token, tokens_per_second, peak)),
            word_seconds,
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

    /// Scores the evaluation set; keeps the result where it is the best so far. Where it is time to stop: the number of
    /// evaluations since the best.
    fn evaluate(&mut self, preparer: &Preparer, step: &Step, watch: &mut Watch) -> Result<Option<u64>> {
        let Some(Evaluation { file, samples, classes }) = &self.evaluation else { return Ok(None) };
        let start = Instant::now();
        let method = Method::Choices(classes.clone());
        let (mut correct, mut n) = (0, 0);
        let batch = self.settings.batch_size;
        evaluate::evaluate(&mut self.trainer.engine, preparer, file, samples, &method, batch, &mut |p| {
            correct += p.right as u64;
            n += 1;
            Ok(true)
        })?;
        let most_tokens = self.checkpoint.config.text.max_position_embeddings;
        let samples = Samples { file, all: samples, preparer, most_tokens };
        let eval_loss = mean_loss(&mut self.trainer, &mut self.features, &samples, batch)?;
        let metrics = EvalMetrics {
            step: step.number,
            epoch: step.epochs_done,
            eval_accuracy: correct as f64 / n as f64,
            eval_correct: correct,
            eval_samples: n,
            eval_loss,
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
        let since = self.best.map(|b| b.since);
        Ok(since.filter(|since| self.settings.early_stop.is_some_and(|n| *since >= n)))
    }

    fn save(&mut self, step: &Step) -> Result<()> {
        let memory = self.trainer.engine.device.memory();
        let t = &self.trainer.trainable;
        let (values, first, second) =
            (memory.read_f32(t.values)?, memory.read_f32(t.first)?, memory.read_f32(t.second)?);
        let position = Position { step: step.number, epoch: step.epoch, in_epoch: step.in_epoch };
        let state = json!(State { best: self.best, below: self.below, seconds: self.seconds() });
        self.folder.save(position, state, vec![("values", values), ("first", first), ("second", second)])
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

/// Mean over the label tokens of all samples, as a step's loss is; without dropout.
fn mean_loss(trainer: &mut Trainer, store: &mut Store, samples: &Samples, batch: usize) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0);
    // numbers that no sample of the training set has: what is kept of those stays
    let first = store.keeps();
    let all: Vec<usize> = (first..first + samples.all.len()).collect();
    let mut kept = Kept::new(first + samples.all.len());
    for chunk in all.chunks(batch) {
        let fresh = chunk.par_iter().map(|at| Ok(Fresh { at: *at, example: samples.prepare(at - first)? }));
        kept.take(trainer, store, fresh.collect::<Result<_>>()?)?;
        let examples = kept.of(chunk);
        sum += trainer.losses(&examples)?.iter().sum::<f64>();
        tokens += examples.iter().map(|e| e.label_tokens()).sum::<usize>();
        kept.release(store, chunk.iter().copied());
    }
    Ok(sum / tokens as f64)
}

/// Where `--full` leaves its model, below the run's folder.
pub fn model_folder(out: &Path) -> PathBuf {
    out.join("model")
}
