//! The words: for each its contract, its cost and how a device runs it.
//!
//! Floor 4: uses `device`, `host`, `tensor`, `base`; knows no tape, parameters or layers. A word's arguments are one
//! struct of handles; the struct implements [`Op`]. Start at [`norm`], the plainest, then [`linear`].

pub mod adamw;
pub mod attention;
pub mod attention_cached;
pub mod deepstack_add;
pub mod embed;
pub mod grad_norm;
pub mod linear;
pub mod linear_loss;
pub mod norm;
pub mod patch_embed;
pub mod qk_rope;
pub mod sample;
pub mod swiglu;

use crate::base::{DType, Error, Result, Shape};
use crate::device::{Accumulate, Borrowed, Clock, Device, Facts, Launch, Memory, Opened};
use crate::tensor::{Tensor, Weight};

/// What one call has to move and compute, at the least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of inputs, weights and outputs, each once.
    pub bytes: u64,
    /// Multiplications and additions of the products; element-wise work is not counted.
    pub flops: u64,
}

/// A gradient that an operation adds to: where, and whether something is there already.
#[derive(Debug, Clone, Copy)]
pub struct Gradient {
    pub tensor: Tensor,
    pub accumulate: Accumulate,
}

impl Gradient {
    fn open<'a>(&self, lent: &mut Borrowed<'a>) -> Result<Opened<'a>> {
        lent.output(self.tensor)?.open(self.accumulate)
    }
}

/// Where the gradients of trained weights go; frozen ones have none.
fn trained<'w>(weights: impl IntoIterator<Item = &'w Weight>) -> Vec<Tensor> {
    weights.into_iter().filter_map(|w| w.as_trained()).map(|t| t.gradient).collect()
}

/// Opens a weight's gradient, which is always added to; None where the weight is frozen.
fn open_trained<'a>(lent: &mut Borrowed<'a>, weight: Option<&Weight>) -> Result<Option<Opened<'a>>> {
    let gradient = weight.and_then(Weight::as_trained).map(|t| t.gradient);
    gradient.map(|tensor| Gradient { tensor, accumulate: Accumulate::Add }.open(lent)).transpose()
}

/// One operation with its arguments.
pub trait Op {
    fn name(&self) -> &'static str;
    /// Whether the arguments fit together: names what was wanted and what came.
    fn contract(&self) -> Result<()>;
    fn inputs(&self) -> Vec<Tensor>;
    fn outputs(&self) -> Vec<Tensor>;
    /// An input whose bytes the output may take over, where nobody needs the input afterwards.
    fn in_place(&self) -> Option<(Tensor, Tensor)> {
        None
    }
    fn weights(&self) -> Vec<&Weight> {
        Vec::new()
    }
    fn flops(&self) -> u64 {
        0
    }
    /// What a device with kernels lends the operation while it runs: the bytes of each range of intermediate results.
    fn scratch(&self, _facts: &Facts) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }
    fn cost(&self) -> Cost {
        let tensors = self.inputs().iter().chain(&self.outputs()).map(Tensor::bytes).sum::<usize>();
        let weights = self.weights().iter().map(|w| w.stored_bytes()).sum::<usize>();
        Cost { bytes: (tensors + weights) as u64, flops: self.flops() }
    }
    /// That the whole numbers which a kernel follows lie within what it reads and writes. Part of `forward`; where recorded
    /// launches happen again without it, this comes before them.
    fn check(&self, _memory: &Memory) -> Result<()> {
        Ok(())
    }
    fn forward(&self, device: &mut Device) -> Result<()>;
    /// [`Op::forward`] under the operation's name: a profiler's range, and the clock's where it is on. In debug builds it
    /// must have kept to its scratch memory and left counters at 0.
    fn run(&self, device: &mut Device, clock: &mut Clock) -> Result<()> {
        run_as(self.name(), device, clock, |device| self.forward(device))
    }
}

/// Runs `forward` as [`Op::run`] says.
fn run_as(
    name: &'static str,
    device: &mut Device,
    clock: &mut Clock,
    forward: impl FnOnce(&mut Device) -> Result<()>,
) -> Result<()> {
    let _range = device.range(name);
    clock.time(device, name, forward)?;
    device.check_after()
}

/// A device that runs kernels stores activations in bf16, and nothing else.
fn bf16(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    let other = tensors.iter().find(|t| t.dtype != DType::Bf16);
    require(op, "precision", other.is_none(), || "bf16, which is what the kernels compute in".into(), &other)
}

/// Threads of a block of the kernels that go through a tensor piece by piece.
const THREADS: usize = 256;

/// A kernel of which each thread owns 8 neighbouring columns of a row, or one where the width is no multiple of 8.
fn plan_pieces(kernel: &'static str, rows: usize, width: usize) -> Launch {
    let pieces = if width.is_multiple_of(8) { width / 8 } else { width };
    Launch::of(kernel, (rows * pieces).div_ceil(THREADS) as u32, THREADS as u32)
}

/// Checks that `ok` holds of an argument.
fn require(
    op: &'static str,
    argument: &'static str,
    ok: bool,
    wanted: impl FnOnce() -> String,
    got: &dyn std::fmt::Debug,
) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Contract { op, argument, wanted: wanted(), got: format!("{got:?}") })
}

/// Checks a tensor's shape.
fn shape(op: &'static str, argument: &'static str, tensor: &Tensor, wanted: impl Into<Shape>) -> Result<()> {
    let wanted = wanted.into();
    require(op, argument, tensor.shape == wanted, || format!("shape {wanted}"), &tensor.shape)
}

/// Checks a weight's shape.
fn weight_shape(op: &'static str, argument: &'static str, weight: &Weight, wanted: impl Into<Shape>) -> Result<()> {
    let wanted = wanted.into();
    require(op, argument, weight.shape() == wanted, || format!("shape {wanted}"), weight)
}

/// Checks that a tensor holds whole numbers.
fn whole(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    require(op, argument, tensor.dtype == DType::I32, || "i32".into(), &tensor.dtype)
}

/// Checks that a tensor holds f32.
fn f32(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    require(op, argument, tensor.dtype == DType::F32, || "f32".into(), &tensor.dtype)
}

/// Checks indices that a kernel would follow: all in 0..limit, or also -1 where `or_none`.
fn indices(op: &'static str, argument: &'static str, values: &[i32], limit: usize, or_none: bool) -> Result<()> {
    let low = if or_none { -1 } else { 0 };
    match values.iter().find(|v| **v < low || **v as i64 >= limit as i64) {
        None => Ok(()),
        Some(v) => {
            Err(Error::Contract { op, argument, wanted: format!("{low} to {limit} exclusive"), got: v.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_column() {
        assert!(plan_pieces("k", 0, 8).is_empty());
        for (rows, width, blocks) in [(1, 1, 1), (1, 8, 1), (256, 8, 1), (257, 8, 2), (3, 129, 2), (8448, 12288, 50688)]
        {
            assert_eq!(plan_pieces("k", rows, width).grid, [blocks, 1, 1], "{rows} {width}");
        }
    }
}
