//! Tensors and weights of a row, in as many copies as it has, and what they start with.

use super::numbers::{Kind, Numbers, weight_bytes};
use vlm::base::{DType, Result, Shape};
use vlm::device::{Device, Layout};
use vlm::tensor::{Arena, Tensor, Trained, Weight, new_generation};

enum Start {
    Normal(Kind),
    Half,
    Whole(Vec<i32>),
    /// Whatever is there: it is written before it is read.
    Anything,
}

pub struct Room {
    generation: u32,
    tensors: Vec<(Tensor, Start)>,
    weights: usize,
    /// Bytes of the weights that each copy has of its own.
    weight_bytes: usize,
    copies: usize,
}

impl Room {
    pub fn new() -> Room {
        Room { generation: new_generation(), tensors: Vec::new(), weights: 0, weight_bytes: 0, copies: 0 }
    }

    /// Has what is made from here on belong to another copy.
    pub fn next_copy(&mut self) {
        self.copies += 1;
    }

    /// How many copies came before the one that is being made.
    pub fn copies_before(&self) -> usize {
        self.copies
    }

    /// Bytes of the tensors and of the weights that are no other copy's too.
    pub fn bytes(&self) -> u64 {
        (self.tensors.iter().map(|(t, _)| t.bytes()).sum::<usize>() + self.weight_bytes) as u64
    }

    fn place(&mut self, arena: Arena, dtype: DType, shape: Shape, start: Start) -> Tensor {
        let slot = self.tensors.iter().filter(|(t, _)| t.arena == arena).count() as u32;
        let tensor = Tensor { arena, slot, generation: self.generation, dtype, shape };
        self.tensors.push((tensor, start));
        tensor
    }

    /// Normal bf16 numbers.
    pub fn bf16(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Activations, DType::Bf16, shape.into(), Start::Normal(Kind::Unit))
    }

    /// Normal f32 numbers.
    pub fn f32(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Activations, DType::F32, shape.into(), Start::Normal(Kind::Unit))
    }

    pub fn whole(&mut self, shape: impl Into<Shape>, values: Vec<i32>) -> Tensor {
        self.place(Arena::Activations, DType::I32, shape.into(), Start::Whole(values))
    }

    pub fn output(&mut self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Activations, dtype, shape.into(), Start::Anything)
    }

    /// One half, everywhere: what a uniform number may be.
    pub fn uniform(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Activations, DType::F32, shape.into(), Start::Half)
    }

    /// A pool of the cache of keys and values.
    pub fn pool(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Cache, DType::Bf16, shape.into(), Start::Normal(Kind::Unit))
    }

    /// f32 numbers beside the trained weights.
    pub fn parameter(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Parameters, DType::F32, shape.into(), Start::Normal(Kind::Small))
    }

    /// The same, none negative.
    pub fn second_moment(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Parameters, DType::F32, shape.into(), Start::Normal(Kind::Square))
    }

    /// A frozen weight in bf16.
    pub fn weight(&mut self, shape: impl Into<Shape>) -> Weight {
        self.weights += 1;
        let weight = frozen(256 * self.weights, shape.into());
        self.weight_bytes += weight.stored_bytes();
        weight
    }

    /// A frozen weight in bf16 that all copies have together: each reads a small part of it.
    pub fn table(&mut self, shape: impl Into<Shape>) -> Weight {
        frozen(0, shape.into())
    }

    /// A trained weight with its gradient.
    pub fn trained(&mut self, shape: impl Into<Shape>) -> Weight {
        let shape = shape.into();
        let (value, gradient) = (self.parameter(shape), self.parameter(shape));
        Weight::trained("trained weight", Trained { value, gradient })
    }

    /// Lays the device out and writes the numbers.
    pub fn begin(&self, device: &mut Device, numbers: &Numbers) -> Result<()> {
        for arena in [Arena::Activations, Arena::Cache, Arena::Parameters] {
            let sizes = self.tensors.iter().filter(|(t, _)| t.arena == arena).map(|(t, _)| t.bytes());
            device.memory().lay_out(arena, Layout::sequential(self.generation, sizes))?;
        }
        for (i, (tensor, start)) in self.tensors.iter().enumerate() {
            match start {
                Start::Normal(kind) => numbers.fill(device, *tensor, *kind, i)?,
                Start::Half => device.memory().write_f32(*tensor, &vec![0.5; tensor.shape.elements()])?,
                Start::Whole(values) => device.memory().write_i32(*tensor, values)?,
                Start::Anything => (),
            }
        }
        Ok(())
    }
}

fn frozen(from: usize, shape: Shape) -> Weight {
    let bytes = 2 * shape.elements();
    Weight::new("weight", DType::Bf16, shape, weight_bytes(from + bytes), from..from + bytes).expect("its bytes")
}
