//! What a run needs, known before anything is allocated or computed: bytes from the plans of its own tapes over its own
//! samples, seconds from their cost.
//!
//! Start at [`Planner::plan`]. What a sample measures follows from its text and from the headers of its pictures.

use super::features::Room;
use super::inputs::{Answers, Measured};
use super::order::Order;
use super::roof::Roof;
use super::step::{Example, Forward, batch as batch_of};
use crate::base::{DType, Error, Precision, Result, counted};
use crate::device::{self, Facts};
use crate::infer::choices;
use crate::qwen3vl::model::{Direction, Model};
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::qwen3vl::trainable::Trainable;
use crate::tape::{Fitted, Tape};
use crate::tensor::{Tensor, Weight};
use serde::Serialize;
use std::collections::BTreeSet;

/// So many batches are costed at the most; a longer run is reckoned from these.
const COSTED: usize = 64;

/// So many steps are looked at one by one, or an epoch where that is more; of a longer run, which has nearly any batch some
/// day, the largest is one of its largest samples.
const WALKED: u64 = 1 << 16;

/// A run's needs. Bytes are those of arenas: what an operation holds on the host while it runs comes on top.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Bytes that it may take.
    #[serde(skip)]
    pub budget: usize,
    /// Weights, where the device holds them: the host reads them from their file.
    pub weight_bytes: usize,
    /// Values, gradients and moments of what is trained, and the copies that a device's kernels read.
    pub trained_bytes: usize,
    /// Intermediate results of the operation that needs most, where the device has kernels.
    pub scratch_bytes: usize,
    /// Keys and values of the largest batch that the run is judged by on the way: of a validation set, of an overfit check.
    pub cache_bytes: usize,
    /// Image features of the frozen tower: of `features_kept` samples from epoch to epoch, of others while a step needs
    /// them.
    pub features_bytes: usize,
    pub features_bytes_at_least: usize,
    pub features_kept: usize,
    #[serde(skip)]
    pub features: Room,
    /// Activations of the largest step, of a pass of the frozen tower alone, and of the largest batch that the run is judged
    /// by: the most of them is allocated.
    pub step_bytes: usize,
    pub tower_bytes: usize,
    pub judged_bytes: usize,
    /// Of the largest step with nothing computed twice, and with everything.
    pub step_bytes_without_recompute: usize,
    pub step_bytes_at_least: usize,
    /// 0: nothing is computed twice; see `tape`'s recompute.
    pub recompute_level: usize,
    pub recompute_levels: usize,
    /// Where the largest step is: its samples and tokens.
    pub largest_samples: usize,
    pub largest_tokens: usize,
    pub steps: u64,
    pub samples: usize,
    pub tokens: u64,
    /// Samples that are read and prepared, in all: those whose features are kept once each.
    pub prepared: u64,
    /// Of all steps and passes of the frozen tower, evaluations apart.
    pub flops: f64,
    /// The same, and where `preparing_seconds` are known these too.
    pub seconds: Option<f64>,
    /// Of them, or beside the device's work: what reading photos takes. None where another machine's speed was stated.
    pub preparing_seconds: Option<f64>,
}

impl Plan {
    /// All arenas together.
    pub fn bytes(&self) -> usize {
        self.fixed() + self.features_bytes + self.step_bytes.max(self.tower_bytes).max(self.judged_bytes)
    }

    /// What is left for activations.
    pub fn left(&self) -> usize {
        self.budget.saturating_sub(self.fixed() + self.features_bytes)
    }

    /// The least that a budget can be.
    fn least(&self) -> usize {
        let activations = self.step_bytes_at_least.max(self.tower_bytes).max(self.judged_bytes);
        self.fixed() + self.features_bytes_at_least + activations
    }

    /// Adds what reading samples takes, from the seconds of each: on the host by the cores that compute, else beside.
    pub fn add_preparing(&mut self, seconds_each: f64, on_host: bool) {
        let preparing = seconds_each * self.prepared as f64;
        self.preparing_seconds = Some(preparing);
        self.seconds = self.seconds.map(|s| if on_host { s + preparing } else { s.max(preparing) });
    }

    /// What no recomputing makes smaller, and no number of features.
    pub fn fixed(&self) -> usize {
        self.weight_bytes + self.trained_bytes + self.scratch_bytes + self.cache_bytes
    }
}

pub struct Planner<'a> {
    pub model: &'a Model,
    pub trainable: &'a Trainable,
    pub precision: Precision,
    /// Of a device with kernels; the host, which has none, reads the weights from their file.
    pub facts: Option<Facts>,
    /// All samples, and so many at a time.
    pub measured: &'a Measured,
    pub batch: usize,
}

/// What judging a run takes of a device's memory.
#[derive(Default)]
struct Judging {
    cache: usize,
    tapes: Vec<Tape>,
}

impl Judging {
    fn activations(&self) -> usize {
        self.tapes.iter().map(|tape| tape.plan().bytes).max().unwrap_or(0)
    }
}

impl Planner<'_> {
    /// The needs of a run in this order within `budget` bytes. Image features are kept as far as they fit beside the
    /// smallest step, then as little as possible is computed twice. Where the budget is too small the plan is the
    /// smallest there is, and [`Planner::refusal`] says what to do.
    pub fn plan(&self, order: &Order, budget: usize, roof: Option<Roof>) -> Result<Plan> {
        let tapes = self.largest(order)?.into_iter().map(|batch| Ok((self.forward(&batch)?, batch)));
        let tapes = tapes.collect::<Result<Vec<(Tape, Vec<&Example>)>>>()?;
        let tower = self.largest_tower(&self.measured.samples)?;
        let tower_bytes = tower.as_ref().map_or(0, |tape| tape.plan().bytes);
        let judging = self.judging(self.batch)?;
        let (cache_bytes, judged_bytes) = (judging.cache, judging.activations());
        let (mut weight_bytes, mut trained_bytes, mut scratch_bytes) = (0, self.trainable.bytes(), 0);
        if let Some(facts) = &self.facts {
            let steps = tapes.iter().map(|(tape, _)| Ok(tape.at_level(0)?.tape)).collect::<Result<Vec<Tape>>>()?;
            let all: Vec<&Tape> = steps.iter().chain(&tower).chain(&judging.tapes).collect();
            let weights: Vec<&Weight> =
                all.iter().flat_map(|tape| tape.records()).flat_map(|r| r.op().weights()).collect();
            weight_bytes = device::weight_bytes(&weights);
            trained_bytes += DType::Bf16.bytes() * self.trainable.values.shape.elements();
            for tape in all {
                scratch_bytes = scratch_bytes.max(tape.scratch_bytes(facts)?);
            }
        }
        let fixed = weight_bytes + trained_bytes + scratch_bytes + cache_bytes;
        let mut least = 0;
        for (tape, _) in &tapes {
            least = least.max(tape.fit(Some(0))?.bytes);
        }
        let features = self.features(order, budget.saturating_sub(fixed + least.max(tower_bytes).max(judged_bytes)));
        let (features_kept, features_bytes) = (features.kept.len(), features.bytes());
        let rest = budget.saturating_sub(fixed + features_bytes);
        let (mut largest, mut without) = (None::<(Fitted, &Vec<&Example>)>, 0);
        for (tape, batch) in &tapes {
            without = without.max(tape.at_level(0)?.bytes);
            let fitted = tape.fit(Some(rest))?;
            if largest.as_ref().is_none_or(|(other, _)| other.bytes < fitted.bytes) {
                largest = Some((fitted, batch));
            }
        }
        let Some((fitted, batch)) = largest else {
            return Err(Error::Usage("there are no samples to train on".into()));
        };
        let passes = order.passes();
        let prepared = passes.iter().enumerate().map(|(at, n)| if at < features_kept { 1.min(*n) } else { *n });
        let prepared = prepared.fold(0, u64::saturating_add);
        let (flops, seconds) = self.cost(order, rest, prepared, roof)?;
        let tokens =
            self.measured.samples.iter().zip(&passes).map(|(e, n)| n.saturating_mul(e.sequence.ids.len() as u64));
        Ok(Plan {
            budget,
            weight_bytes,
            trained_bytes,
            scratch_bytes,
            cache_bytes,
            features_bytes,
            features_bytes_at_least: self.features(order, 0).bytes(),
            features_kept,
            features,
            step_bytes: fitted.bytes,
            tower_bytes,
            judged_bytes,
            step_bytes_without_recompute: without,
            step_bytes_at_least: least,
            recompute_level: fitted.level,
            recompute_levels: fitted.tape.levels(),
            largest_samples: batch.len(),
            largest_tokens: batch.iter().map(|e| e.sequence.ids.len()).sum(),
            steps: order.total_steps(),
            samples: self.measured.samples.len(),
            tokens: tokens.fold(0, u64::saturating_add),
            prepared,
            flops,
            seconds,
            preparing_seconds: None,
        })
    }

    /// The micro-batches that may need most: by tokens, by patches and by label tokens.
    fn largest(&self, order: &Order) -> Result<Vec<Vec<&Example>>> {
        let sizes: [fn(&Example) -> usize; 3] =
            [|e| e.sequence.ids.len(), |e| e.sequence.patches(), Example::label_tokens];
        let mut largest: [(usize, Vec<usize>); 3] = Default::default();
        let of_batch = |batch: &[usize], size: fn(&Example) -> usize| {
            1 + batch.iter().map(|at| size(&self.measured.samples[*at])).sum::<usize>()
        };
        for batch in walked(order) {
            for (most, size) in largest.iter_mut().zip(sizes) {
                let n = of_batch(&batch, size);
                if n > most.0 {
                    *most = (n, batch.clone());
                }
            }
        }
        if order.total_steps() > n_walked(order) {
            for (most, size) in largest.iter_mut().zip(sizes) {
                let mut by_size: Vec<usize> = (0..self.measured.samples.len()).collect();
                by_size.sort_by_key(|at| std::cmp::Reverse(size(&self.measured.samples[*at])));
                by_size.truncate(self.batch);
                *most = (of_batch(&by_size, size), by_size);
            }
        }
        let batches: BTreeSet<Vec<usize>> = largest.into_iter().map(|(_, batch)| batch).collect();
        Ok(batches.iter().map(|batch| self.of(batch)).collect())
    }

    fn forward(&self, batch: &[&Example]) -> Result<Tape> {
        self.pass(batch, Direction::Both)
    }

    fn pass(&self, batch: &[&Example], direction: Direction) -> Result<Tape> {
        let (packed, labels) = batch_of(self.model, batch)?;
        let keeps = !self.trainable.trains_vision();
        Ok(Forward::new(self.model, self.precision, keeps, &packed, labels.ids.len(), direction)?.tape)
    }

    fn of(&self, batch: &[usize]) -> Vec<&Example> {
        batch.iter().map(|at| &self.measured.samples[*at]).collect()
    }

    /// What the run is judged by, so many samples at a time in their order: their answers chosen, and of a validation set
    /// the loss. A prompt is taken with its answer, which makes it a little longer than it is.
    fn judging(&self, batch: usize) -> Result<Judging> {
        let Measured { samples, evaluated, of_evaluation, of_overfit } = self.measured;
        let mut judging = Judging::default();
        for (examples, answers) in [(evaluated, of_evaluation), (samples, of_overfit)] {
            let Some(Answers { labels, close }) = answers else { continue };
            for batch in largest_of(examples, batch) {
                let prompts: Vec<&Sequence> = batch.iter().map(|e| &e.sequence).collect();
                let (cache, tapes) = choices::passes(self.model, self.precision, &prompts, labels, *close)?;
                judging.cache = judging.cache.max(cache);
                judging.tapes.extend(tapes);
            }
        }
        for batch in largest_of(evaluated, batch) {
            judging.tapes.push(self.pass(&batch.iter().collect::<Vec<_>>(), Direction::Forward)?);
        }
        judging.tapes.extend(self.largest_tower(evaluated)?);
        Ok(judging)
    }

    /// The tapes of the largest batches must reach every trained tensor. Errors: names those that no sample gives a
    /// gradient, which is most often a part of the vision tower and a set without pictures.
    pub fn every_tensor_is_reached(&self, order: &Order) -> Result<()> {
        let mut reached: Vec<Tensor> = Vec::new();
        for batch in self.largest(order)? {
            let tape = self.forward(&batch)?.at_level(0)?.tape;
            reached.extend(tape.records().iter().flat_map(|r| r.op().outputs()));
        }
        let missed = |e: &&crate::qwen3vl::trainable::Entry| !reached.iter().any(|t| t.same_value(&e.trained.gradient));
        let missed: Vec<String> = self.trainable.entries.iter().filter(missed).map(|e| e.name.clone()).collect();
        if missed.is_empty() {
            return Ok(());
        }
        let why = match self.measured.samples.iter().any(|e| !e.sequence.grids.is_empty()) {
            true => "nothing that is learnt lies behind them",
            false => "no sample has a picture",
        };
        Err(Error::Unsupported(format!(
            "{} would get no gradient, because {why}: {}; leave their modules out of --target-modules, \
             --lora-vision and --lora-merger",
            counted(missed.len(), "trained tensor", "trained tensors"),
            crate::base::error::first_of(&missed)
        )))
    }

    /// Room for the image features of as many samples, from the first, as fit into `budget` bytes beside those that a step
    /// or an evaluation needs at a time. The least there is where not even these fit.
    fn features(&self, order: &Order, budget: usize) -> Room {
        let config = &self.model.config;
        let rows = |examples: &[Example]| -> Vec<usize> {
            examples.iter().map(|e| e.sequence.patches() / config.vision.merge_size.pow(2)).collect()
        };
        let most = |rows: &[usize]| rows.iter().copied().max().unwrap_or(0);
        let (trained, evaluated) = (rows(&self.measured.samples), rows(&self.measured.evaluated));
        let evaluation = Room {
            dtype: self.precision.dtype(),
            width: config.text.hidden_size,
            tensors: 1 + config.vision.deepstack_indexes.len(),
            kept: Vec::new(),
            spare: if most(&evaluated) > 0 { self.batch.min(evaluated.len()) } else { 0 },
            spare_rows: most(&evaluated),
        };
        if self.trainable.trains_vision() {
            return Room { spare: 0, ..evaluation };
        }
        let whole = Room { kept: trained.clone(), ..evaluation.clone() };
        // none has more than the first
        let of_step = order.steps_after(0).next().map_or(0, |step| step.n_samples());
        let (spare, spare_rows) = (of_step.max(evaluation.spare), most(&trained).max(evaluation.spare_rows));
        let mut part = Room { spare, spare_rows, ..evaluation };
        if whole.bytes() <= budget.max(part.bytes()) {
            return whole;
        }
        let mut left = budget.checked_sub(part.bytes());
        for rows in trained {
            left = left.and_then(|left| left.checked_sub(part.sample_bytes(rows)));
            if left.is_none() {
                break;
            }
            part.kept.push(rows);
        }
        part
    }

    /// The frozen tower over the sample with the most patches; None where the tower is part of each step.
    fn largest_tower(&self, examples: &[Example]) -> Result<Option<Tape>> {
        let most = examples.iter().map(|e| &e.sequence).max_by_key(|s| s.patches());
        let alone = most.filter(|s| !s.grids.is_empty() && !self.trainable.trains_vision());
        alone.map(|sequence| self.tower(sequence)).transpose()
    }

    fn tower(&self, sequence: &Sequence) -> Result<Tape> {
        let packed = Packed::new(&[sequence], self.model.config.vision.merge_size)?;
        let mut tape = Tape::new(self.precision);
        self.model.vision(&mut tape, &packed)?;
        Ok(tape)
    }

    /// FLOPs of the run and, under a roof, its seconds: each operation takes what its products or its bytes take. A frozen
    /// tower sees `prepared` samples.
    fn cost(&self, order: &Order, budget: usize, prepared: u64, roof: Option<Roof>) -> Result<(f64, Option<f64>)> {
        let of = |tape: &Tape| {
            let costs = tape.records().iter().map(|r| r.op().cost()).map(|c| (c.flops as f64, c.bytes as f64));
            costs.fold((0.0, 0.0), |(flops, seconds), (f, b)| {
                let took = roof
                    .map_or(0.0, |r| (f / r.flops_per_second).max(b / r.bytes_per_second) + r.seconds_per_operation);
                (flops + f, seconds + took)
            })
        };
        let spread = |n: usize| (0..n).step_by(n.div_ceil(COSTED).max(1));
        let batches: Vec<Vec<usize>> = walked(order).collect();
        let mut all = (0.0, 0.0);
        let mut add = |tapes: Vec<Tape>, times: f64| {
            let n = tapes.len().max(1) as f64;
            let sum = tapes.iter().map(of).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
            all = (all.0 + sum.0 / n * times, all.1 + sum.1 / n * times);
        };
        let steps = spread(batches.len()).map(|i| Ok(self.forward(&self.of(&batches[i]))?.fit(Some(budget))?.tape));
        add(steps.collect::<Result<_>>()?, order.n_micro_batches() as f64);
        if !self.trainable.trains_vision() {
            let samples = &self.measured.samples;
            let pictured: Vec<&Example> = samples.iter().filter(|e| !e.sequence.grids.is_empty()).collect();
            let part = pictured.len() as f64 / samples.len() as f64;
            let tapes = spread(pictured.len()).map(|i| self.tower(&pictured[i].sequence)).collect::<Result<_>>()?;
            add(tapes, prepared as f64 * part);
        }
        Ok((all.0, roof.map(|_| all.1)))
    }

    /// That `plan` fits into its budget: what --memory asks for, else what is free. Errors: a table of what needs how much,
    /// and what would make it fit.
    pub fn refusal(&self, plan: &Plan, asked: bool) -> Result<()> {
        let budget = plan.budget;
        if plan.bytes() <= budget {
            return Ok(());
        }
        let least = plan.least();
        let (whose, with) = match asked {
            true => (format!("--memory {budget}"), format!("--memory {least}")),
            false => (format!("the device has room for {budget} bytes"), format!("room for {least}")),
        };
        let mut said =
            format!("{whose}: this run needs more bytes than that\n{}\nit would fit with {with}", table(plan));
        let fits = |batch: &[&Example], n: usize| -> Result<bool> {
            let judging = self.judging(n)?;
            let fixed = plan.fixed() - plan.cache_bytes + judging.cache;
            let step = self.forward(batch)?.fit(Some(0))?.bytes;
            Ok(fixed + step.max(plan.tower_bytes).max(judging.activations()) <= budget)
        };
        let mut by_size: Vec<&Example> = self.measured.samples.iter().collect();
        by_size.sort_by_key(|e| std::cmp::Reverse(e.sequence.ids.len()));
        let smaller = std::iter::successors(Some(self.batch / 2), |n| Some(n / 2)).take_while(|n| *n > 0);
        for n in smaller {
            if fits(&by_size[..n.min(by_size.len())], n)? {
                said += &format!(", or --batch-size {n} --grad-accumulation {}", self.batch.div_ceil(n));
                break;
            }
        }
        said += match self.measured.samples.iter().any(|e| !e.sequence.grids.is_empty()) {
            true => ", or a smaller --max-pixels",
            false => ", or shorter texts",
        };
        Err(Error::OutOfMemory(said))
    }
}

/// The batches, of so many examples in their order, that may need most: by tokens, and by patches.
fn largest_of(examples: &[Example], batch: usize) -> Vec<&[Example]> {
    let most = |size: fn(&Example) -> usize| {
        let batches = examples.chunks(batch.max(1)).enumerate();
        batches.map(|(at, batch)| (at, batch.iter().map(size).sum::<usize>())).max_by_key(|(_, n)| *n)
    };
    let sizes: [fn(&Example) -> usize; 2] = [|e| e.sequence.ids.len(), |e| e.sequence.patches()];
    let places: BTreeSet<usize> = sizes.into_iter().filter_map(most).map(|(at, _)| at).collect();
    places.into_iter().filter_map(|at| examples.chunks(batch.max(1)).nth(at)).collect()
}

fn n_walked(order: &Order) -> u64 {
    WALKED.max(order.steps_per_epoch())
}

/// The micro-batches of the steps that are looked at.
fn walked(order: &Order) -> impl Iterator<Item = Vec<usize>> {
    let n = usize::try_from(n_walked(order)).unwrap_or(usize::MAX);
    order.steps_after(0).take(n).flat_map(|step| step.micro_batches)
}

/// A line for each arena.
pub fn table(plan: &Plan) -> String {
    let samples = counted(plan.largest_samples, "sample", "samples");
    let step = format!("activations of the largest batch ({samples}, {} tokens)", plan.largest_tokens);
    let rows = [
        ("weights on the device (the host reads them from their file)", plan.weight_bytes),
        ("what is trained, its gradients and moments", plan.trained_bytes),
        ("intermediate results of one operation (the host needs none)", plan.scratch_bytes),
        ("keys and values of the prompts that the run is judged by", plan.cache_bytes),
        ("image features of the frozen tower", plan.features_bytes),
        (step.as_str(), plan.step_bytes),
        ("  the same with nothing computed twice", plan.step_bytes_without_recompute),
        ("  the same with all that can be computed twice", plan.step_bytes_at_least),
        ("activations of the frozen tower alone", plan.tower_bytes),
        ("activations of the prompts that the run is judged by", plan.judged_bytes),
        ("all together", plan.bytes()),
    ];
    rows.map(|(what, bytes)| format!("{bytes:>16}  {what}")).join("\n")
}
