//! The record of what is to run, written once by the model's forward and read by everything else: the memory plan, the
//! cost, the printed trace, the run itself (and, when training, the gradients).
//!
//! A tape is a flat list of records over shapes; nothing is computed or allocated while it is written. [`Tape::plan`]
//! gives each value an interval of life and bytes of the activation arena, [`Tape::run`] runs the records in order.
//! Floor 5: uses `ops`, `tensor`, `device`, `base`. Start at [`Tape`], then [`plan`];
//! gradients are in [`rules`], what is computed twice to save memory in [`recompute`], what runs again and again in
//! [`replay`].

mod plan;
mod print;
mod recompute;
mod record;
mod replay;
mod rules;

pub use recompute::Fitted;
pub use record::Record;
pub use replay::Repeated;

use crate::base::{DType, Precision, Result, Shape};
use crate::device::accelerator::scratch_bytes;
use crate::device::{Clock, Device, Facts, Layout};
use crate::ops::Cost;
use crate::ops::linear::following::Followed;
use crate::tensor::{Arena, Tensor, Weight, new_generation};

/// What the tape knows of one value.
#[derive(Debug, Clone)]
struct Value {
    bytes: usize,
    /// Written before the run: lives from its beginning.
    input: bool,
    /// Read after the run: lives to its end.
    kept: bool,
    /// Something trained lies behind it.
    requires_gradient: bool,
}

/// Records in the order of execution, and the values that they name.
#[derive(Clone)]
pub struct Tape {
    generation: u32,
    precision: Precision,
    values: Vec<Value>,
    records: Vec<Record>,
    /// For each record whether it runs a second time, for backward: see [`recompute`].
    made_again: Vec<bool>,
    /// For each record whether it may run as one with the record before, where the device can do both in a launch: so the
    /// values of the two lie side by side, on any device, which costs the input of an MLP beside its widest values.
    joined: Vec<bool>,
    /// For each record the part of the model that it belongs to: an index into `scope_names`.
    scopes: Vec<usize>,
    scope_names: Vec<String>,
}

impl Tape {
    /// An empty tape whose activations are stored in `precision`.
    pub fn new(precision: Precision) -> Tape {
        Tape {
            generation: new_generation(),
            precision,
            values: Vec::new(),
            records: Vec::new(),
            made_again: Vec::new(),
            joined: Vec::new(),
            scopes: Vec::new(),
            scope_names: vec![String::new()],
        }
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Names the part of the model that the following records belong to, for traces and messages.
    pub fn scope(&mut self, name: impl Into<String>) {
        self.scope_names.push(name.into());
    }

    /// A value that is written before each run.
    pub fn input(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let tensor = self.value(dtype, shape);
        self.values[tensor.slot as usize].input = true;
        tensor
    }

    /// A value in the activations' own type that some record will write.
    pub fn activation(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.value(self.precision.dtype(), shape)
    }

    /// A value that some record will write.
    pub fn value(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let slot = self.values.len() as u32;
        let tensor =
            Tensor { arena: Arena::Activations, slot, generation: self.generation, dtype, shape: shape.into() };
        self.values.push(Value { bytes: tensor.bytes(), input: false, kept: false, requires_gradient: false });
        tensor
    }

    /// Keeps a value to the end of the run, to be read.
    pub fn keep(&mut self, tensor: Tensor) -> Tensor {
        if let Some(value) = self.values.get_mut(tensor.slot as usize) {
            value.kept = true;
        }
        tensor
    }

    /// Appends an operation whose arguments fit its contract.
    pub fn push(&mut self, record: impl Into<Record>) -> Result<()> {
        let record = record.into();
        let op = record.op();
        op.contract()?;
        let trains = op.weights().iter().any(|w| w.as_trained().is_some());
        if trains || op.inputs().iter().any(|t| self.requires_gradient(t)) {
            for t in op.outputs().iter().filter(|t| t.arena == Arena::Activations) {
                self.values[t.slot as usize].requires_gradient = true;
            }
        }
        self.joined.push(self.records.last().is_some_and(|last| last.followed(&record).is_some()));
        self.records.push(record);
        self.made_again.push(false);
        self.scopes.push(self.scope_names.len() - 1);
        Ok(())
    }

    /// Whether something trained lies behind a value, so that its gradient is worth computing.
    pub fn requires_gradient(&self, tensor: &Tensor) -> bool {
        tensor.arena == Arena::Activations && self.values.get(tensor.slot as usize).is_some_and(|v| v.requires_gradient)
    }

    /// A record and the next, where they may run as one.
    fn followed(&self, record: usize) -> Option<Followed<'_>> {
        let next = self.records.get(record + 1).filter(|_| self.joined[record + 1])?;
        self.records[record].followed(next)
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What all records cost together.
    pub fn cost(&self) -> Cost {
        self.records
            .iter()
            .map(|r| r.op().cost())
            .fold(Cost::default(), |a, b| Cost { bytes: a.bytes + b.bytes, flops: a.flops + b.flops })
    }

    /// Where every value lies: see [`plan`].
    pub fn plan(&self) -> Layout {
        plan::layout(self)
    }

    /// What the operation that needs most intermediate results takes for them on a device with kernels.
    pub fn scratch_bytes(&self, facts: &Facts) -> Result<usize> {
        let ranges = |(i, record): (usize, &Record)| match self.followed(i) {
            Some(followed) => followed.scratch(facts),
            None => record.op().scratch(facts),
        };
        let bytes = self.records.iter().enumerate().map(|r| Ok(scratch_bytes(&ranges(r)?)));
        bytes.collect::<Result<Vec<usize>>>().map(|bytes| bytes.into_iter().max().unwrap_or(0))
    }

    /// Lays the device's activation arena out for this tape, so that its inputs can be written. Says so where the device
    /// has too little memory for them and for the weights.
    pub fn begin(&self, device: &mut Device) -> Result<()> {
        let plan = self.plan();
        let weights: Vec<&Weight> = self.records.iter().flat_map(|r| r.op().weights()).collect();
        let scratch = device.facts().map_or(Ok(0), |facts| self.scratch_bytes(facts))?;
        device.reserve(plan.bytes, scratch, &weights)?;
        device.memory().lay_out(Arena::Activations, plan)
    }

    /// Runs the records. `progress` is told (done, all) before each. Inputs are written before each run.
    pub fn run(&self, device: &mut Device, clock: &mut Clock, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        self.forward(device, clock, progress)?;
        device.memory().forget_indices();
        Ok(())
    }

    fn forward(&self, device: &mut Device, clock: &mut Clock, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        let releases = if cfg!(debug_assertions) { plan::releases(self) } else { Vec::new() };
        let mut part = (usize::MAX, None);
        let mut done = false; // with the record before
        for (i, record) in self.records.iter().enumerate() {
            progress(i, self.records.len());
            let scope = self.scopes[i];
            if part.0 != scope {
                // ranges nest: the former part's ends before the next begins
                drop(part.1.take());
                part = (scope, device.range(&self.scope_names[scope]));
            }
            let run = match self.followed(i) {
                _ if done => Ok(false),
                Some(followed) => followed.run(device, clock),
                None => record.op().run(device, clock).map(|()| false),
            };
            done = run.map_err(|e| self.located(i, e))?;
            for place in releases.get(i).into_iter().flatten() {
                device.memory().poison(*place)?;
            }
        }
        Ok(())
    }

    fn located(&self, record: usize, e: crate::base::Error) -> crate::base::Error {
        let doing = format!("{} (record {record})", self.scope_names[self.scopes[record]]);
        crate::base::Error::While { doing, source: Box::new(e) }
    }
}
