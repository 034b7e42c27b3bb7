//! Tensors and weights of a row, and the numbers that they start with.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use vlm::base::{DType, Result, Shape, rng::Stream};
use vlm::device::{Device, Layout};
use vlm::tensor::{Arena, Tensor, Trained, Weight, new_generation};

/// Normal numbers that all tensors are cut from; a tensor that is longer has them again.
static NORMAL: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut numbers = vec![0.0; (1 << 22) + 1]; // odd, so that no row of a matrix repeats another
    Stream::new(0, &[]).fill_normal(0, &mut numbers);
    numbers
});

/// `n` of them from `at` on.
fn normal(at: usize, n: usize, scale: f32) -> Vec<f32> {
    let pool = &*NORMAL;
    let mut values = Vec::with_capacity(n);
    let mut from = at % pool.len();
    while values.len() < n {
        let piece = &pool[from..pool.len().min(from + n - values.len())];
        values.extend(piece.iter().map(|x| x * scale));
        from = 0;
    }
    values
}

/// The same as bf16: deviation 1/32, as weights have about.
pub fn normal_bf16(at: usize, n: usize) -> Vec<u8> {
    normal(at, n, 1.0 / 32.0).into_iter().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect()
}

/// The bytes of all frozen weights: a copy begins a little further on, so that a device holds it beside the others.
static WEIGHTS: Mutex<Option<Arc<Vec<u8>>>> = Mutex::new(None);

fn weight_bytes(bytes: usize) -> Arc<Vec<u8>> {
    let mut held = WEIGHTS.lock().unwrap_or_else(PoisonError::into_inner);
    match &*held {
        Some(all) if all.len() >= bytes => all.clone(),
        _ => held.insert(Arc::new(normal_bf16(0, bytes.div_ceil(2)))).clone(),
    }
}

enum Start {
    Normal(f32),
    /// Squares, for what must not be negative.
    Square(f32),
    Half,
    Whole(Vec<i32>),
    /// Whatever is there: it is written before it is read.
    Anything,
}

pub struct Room {
    generation: u32,
    tensors: Vec<(Tensor, Start)>,
    weights: usize,
}

impl Room {
    pub fn new() -> Room {
        Room { generation: new_generation(), tensors: Vec::new(), weights: 0 }
    }

    fn place(&mut self, arena: Arena, dtype: DType, shape: Shape, start: Start) -> Tensor {
        let slot = self.tensors.iter().filter(|(t, _)| t.arena == arena).count() as u32;
        let tensor = Tensor { arena, slot, generation: self.generation, dtype, shape };
        self.tensors.push((tensor, start));
        tensor
    }

    /// Normal bf16 numbers.
    pub fn bf16(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Activations, DType::Bf16, shape.into(), Start::Normal(1.0))
    }

    /// Normal f32 numbers.
    pub fn f32(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Activations, DType::F32, shape.into(), Start::Normal(1.0))
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
        self.place(Arena::Cache, DType::Bf16, shape.into(), Start::Normal(1.0))
    }

    /// f32 numbers beside the trained weights.
    pub fn parameter(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Parameters, DType::F32, shape.into(), Start::Normal(1.0 / 32.0))
    }

    /// The same, none negative.
    pub fn second_moment(&mut self, shape: impl Into<Shape>) -> Tensor {
        self.place(Arena::Parameters, DType::F32, shape.into(), Start::Square(1.0 / 32.0))
    }

    /// A frozen weight in bf16.
    pub fn weight(&mut self, shape: impl Into<Shape>) -> Weight {
        let shape = shape.into();
        let (from, bytes) = (256 * self.weights, 2 * shape.elements());
        self.weights += 1;
        Weight::new("weight", DType::Bf16, shape, weight_bytes(from + bytes), from..from + bytes).expect("its bytes")
    }

    /// A trained weight with its gradient.
    pub fn trained(&mut self, shape: impl Into<Shape>) -> Weight {
        let shape = shape.into();
        let (value, gradient) = (self.parameter(shape), self.parameter(shape));
        Weight::trained("trained weight", Trained { value, gradient })
    }

    /// Lays the device out and writes the numbers.
    pub fn begin(&self, device: &mut Device) -> Result<()> {
        for arena in [Arena::Activations, Arena::Cache, Arena::Parameters] {
            let sizes = self.tensors.iter().filter(|(t, _)| t.arena == arena).map(|(t, _)| t.bytes());
            device.memory().lay_out(arena, Layout::sequential(self.generation, sizes))?;
        }
        for (i, (tensor, start)) in self.tensors.iter().enumerate() {
            let (at, n) = (i * 77_777, tensor.shape.elements());
            match start {
                Start::Normal(scale) => device.memory().write_f32(*tensor, &normal(at, n, *scale))?,
                Start::Square(scale) => {
                    let squares: Vec<f32> = normal(at, n, *scale).into_iter().map(|x| x * x).collect();
                    device.memory().write_f32(*tensor, &squares)?;
                }
                Start::Half => device.memory().write_f32(*tensor, &vec![0.5; n])?,
                Start::Whole(values) => device.memory().write_i32(*tensor, values)?,
                Start::Anything => (),
            }
        }
        Ok(())
    }
}
