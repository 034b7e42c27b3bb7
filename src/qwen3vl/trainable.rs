//! What is trained: which parameters, and where their numbers, gradients and moments lie.
//!
//! All of them are one flat f32 buffer each (values, gradients, first and second moments), so that the optimiser and
//! the norm of the gradients are one operation; each parameter is a part of it. Parameters that share an optimiser's
//! settings stand together ([`Group`]).

use super::adapter::Adapter;
use super::checkpoint::Checkpoint;
use super::names::{self, LinearModule, Part};
use super::parameters::matrix;
use crate::base::rng::{self, Stream};
use crate::base::shape::resized;
use crate::base::{DType, Precision, Result, Shape, dtype};
use crate::device::layout::ALIGNMENT;
use crate::device::{Device, Layout, Memory, Place};
use crate::io::HostTensor;
use crate::ops::linear::{self, Dropout};
use crate::tensor::{Arena, Tensor, Trained, new_generation};
use std::collections::HashMap;

/// The stream of random numbers that new adapters start from ("lora").
const START: u64 = 0x6c6f_7261;

/// One parameter.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The checkpoint's name, or the adapter's: `PATH.lora_A.weight`.
    pub name: String,
    /// As files have it.
    pub shape: Vec<usize>,
    /// As the device has it: an adapter's matrices are filled up to [`linear::held_rank`].
    pub trained: Trained,
}

impl Entry {
    /// Brings the numbers of a file to their place.
    pub fn write(&self, memory: &mut Memory, values: &[f32]) -> Result<()> {
        let place = self.trained.value;
        match place.shape.elements() == self.parameters() {
            true => memory.write_f32(place, values),
            false => memory.write_f32(place, &resized(values, matrix(&self.shape), place.shape)),
        }
    }

    /// The numbers as a file has them.
    pub fn value(&self, memory: &mut Memory) -> Result<HostTensor> {
        self.read(memory, self.trained.value)
    }

    /// Their gradients, likewise.
    pub fn gradient(&self, memory: &mut Memory) -> Result<HostTensor> {
        self.read(memory, self.trained.gradient)
    }

    fn read(&self, memory: &mut Memory, from: Tensor) -> Result<HostTensor> {
        let values = memory.read_f32(from)?;
        let values = match values.len() == self.parameters() {
            true => values,
            false => resized(&values, from.shape, matrix(&self.shape)),
        };
        Ok(HostTensor::f32(self.shape.clone(), values))
    }

    fn parameters(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Parameters with the same settings: a range of the flat buffers, whole.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Of the tower and its mergers, which may have a learning rate of their own.
    pub vision: bool,
    pub decayed: bool,
    pub value: Tensor,
    pub gradient: Tensor,
    pub first: Tensor,
    pub second: Tensor,
}

/// A LoRA pair of one module.
#[derive(Debug, Clone, Copy)]
pub struct LoraPair {
    pub a: Trained,
    pub b: Trained,
    pub scale: f32,
    /// Of A's input while training.
    pub dropout: Option<Dropout>,
}

pub struct Trainable {
    pub entries: Vec<Entry>,
    pub groups: Vec<Group>,
    /// All values, gradients and moments, flat [n].
    pub values: Tensor,
    pub gradients: Tensor,
    pub first: Tensor,
    pub second: Tensor,
    /// The norm of all gradients [1].
    pub norm: Tensor,
    lora: HashMap<String, LoraPair>,
    full: HashMap<String, Trained>,
    layout: Layout,
}

/// A parameter before it has a place.
struct Wanted {
    name: String,
    /// As files have it, and as the device is to have it.
    shape: Vec<usize>,
    held: Shape,
    vision: bool,
    decayed: bool,
}

impl Trainable {
    /// A LoRA pair for each module, of this rank and scale.
    pub fn lora(modules: &[LinearModule], rank: usize, scale: f32) -> Trainable {
        let held = linear::held_rank(rank);
        let wanted = modules.iter().flat_map(|m| {
            let of_a = ("lora_A", vec![rank, m.inputs], [held, m.inputs]);
            let of_b = ("lora_B", vec![m.outputs, rank], [m.outputs, held]);
            [of_a, of_b].map(|(side, shape, held)| Wanted {
                name: format!("{}.{side}.weight", m.path),
                shape,
                held: held.into(),
                vision: m.part != Part::Text,
                decayed: true,
            })
        });
        let mut trainable = Trainable::place(wanted.collect());
        let by_name: HashMap<&str, Trained> = trainable.entries.iter().map(|e| (e.name.as_str(), e.trained)).collect();
        let pair = |path: &str| {
            let side = |side: &str| by_name.get(format!("{path}.{side}.weight").as_str()).copied();
            Some(LoraPair { a: side("lora_A")?, b: side("lora_B")?, scale, dropout: None })
        };
        trainable.lora = modules.iter().filter_map(|m| Some((m.path.clone(), pair(&m.path)?))).collect();
        trainable
    }

    /// The same with a dropout of probability `p` before every A; 0: none.
    pub fn with_dropout(mut self, p: f64) -> Trainable {
        for (path, pair) in &mut self.lora {
            pair.dropout = (p > 0.0).then(|| Dropout { p, module: rng::id(path) });
        }
        self
    }

    /// Whether a pass in training is given keys for a dropout.
    pub fn drops_out(&self) -> bool {
        self.lora.values().any(|pair| pair.dropout.is_some())
    }

    /// Every tensor of the checkpoint. Biases and norms do not decay.
    pub fn full(checkpoint: &Checkpoint) -> Trainable {
        let wanted = names::modules(&checkpoint.config).into_iter().flat_map(|m| {
            let vision = m.part != Part::Text;
            let norm = matches!(m.kind, names::Kind::Norm { .. });
            let of = move |(i, (name, shape)): (usize, (String, Vec<usize>))| Wanted {
                name,
                held: matrix(&shape),
                shape,
                vision,
                decayed: i == 0 && !norm,
            };
            m.tensors().into_iter().enumerate().map(of).collect::<Vec<_>>()
        });
        let mut trainable = Trainable::place(wanted.collect());
        trainable.full = trainable.entries.iter().map(|e| (e.name.clone(), e.trained)).collect();
        trainable
    }

    fn place(mut wanted: Vec<Wanted>) -> Trainable {
        wanted.sort_by_key(|w| (w.vision, !w.decayed));
        let unit = ALIGNMENT / DType::F32.bytes();
        let size = |w: &Wanted| w.held.elements().next_multiple_of(unit);
        let n: usize = wanted.iter().map(size).sum();
        let generation = new_generation();
        let mut layout = Layout::sequential(generation, [4 * n, 4 * n, 4 * n, 4 * n, 4]);
        let starts: Vec<usize> = layout.places.iter().map(|p| p.offset).collect();
        let tensor = |slot: usize, shape: Shape| Tensor {
            arena: Arena::Parameters,
            slot: slot as u32,
            generation,
            dtype: DType::F32,
            shape,
        };
        // a part of one of the four buffers gets a slot of its own
        let mut part = |buffer: usize, offset: usize, shape: Shape| {
            let bytes = 4 * shape.elements();
            layout.places.push(Place { offset: starts[buffer] + 4 * offset, bytes });
            tensor(layout.places.len() - 1, shape)
        };
        let (mut entries, mut groups, mut offset) = (Vec::new(), Vec::new(), 0);
        for group in wanted.chunk_by(|a, b| (a.vision, a.decayed) == (b.vision, b.decayed)) {
            let from = offset;
            for w in group {
                let trained = Trained { value: part(0, offset, w.held), gradient: part(1, offset, w.held) };
                entries.push(Entry { name: w.name.clone(), shape: w.shape.clone(), trained });
                offset += size(w);
            }
            let [value, gradient, first, second] =
                [0, 1, 2, 3].map(|buffer| part(buffer, from, [offset - from].into()));
            let Wanted { vision, decayed, .. } = group[0];
            groups.push(Group { vision, decayed, value, gradient, first, second });
        }
        let [values, gradients, first, second] = [0, 1, 2, 3].map(|slot| tensor(slot, [n].into()));
        let norm = tensor(4, [1].into());
        let (lora, full) = (HashMap::new(), HashMap::new());
        Trainable { entries, groups, values, gradients, first, second, norm, lora, full, layout }
    }

    /// The trained pair of a module.
    pub fn lora_pair(&self, path: &str) -> Option<LoraPair> {
        self.lora.get(path).copied()
    }

    /// A tensor of the checkpoint that is trained itself.
    pub fn tensor(&self, name: &str) -> Option<Trained> {
        self.full.get(name).copied()
    }

    /// Whether the tower or a merger is trained, so that image features change from step to step.
    pub fn trains_vision(&self) -> bool {
        self.groups.iter().any(|g| g.vision)
    }

    /// Trained numbers in all.
    pub fn parameters(&self) -> usize {
        self.entries.iter().map(Entry::parameters).sum()
    }

    /// Bytes of values, gradients and moments.
    pub fn bytes(&self) -> usize {
        self.layout.bytes
    }

    /// Lays the device's parameter arena out: all zeros.
    pub fn allocate(&self, device: &mut Device) -> Result<()> {
        let memory = device.memory();
        memory.lay_out(Arena::Parameters, self.layout.clone())?;
        [self.values, self.gradients, self.first, self.second].iter().try_for_each(|t| memory.zero(*t))
    }

    /// A new adapter's start, as PEFT draws it: A uniform within 1 / sqrt(inputs) (Kaiming with a = sqrt(5)), B zero. A
    /// module's numbers depend on the seed and its name only.
    pub fn start_lora(&self, device: &mut Device, seed: u64) -> Result<()> {
        for entry in self.entries.iter().filter(|e| e.name.ends_with(".lora_A.weight")) {
            let stream = Stream::new(seed, &[START, rng::id(&entry.name)]);
            let bound = 1.0 / (entry.shape[1] as f32).sqrt();
            let n = entry.parameters() as u64;
            let values: Vec<f32> = (0..n).map(|i| (2.0 * stream.uniform(i) - 1.0) * bound).collect();
            entry.write(device.memory(), &values)?;
        }
        Ok(())
    }

    /// The numbers of an adapter of the same modules and rank.
    pub fn start_from(&self, device: &mut Device, adapter: &Adapter) -> Result<()> {
        for entry in &self.entries {
            let path = entry.name.strip_suffix(".lora_A.weight").or(entry.name.strip_suffix(".lora_B.weight"));
            let Some(module) = path.and_then(|p| adapter.modules.get(p)) else { continue };
            let values = if entry.name.ends_with(".lora_A.weight") { &module.a } else { &module.b };
            entry.write(device.memory(), values)?;
        }
        Ok(())
    }

    /// The numbers of the checkpoint.
    pub fn start_full(&self, device: &mut Device, checkpoint: &Checkpoint) -> Result<()> {
        for entry in &self.entries {
            let Some(stored) = checkpoint.tensor(&entry.name) else { continue };
            let values = dtype::widened(stored.entry.dtype, stored.bytes(), Precision::F32);
            entry.write(device.memory(), &values)?;
        }
        Ok(())
    }
}
