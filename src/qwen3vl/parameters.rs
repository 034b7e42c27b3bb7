//! Where the layers get their weights: a checkpoint, with the adapter's pairs at the modules that it adapts.

use super::adapter::{Adapter, AdapterModule};
use super::checkpoint::Checkpoint;
use super::config::Config;
use super::names;
use super::trainable::Trainable;
use crate::base::shape::resized;
use crate::base::{DType, Error, Result, Shape};
use crate::ops::linear::{self, Segment};
use crate::tensor::Weight;
use std::collections::HashMap;

/// Hands out weights by their names in the checkpoint.
pub struct Parameters<'a> {
    source: Source<'a>,
    adapter: Option<&'a Adapter>,
    trainable: Option<&'a Trainable>,
}

enum Source<'a> {
    Checkpoint(&'a Checkpoint),
    /// Shapes only, for a dry run: what a checkpoint of this configuration would hold, in this type.
    Shapes(HashMap<String, Vec<usize>>, DType),
}

impl<'a> Parameters<'a> {
    pub fn new(checkpoint: &'a Checkpoint, adapter: Option<&'a Adapter>) -> Parameters<'a> {
        Parameters { source: Source::Checkpoint(checkpoint), adapter, trainable: None }
    }

    /// A checkpoint of which some parameters, or adapters beside them, are trained.
    pub fn training(checkpoint: &'a Checkpoint, trainable: &'a Trainable) -> Parameters<'a> {
        Parameters { source: Source::Checkpoint(checkpoint), adapter: None, trainable: Some(trainable) }
    }

    /// Weights without bytes, to plan with.
    pub fn dry(config: &Config, dtype: DType) -> Parameters<'static> {
        let shapes = names::expected(config).into_iter().collect();
        Parameters { source: Source::Shapes(shapes, dtype), adapter: None, trainable: None }
    }

    /// A tensor of the checkpoint, left in its file.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        if let Some(trained) = self.trainable.and_then(|t| t.tensor(name)) {
            return Ok(Weight::trained(name, trained));
        }
        match &self.source {
            Source::Checkpoint(checkpoint) => {
                let missing = || Error::tensor(&checkpoint.dir, name, "the checkpoint has none of this name");
                let stored = checkpoint.tensor(name).ok_or_else(missing)?;
                let file = stored.file.file.clone();
                Weight::new(name, stored.entry.dtype, matrix(&stored.entry.shape), file, stored.entry.range.clone())
            }
            Source::Shapes(shapes, dtype) => {
                let missing = || Error::tensor("config.json", name, "the architecture has none of this name");
                Ok(Weight::shape_only(name, *dtype, matrix(shapes.get(name).ok_or_else(missing)?)))
            }
        }
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
                let AdapterModule { rank, inputs, outputs, .. } = *module;
                let held = linear::held_rank(rank);
                let matrix = |side: &str, values: &[f32], from: [usize; 2], to: [usize; 2]| {
                    Weight::from_f32(&format!("{path}.{side}"), to, &resized(values, from.into(), to.into()))
                };
                let a = matrix("lora_A", &module.a, [rank, inputs], [held, inputs])?;
                let b = matrix("lora_B", &module.b, [outputs, rank], [outputs, held])?;
                Some(linear::Adapter { a, b, scale: module.scale, dropout: None })
            }
            None => self.trainable.and_then(|t| t.lora_pair(path)).map(|pair| {
                let weight = |side: &str, trained| Weight::trained(&format!("{path}.{side}"), trained);
                let (a, b) = (weight("lora_A", pair.a), weight("lora_B", pair.b));
                linear::Adapter { a, b, scale: pair.scale, dropout: pair.dropout }
            }),
        };
        Ok(Segment { weight, bias, adapter })
    }
}

/// A weight's shape as the words see it: a convolution's kernel [C, channels, frames, height, width] is the matrix
/// [C, everything else].
pub(super) fn matrix(shape: &[usize]) -> Shape {
    match shape {
        [n] => [*n].into(),
        [n, rest @ ..] => [*n, rest.iter().product()].into(),
        [] => [1].into(),
    }
}
