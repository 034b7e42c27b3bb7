//! Dropout: element i of a row is kept with probability 1 - p and divided by it, else it is 0, as PyTorch's
//! `nn.Dropout` in training.
//!
//! Which elements are kept follows from the row's key, the module and i alone: kept where the i-th word of 32 random
//! bits, as a part of 2^32, is p or more. So backward, a resumed run and another packing of the batch see the same mask.

use crate::base::rng::Stream;

/// How a module's input is thinned out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of an element to be left out, in [0, 1).
    pub p: f64,
    /// Keeps the masks of modules that share an input apart.
    pub module: u64,
}

impl Dropout {
    /// An element whose word is below this is left out.
    pub fn from(&self) -> u32 {
        (self.p * 2f64.powi(32)) as u32
    }

    /// What the others are multiplied with.
    pub fn kept(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }
}

/// What each element of a row is multiplied with: 0 or 1 / (1 - p). `key` is the row's, of [`Stream::key`].
pub fn factors(dropout: Dropout, key: [u32; 2], row: &mut [f32]) {
    let (from, kept) = (dropout.from(), dropout.kept());
    let mut words = vec![0; row.len()];
    Stream::of_key(key).with(dropout.module).fill_bits(&mut words);
    for (factor, word) in row.iter_mut().zip(words) {
        *factor = if word >= from { kept } else { 0.0 };
    }
}
