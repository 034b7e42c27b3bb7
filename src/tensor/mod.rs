//! Handles: what a tensor is, apart from where its bytes lie.
//!
//! Owns [`Tensor`] (a value of a tape or of the cache) and [`Weight`] (a parameter that stays in the file it came from).
//! Floor 2: uses `base`. Start at [`Tensor`].

mod weight;

pub use weight::{Trained, Weight};

use crate::base::{DType, Shape};

/// Which allocation a tensor lives in: arenas are split by lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arena {
    /// One run of a tape: inputs, intermediate values, results.
    Activations,
    /// Keys and values kept from one run to the next.
    Cache,
    /// What is trained: numbers, gradients and moments.
    Parameters,
    /// What the frozen tower made of pictures, kept from one step to the next.
    Features,
}

/// A small copyable handle. `slot` indexes the arena's table of places; `generation` is that of the tape (or cache)
/// that made the handle, so that a handle used after its arena was laid out anew is an error and not wrong numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    pub arena: Arena,
    pub slot: u32,
    pub generation: u32,
    pub dtype: DType,
    pub shape: Shape,
}

impl Tensor {
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.bytes()
    }

    /// The same bytes under another shape. The number of elements has to agree: a caller's mistake otherwise.
    pub fn reshaped(self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.elements(), self.shape.elements(), "reshape {} to {shape}", self.shape);
        Tensor { shape, ..self }
    }

    /// Whether both name the same value, whatever shape they give it.
    pub fn same_value(&self, other: &Tensor) -> bool {
        (self.arena, self.slot, self.generation) == (other.arena, other.slot, other.generation)
    }
}

/// A generation no other layout of this process has.
pub fn new_generation() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
