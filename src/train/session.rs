//! A run from its settings to its adapter: the loop over steps, with evaluation, checkpoints and an early end.

use super::checkpoint::Position;
use super::examples::{Kept, Samples};
use super::features::Store;
use super::inputs::{Evaluation, Inputs, Kind, Measured};
use super::metrics::{EvalMetrics, StepMetrics, words_are_timed};
use super::mfu;
use super::order::{Order, Step};
use super::plan::{Plan, Planner};
use super::roof::Roof;
use super::run_folder::{self, RunFolder, Start, identity_of};
use super::sets::Sets;
use super::settings::Settings;
use super::step::{Optimizer, Trainer};
use crate::base::rng::Stream;
use crate::base::{Error, Precision, Result, counted, dtype};
use crate::data::image::Limits;
use crate::device::{Device, Facts};
use crate::infer::engine::Engine;
use crate::io::host_tensor;
use crate::qwen3vl::checkpoint::Checkpoint;
use crate::qwen3vl::model::Model;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
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
    /// Whether to stop: before the first step at once, then after the step or in the evaluation that is running.
    pub interrupted: &'a dyn Fn() -> bool,
}

impl Watch<'_> {
    /// Errors: [`Error::Interrupted`].
    pub fn go_on(&self) -> Result<()> {
        if (self.interrupted)() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

pub enum Said {
    /// A sentence for a person.
    Note(String),
    /// So many samples of so many have whole photos, or were left out.
    Checked(usize, usize),
    /// A step, and how many the run has.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// All its steps are done.
    Steps,
    /// The overfit check is passed: so many samples are learnt. Whether their answers, which are right, were looked at: they
    /// have to be a closed set.
    Passed { samples: usize, answered: bool },
    /// So many evaluations brought no more right answers.
    Early { evaluations: u64 },
}

/// Where the best evaluation was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Best {
    pub step: u64,
    pub correct: u64,
    /// On the validation set.
    pub loss: f64,
    /// Evaluations since the last one with more right answers than those before it.
    pub since: u64,
    /// The fingerprint of the result that was written then.
    pub result: String,
}

/// What a checkpoint holds beside the numbers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    pub best: Option<Best>,
    /// Of the last step.
    pub loss: Option<f64>,
    /// Steps in a row whose loss passes an overfit check.
    pub below: u64,
    /// Whether a signal came in the check or the evaluation after the last step: it is to be done again before the next.
    pub unjudged: bool,
    /// Why no step follows, where the run is over but for its result.
    pub ended: Option<Why>,
    /// Of all processes of this run so far.
    pub seconds: f64,
}

pub(super) struct Session<'a> {
    pub settings: &'a Settings,
    pub checkpoint: &'a Checkpoint,
    pub kind: Kind,
    /// Between what areas photos are brought.
    pub limits: Limits,
    pub trainer: Trainer,
    pub features: Store,
    pub folder: RunFolder,
    pub evaluation: Option<Evaluation>,
    /// `seconds` are those of earlier processes.
    pub state: State,
    /// Steps so far, and those of them that had photos.
    pub done: u64,
    vision_steps: u32,
    started: Instant,
    dollars_per_hour: Option<f64>,
}

/// Trains as `settings` say. `sets` are those that earlier runs have read. Errors: [`Error::Interrupted`] where a signal
/// comes before the folder is touched.
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
    let inputs = Inputs::read(settings, sets, watch)?;
    let model = Model::training(&inputs.checkpoint, &inputs.trainable)?;
    // before anything else that reads the photos: its errors name the line
    let measured = inputs.measured(settings)?;
    let identity = identity_of(&inputs.resolved(settings), precision, inputs.fingerprints(settings, watch)?)?;
    watch.go_on()?;
    let mut device = device;
    let plan = planned(settings, &inputs, &measured, &model, &device, precision, None)?;
    drop(measured);
    let Inputs { checkpoint, preparer, samples: all, evaluation, kind, init, trainable, order } = inputs;
    let samples = Samples { file: &settings.data, all: &all, preparer: &preparer };
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
        state = from.state()?;
        (watch.said)(Said::Note(format!("goes on after step {done}")));
    }
    let mut trainer = Trainer::new(Engine::new(model, device, precision), trainable, Some(plan.left()));
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
        limits: preparer.spec.limits(),
        trainer,
        features,
        folder: opened.folder,
        evaluation,
        state,
        done,
        started,
        dollars_per_hour: begin.dollars_per_hour,
    };
    let end = session.run(&samples, &order, begin, watch);
    if let Err(error) = &end
        && !matches!(error, Error::Interrupted)
    {
        // the error itself is the one to report
        let _ = session.failed(&samples, error);
    }
    end
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
    let model = Model::training(&inputs.checkpoint, &inputs.trainable)?;
    let measured = inputs.measured(settings)?;
    watch.go_on()?;
    let roof = match stated {
        Some(roof) => roof,
        None => Roof::measure(device, precision, model.config.text.hidden_size)?,
    };
    let mut plan = planned(settings, &inputs, &measured, &model, device, precision, Some(roof))?;
    if stated.is_none() {
        let step = settings.batch_size.saturating_mul(settings.grad_accumulation);
        plan.add_preparing(inputs.learnt(&settings.data).seconds_each(step)?, device.facts().is_none());
    }
    Ok(plan)
}

/// What the run needs. Errors: it does not fit; something is trained that gets no gradient.
fn planned(
    settings: &Settings,
    inputs: &Inputs,
    measured: &Measured,
    model: &Model,
    device: &Device,
    precision: Precision,
    roof: Option<Roof>,
) -> Result<Plan> {
    let (trainable, facts, batch) = (&inputs.trainable, device.facts().cloned(), settings.batch_size);
    let planner = Planner { model, trainable, precision, facts, measured, batch };
    let plan = planner.plan(&inputs.order, budget(settings, device), roof)?;
    planner.refusal(&plan, settings.memory.is_some())?;
    if let Kind::Lora(_) = inputs.kind {
        planner.every_tensor_is_reached(&inputs.order)?;
    }
    Ok(plan)
}

/// Of a GPU's memory one part in so many is not planned with: drivers give memory in pages, kernels and the graphs of
/// replays come to lie in it as they are first used.
const NOT_PLANNED: usize = 50;

/// Bytes that the arenas may take together.
fn budget(settings: &Settings, device: &Device) -> usize {
    let kept_back = |free: usize| if device.facts().is_some() { free / NOT_PLANNED } else { 0 };
    match settings.memory {
        Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        None => device.free_bytes().map_or(usize::MAX, |free| free - kept_back(free)),
    }
}

/// Seconds since 1970, for TensorBoard.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Whether what is done every `every` steps, or after each epoch, follows this step.
fn is_due(step: &Step, every: Option<u64>, per_epoch: u64) -> bool {
    step.number.is_multiple_of(every.unwrap_or(per_epoch))
}

impl Session<'_> {
    fn run(&mut self, samples: &Samples, order: &Order, begin: &Begin, watch: &mut Watch) -> Result<End> {
        self.look_for_best(watch)?;
        let was_over = self.state.ended.is_some();
        if self.state.unjudged
            && let Some(last) = order.steps_after(self.done.saturating_sub(1)).next()
            && self.after(samples, order, &last, watch)?
        {
            return Ok(End::Interrupted { steps: self.done });
        }
        if self.state.ended.is_none() && self.steps(samples, order, begin, watch)? {
            return Ok(End::Interrupted { steps: self.done });
        }
        self.finish(samples, watch, was_over)
    }

    /// The steps that are left, until the run ends. Whether a signal ended them.
    fn steps(&mut self, samples: &Samples, order: &Order, begin: &Begin, watch: &mut Watch) -> Result<bool> {
        let mut kept = Kept::new(samples.all.len());
        let (keep, done) = (self.features.keeps(), self.done);
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
                self.done = step.number;
                self.state.loss = Some(metrics.loss);
                self.state.below = if metrics.loss < OVERFIT_LOSS { self.state.below + 1 } else { 0 };
                (watch.said)(Said::Step(metrics, order.total_steps()));
                if self.after(samples, order, &step, watch)? {
                    return Ok(true);
                }
                if self.state.ended.is_some() {
                    break;
                }
            }
            Ok(false)
        })
    }

    /// What follows a step: it is judged, and saved where that is due. Whether a signal ended the process's part of the run;
    /// then it is saved, too.
    fn after(&mut self, samples: &Samples, order: &Order, step: &Step, watch: &mut Watch) -> Result<bool> {
        self.state.unjudged = match self.judge(samples, order, step, watch) {
            Err(Error::Interrupted) => true,
            // what was learnt is worth keeping, whatever stood in the way of judging it
            Err(e) => {
                self.state.unjudged = true;
                if self.save(step).and_then(|()| self.folder.saved()).is_ok() {
                    (watch.said)(Said::Note(format!("step {} is kept: --resume goes on with judging it", step.number)));
                }
                return Err(e);
            }
            Ok(()) => false,
        };
        let interrupted = self.state.unjudged || (watch.interrupted)();
        let per_epoch = order.steps_per_epoch();
        if interrupted || self.state.ended.is_some() || is_due(step, self.settings.save_every, per_epoch) {
            self.save(step)?;
        }
        if interrupted && self.state.ended.is_none() {
            self.folder.saved()?;
            self.summary(samples)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether the run ends with this step, and why: by the overfit check and the evaluation, where they are due.
    fn judge(&mut self, samples: &Samples, order: &Order, step: &Step, watch: &mut Watch) -> Result<()> {
        let per_epoch = order.steps_per_epoch();
        let mut ended = (step.number == order.total_steps()).then_some(Why::Steps);
        if self.settings.overfit.is_some() {
            ended = self.overfitted(samples, per_epoch, watch)?.or(ended);
        }
        if (ended.is_some() || is_due(step, self.settings.eval_every, per_epoch))
            && let Some(evaluations) = self.evaluate(samples.preparer, step, watch)?
        {
            ended = ended.or(Some(Why::Early { evaluations }));
        }
        self.state.ended = ended;
        Ok(())
    }

    /// The result of a run that has ended, in this process or in an earlier one (`was_over`), which may have been killed
    /// before it was written.
    /// Errors: the overfit check failed; what the best evaluation left is not there any more.
    fn finish(&mut self, samples: &Samples, watch: &Watch, was_over: bool) -> Result<End> {
        match &self.state.best {
            Some(best) => self.check_best(best)?,
            None => self.write_result()?,
        }
        self.folder.saved()?;
        // what it took, and cost, does not change by a look at it
        if !was_over || !self.is_summed_up() {
            self.summary(samples)?;
        }
        let (steps, loss, why) = (self.done, self.state.loss, self.state.ended.unwrap_or(Why::Steps));
        if let (Some(n), Why::Steps, Some(loss)) = (self.settings.overfit, why, loss) {
            let right = match self.answers(samples, watch) {
                Err(Error::Interrupted) => return Ok(End::Interrupted { steps }),
                right => right?,
            };
            let right =
                right.map_or(String::new(), |right| format!(", {right} of {} right", counted(n, "answer", "answers")));
            return Err(Error::Unsupported(format!(
                "the overfit check failed: after {} the loss is {loss:.4}{right}; wanted are a loss below {OVERFIT_LOSS} \
                 on every batch and every answer right; before that, more photos do not help: raise --learning-rate, \
                 --rank or --max-steps, or look for labels that contradict each other",
                counted(steps, "step", "steps")
            )));
        }
        Ok(End::Done { steps, loss, why, best: self.state.best.as_ref().map(|best| best.step) })
    }

    /// Seconds of this run, of its earlier processes too.
    fn seconds(&self) -> f64 {
        self.state.seconds + self.started.elapsed().as_secs_f64()
    }

    /// Whether run.json is of this run as it stands.
    fn is_summed_up(&self) -> bool {
        let best = self.state.best.as_ref().map(|best| best.step);
        run_folder::steps_of_result(self.folder.dir()) == Some((self.done, best))
    }

    /// Has run.json say by what the run failed.
    fn failed(&self, samples: &Samples, error: &Error) -> Result<()> {
        if !self.is_summed_up() {
            self.summary(samples)?;
        }
        run_folder::rewrite_failure(self.folder.dir(), Some(error))
    }

    /// Writes run.json: how long the run took, what that cost, and of how many samples it is.
    fn summary(&self, samples: &Samples) -> Result<()> {
        let seconds = self.seconds();
        let mut summary = json!({"steps": self.done, "loss": self.state.loss, "seconds": seconds,
            "training_samples": samples.all.len(), "trained_parameters": self.trainer.trainable.parameters()});
        if let Some(rate) = self.dollars_per_hour {
            summary["dollars_per_hour"] = rate.into();
            summary["dollars"] = (rate * seconds / 3600.0).into();
        }
        if let Some(best) = &self.state.best {
            summary[run_folder::BEST_STEP] = best.step.into();
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
                let what = format!("the loss of this sample is {}", losses[bad]);
                return Err(self.diverged(samples, &batch[bad..=bad], &what, step)?);
            }
            loss += losses.iter().sum::<f64>();
        }
        let grad_norm = self.trainer.gradient_norm()?;
        // with such gradients every parameter would be lost, and the checkpoint after them
        if !grad_norm.is_finite() {
            let what = format!("the norm of the gradients is {grad_norm}");
            return Err(self.diverged(samples, &step.micro_batches.concat(), &what, step)?);
        }
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

    fn save(&mut self, step: &Step) -> Result<()> {
        let memory = self.trainer.engine.device.memory();
        let t = &self.trainer.trainable;
        let (values, first, second) =
            (memory.read_f32(t.values)?, memory.read_f32(t.first)?, memory.read_f32(t.second)?);
        // a checkpoint of these would push out one that is good
        if let Some(bad) = [&values, &first, &second].into_iter().find_map(|of| dtype::not_finite(of)) {
            let what = format!("a parameter or a moment of the optimiser is {bad}");
            let (advice, kept) = ("lower --learning-rate", self.folder.last_checkpoint()?);
            return Err(Error::Diverged { what, step: step.number, advice, kept });
        }
        let position = Position { step: step.number, epoch: step.epoch, in_epoch: step.in_epoch };
        let state = json!(State { seconds: self.seconds(), ..self.state.clone() });
        self.folder.save(position, state, vec![("values", values), ("first", first), ("second", second)])
    }
}
