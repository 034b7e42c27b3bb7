//! What a run needs, known before anything is allocated or computed: bytes from the plans of its own tapes over its own
//! samples, seconds from their cost.
//!
//! Start at [`Planner::plan`]. What a sample measures follows from its text and from the headers of its pictures.

use super::features::Room;
use super::order::Order;
use super::step::{Example, Forward, batch as batch_of};
use crate::base::{DType, Error, Precision, Result, counted};
use crate::device::{Clock, Device, Facts};
use crate::ops::linear::{Activation, Linear, Segment};
use crate::ops::swiglu::Swiglu;
use crate::qwen3vl::model::{Direction, Model};
use crate::qwen3vl::names::Counts;
use crate::qwen3vl::pack::{Packed, Sequence};
use crate::qwen3vl::trainable::Trainable;
use crate::tape::{Fitted, Tape};
use crate::tensor::{Tensor, Weight};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Instant;

/// So many batches are costed at the most; a longer run is reckoned from these.
const COSTED: usize = 64;

/// So many steps are looked at one by one, or an epoch where that is more; of a longer run, which has nearly any batch some
/// day, the largest is one of its largest samples.
const WALKED: u64 = 1 << 16;

/// What the words reach on a device.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Roof {
    pub flops_per_second: f64,
    pub bytes_per_second: f64,
    /// What an operation takes on top of its work: most of the time of a small model.
    pub seconds_per_operation: f64,
}

/// Rows of the product that is timed.
const TIMED_ROWS: usize = 512;
const TIMED_WIDTH: usize = 2048;
/// The small products that are timed: their number, and rows and width of each.
const SMALL: (usize, usize) = (64, 16);

impl Roof {
    /// Times a product of about a model's width, an element-wise pass over memory, and products too small to take time, on
    /// the device itself.
    pub fn measure(device: &mut Device, precision: Precision, width: usize) -> Result<Roof> {
        let k = width.min(TIMED_WIDTH);
        let mut tape = Tape::new(precision);
        let x = tape.input(precision.dtype(), [TIMED_ROWS, k]);
        push_product(&mut tape, precision, x, 4 * k)?;
        let product = (tape.cost().flops as f64) / seconds_of(&tape, device, x)?;
        let (n, small) = SMALL;
        let mut tape = Tape::new(precision);
        let first = tape.input(precision.dtype(), [small, small]);
        let mut x = first;
        for _ in 0..n {
            x = push_product(&mut tape, precision, x, small)?;
        }
        let operation = seconds_of(&tape, device, first)? / n as f64;
        let mut tape = Tape::new(precision);
        let gate_up = tape.input(precision.dtype(), [8 * TIMED_ROWS, 2 * TIMED_WIDTH]);
        let y = tape.activation([8 * TIMED_ROWS, TIMED_WIDTH]);
        tape.push(Swiglu { gate_up, y })?;
        let moved = (tape.cost().bytes as f64) / seconds_of(&tape, device, gate_up)?;
        Ok(Roof { flops_per_second: product, bytes_per_second: moved, seconds_per_operation: operation })
    }
}

/// x [M, K] times a weight [N, K]; returns what comes out.
fn push_product(tape: &mut Tape, precision: Precision, x: Tensor, n: usize) -> Result<Tensor> {
    let [m, k] = [x.shape.rows(), x.shape.width()];
    let weight = Weight::from_f32("timed", [n, k], &vec![0.01; n * k])?;
    let y = tape.activation([m, n]);
    let segments = vec![Segment { weight, bias: None, adapter: None }];
    let (rows, residual, noise, s, z, activation) = (None, None, None, None, None, Activation::None);
    tape.push(Linear { x, rows, segments, activation, residual, noise, s, z, precision, y })?;
    Ok(y)
}

/// The best of several runs.
fn seconds_of(tape: &Tape, device: &mut Device, input: Tensor) -> Result<f64> {
    tape.begin(device)?;
    device.memory().write_f32(input, &vec![0.5; input.shape.elements()])?;
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = Instant::now();
        tape.run(device, &mut Clock::default(), &mut |_, _| ())?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best.max(1e-9))
}

/// A run's needs. Bytes are those of arenas: what an operation holds on the host while it runs comes on top.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Weights, where the device holds them: the host reads them from their file.
    pub weight_bytes: usize,
    /// Values, gradients and moments of what is trained, and the copies that a device's kernels read.
    pub trained_bytes: usize,
    /// Intermediate results of the operation that needs most, where the device has kernels.
    pub scratch_bytes: usize,
    /// Image features of the frozen tower: of `features_kept` samples from epoch to epoch, of others while a step needs
    /// them.
    pub features_bytes: usize,
    pub features_bytes_at_least: usize,
    pub features_kept: usize,
    #[serde(skip)]
    pub features: Room,
    /// Activations of the largest step, and of a pass of the frozen tower alone: the larger one is allocated.
    pub step_bytes: usize,
    pub tower_bytes: usize,
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
        self.fixed() + self.features_bytes + self.step_bytes.max(self.tower_bytes)
    }

    /// The least that a budget can be.
    fn least(&self) -> usize {
        self.fixed() + self.features_bytes_at_least + self.step_bytes_at_least.max(self.tower_bytes)
    }

    /// Adds what reading samples takes, from the seconds of each: on the host by the cores that compute, else beside.
    pub fn add_preparing(&mut self, seconds_each: f64, on_host: bool) {
        let preparing = seconds_each * self.prepared as f64;
        self.preparing_seconds = Some(preparing);
        self.seconds = self.seconds.map(|s| if on_host { s + preparing } else { s.max(preparing) });
    }

    /// What no recomputing makes smaller, and no number of features.
    pub fn fixed(&self) -> usize {
        self.weight_bytes + self.trained_bytes + self.scratch_bytes
    }
}

pub struct Planner<'a> {
    pub model: &'a Model,
    pub trainable: &'a Trainable,
    pub precision: Precision,
    /// Of a device with kernels; the host, which has none, reads the weights from their file.
    pub facts: Option<Facts>,
    /// All samples, without pixels, and those that the run is evaluated on, so many at a time.
    pub measured: &'a [Example],
    pub evaluated: &'a [Example],
    pub batch: usize,
}

impl Planner<'_> {
    /// The needs of a run in this order within `budget` bytes. Image features are kept as far as they fit beside the
    /// smallest step, then as little as possible is computed twice. Where the budget is too small the plan is the
    /// smallest there is, and [`Planner::refusal`] says what to do.
    pub fn plan(&self, order: &Order, budget: usize, roof: Option<Roof>) -> Result<Plan> {
        let tapes = self.largest(order)?.into_iter().map(|batch| Ok((self.forward(&batch)?, batch)));
        let tapes = tapes.collect::<Result<Vec<(Tape, Vec<&Example>)>>>()?;
        let tower = self.largest_tower()?;
        let tower_bytes = tower.as_ref().map_or(0, |tape| tape.plan().bytes);
        let (mut weight_bytes, mut trained_bytes, mut scratch_bytes) = (0, self.trainable.bytes(), 0);
        if let Some(facts) = &self.facts {
            weight_bytes = DType::Bf16.bytes() * Counts::of(&self.model.config).parameters() as usize;
            trained_bytes += DType::Bf16.bytes() * self.trainable.values.shape.elements();
            scratch_bytes = tower.map_or(Ok(0), |tape| tape.scratch_bytes(facts))?;
            for (tape, _) in &tapes {
                scratch_bytes = scratch_bytes.max(tape.at_level(0)?.tape.scratch_bytes(facts)?);
            }
        }
        let fixed = weight_bytes + trained_bytes + scratch_bytes;
        let mut least = 0;
        for (tape, _) in &tapes {
            least = least.max(tape.fit(Some(0))?.bytes);
        }
        let features = self.features(order, budget.saturating_sub(fixed + least.max(tower_bytes)));
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
        let tokens = self.measured.iter().zip(&passes).map(|(e, n)| n.saturating_mul(e.sequence.ids.len() as u64));
        Ok(Plan {
            weight_bytes,
            trained_bytes,
            scratch_bytes,
            features_bytes,
            features_bytes_at_least: self.features(order, 0).bytes(),
            features_kept,
            features,
            step_bytes: fitted.bytes,
            tower_bytes,
            step_bytes_without_recompute: without,
            step_bytes_at_least: least,
            recompute_level: fitted.level,
            recompute_levels: fitted.tape.levels(),
            largest_samples: batch.len(),
            largest_tokens: batch.iter().map(|e| e.sequence.ids.len()).sum(),
            steps: order.total_steps(),
            samples: self.measured.len(),
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
            1 + batch.iter().map(|at| size(&self.measured[*at])).sum::<usize>()
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
                let mut by_size: Vec<usize> = (0..self.measured.len()).collect();
                by_size.sort_by_key(|at| std::cmp::Reverse(size(&self.measured[*at])));
                by_size.truncate(self.batch);
                *most = (of_batch(&by_size, size), by_size);
            }
        }
        let batches: BTreeSet<Vec<usize>> = largest.into_iter().map(|(_, batch)| batch).collect();
        Ok(batches.iter().map(|batch| self.of(batch)).collect())
    }

    fn forward(&self, batch: &[&Example]) -> Result<Tape> {
        let direction = Direction::Both;
        let (packed, labels) = batch_of(self.model, batch)?;
        let keeps = !self.trainable.trains_vision();
        Ok(Forward::new(self.model, self.precision, keeps, &packed, labels.ids.len(), direction)?.tape)
    }

    fn of(&self, batch: &[usize]) -> Vec<&Example> {
        batch.iter().map(|at| &self.measured[*at]).collect()
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
        let why = match self.measured.iter().any(|e| !e.sequence.grids.is_empty()) {
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
        let (trained, evaluated) = (rows(self.measured), rows(self.evaluated));
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
    fn largest_tower(&self) -> Result<Option<Tape>> {
        let most = self.measured.iter().map(|e| &e.sequence).max_by_key(|s| s.patches());
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
            let pictured: Vec<&Example> = self.measured.iter().filter(|e| !e.sequence.grids.is_empty()).collect();
            let part = pictured.len() as f64 / self.measured.len() as f64;
            let tapes = spread(pictured.len()).map(|i| self.tower(&pictured[i].sequence)).collect::<Result<_>>()?;
            add(tapes, prepared as f64 * part);
        }
        Ok((all.0, roof.map(|_| all.1)))
    }

    /// That `plan` fits into `budget` bytes: what --memory asks for, else those that are free. Errors: a table of what needs
    /// how much, and what would make it fit.
    pub fn refusal(&self, plan: &Plan, budget: usize, asked: bool, batch_size: usize) -> Result<()> {
        if plan.bytes() <= budget {
            return Ok(());
        }
        let least = plan.least();
        let (whose, with) = match asked {
            true => (format!("--memory {budget}"), format!("--memory {least}")),
            false => (format!("the device has {budget} bytes free"), format!("{least} bytes free")),
        };
        let mut said =
            format!("{whose}: this run needs more bytes than that\n{}\nit would fit with {with}", table(plan));
        let fixed = plan.fixed();
        let fits = |batch: &[&Example]| -> Result<bool> {
            Ok(fixed + self.forward(batch)?.fit(Some(0))?.bytes.max(plan.tower_bytes) <= budget)
        };
        let mut by_size: Vec<&Example> = self.measured.iter().collect();
        by_size.sort_by_key(|e| std::cmp::Reverse(e.sequence.ids.len()));
        let smaller = std::iter::successors(Some(batch_size / 2), |n| Some(n / 2)).take_while(|n| *n > 0);
        for n in smaller {
            if fits(&by_size[..n.min(by_size.len())])? {
                said += &format!(", or --batch-size {n} --grad-accumulation {}", batch_size.div_ceil(n));
                break;
            }
        }
        said += match self.measured.iter().any(|e| !e.sequence.grids.is_empty()) {
            true => ", or a smaller --max-pixels",
            false => ", or shorter texts",
        };
        Err(Error::OutOfMemory(said))
    }
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
        ("image features of the frozen tower", plan.features_bytes),
        (step.as_str(), plan.step_bytes),
        ("  the same with nothing computed twice", plan.step_bytes_without_recompute),
        ("  the same with all that can be computed twice", plan.step_bytes_at_least),
        ("activations of the frozen tower alone", plan.tower_bytes),
        ("all together", plan.bytes()),
    ];
    rows.map(|(what, bytes)| format!("{bytes:>16}  {what}")).join("\n")
}
