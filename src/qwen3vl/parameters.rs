//! Where the layers get their weights: a checkpoint, with the adapter's pairs at the modules that it adapts.

use super::adapter::Adapter;
use super::checkpoint::Checkpoint;
use super::names;
use crate::base::{Error, Result, Shape};
use crate::ops::linear::{self, Segment};
use crate::tensor::Weight;

/// Hands out weights by their names in the checkpoint.
pub struct Parameters<'a> {
    checkpoint: &'a Checkpoint,
    adapter: Option<&'a Adapter>,
}

impl<'a> Parameters<'a> {
    pub fn new(checkpoint: &'a Checkpoint, adapter: Option<&'a Adapter>) -> Parameters<'a> {
        Parameters { checkpoint, adapter }
    }

    /// A tensor of the checkpoint, left in its file.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let (file, entry) = self.checkpoint.tensor(name)?;
        let shape = match entry.shape[..] {
            [n] => Shape::new([n]),
            [n, k] => Shape::new([n, k]),
            // a convolution's kernel [C, channels, frames, height, width] is the matrix [C, everything else]
            [n, ref rest @ ..] => Shape::new([n, rest.iter().product()]),
            [] => return Err(Error::tensor(&self.checkpoint.dir, name, "has no sizes")),
        };
        Weight::new(name, entry.dtype, shape, file, entry.range.clone())
    }

    /// A linear module: its weight, its bias where the architecture has one, its adapter where there is one.
    pub fn segment(&self, path: &str, has_bias: bool) -> Result<Segment> {
        let weight = self.weight(&names::weight(path))?;
        let bias = if has_bias { Some(self.weight(&names::bias(path))?) } else { None };
        self.adapted(path, weight, bias)
    }

    /// A linear module whose weight is already at hand.
    pub fn adapted(&self, path: &str, weight: Weight, bias: Option<Weight>) -> Result<Segment> {
        let adapter = match self.adapter.and_then(|a| a.modules.get(path)) {
            Some(module) => {
                let pair = |name: &str, tensor: &super::adapter::LoraTensor| {
                    Weight::from_f32(&format!("{path}.{name}"), [tensor.rows, tensor.columns], &tensor.values)
                };
                let (a, b) = (pair("lora_A", &module.a)?, pair("lora_B", &module.b)?);
                Some(linear::Adapter { a, b, scale: module.scale })
            }
            None => None,
        };
        Ok(Segment { weight, bias, adapter })
    }
}
