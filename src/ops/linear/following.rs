//! A product and the word that reads its result, in one launch of Hopper's: of few rows, where a launch of its own would
//! take longer than what it does, and SwiGLU of any number, which then need not read what was just written.
//!
//! Kernels: `cuda/linear_few_sm90.cu`, `cuda/linear_sm90.cu`. The bits are those of the two words one after the other,
//! and so are all values that these write. Anywhere else they run one after the other.

use super::arguments::LinearFewArgs;
use super::launch;
use super::plan_few::FEW_ROWS;
use super::{Activation, Linear, Op};
use crate::base::{DType, Result};
use crate::device::{Addresses, Clock, Device, Facts};
use crate::ops::norm::{Kind, Norm};
use crate::ops::qk_rope::QkRope;
use crate::ops::run_as;
use crate::ops::swiglu::Swiglu;
use crate::tensor::Tensor;

/// Rows up to which one warpgroup normalises them all in less time than a launch takes. Unmeasured, as is whether the other
/// words are worth it up to [`FEW_ROWS`].
const NORM_ROWS: usize = 4;
/// Columns of a tile: what a head has to be for one block to have all of it.
const HEAD: usize = 128;

/// The word after a product.
#[derive(Clone, Copy)]
pub enum Following<'a> {
    Swiglu(&'a Swiglu),
    QkRope(&'a QkRope),
    Norm(&'a Norm),
}

/// A product and what follows it.
pub struct Followed<'a> {
    pub product: &'a Linear,
    next: Following<'a>,
}

impl<'a> Following<'a> {
    pub fn op(self) -> &'a dyn Op {
        match self {
            Following::Swiglu(op) => op,
            Following::QkRope(op) => op,
            Following::Norm(op) => op,
        }
    }

    /// Whether this reads all that `product` writes, in its shape, in sizes that one launch is made for.
    fn fits(self, product: &Linear) -> bool {
        let (y, m) = (&product.y, product.m());
        let few = m <= FEW_ROWS as usize;
        let reads = |x: &Tensor| x.same_value(y) && x.shape == y.shape;
        let mut widths = product.segments.iter().map(|s| s.weight.shape().rows());
        let alone = product.activation == Activation::None && product.residual.is_none() && product.z.is_none();
        let plain = alone && product.segments.iter().all(|s| s.bias.is_none() && s.adapter.is_none());
        let fits = match self {
            Following::Swiglu(op) => {
                let halves = widths.len() == 2 && widths.all(|n| n == op.y.shape.width());
                reads(&op.gate_up) && halves && (few || plain)
            }
            Following::QkRope(op) => reads(&op.qkv) && few && op.heads.width == HEAD && widths.all(|n| n % HEAD == 0),
            Following::Norm(op) => {
                let whole = op.rows.is_none() && matches!(op.kind, Kind::Rms { .. });
                reads(&op.x) && m <= NORM_ROWS && whole
            }
        };
        // what is not stored in bf16 each word refuses by itself
        let stored = self.op().outputs().iter().chain([y]).all(|t| t.dtype == DType::Bf16);
        fits && stored && m > 0 && product.rows.is_none()
    }
}

impl<'a> Followed<'a> {
    /// None where the word reads something else, or no launch does both.
    pub fn of(product: &'a Linear, next: Following<'a>) -> Option<Followed<'a>> {
        next.fits(product).then_some(Followed { product, next })
    }

    pub fn next(&self) -> &'a dyn Op {
        self.next.op()
    }

    /// As [`Op::scratch`], for both.
    pub fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        Ok(launch::forward_scratch(self.product, self.keeps_parts(facts), facts))
    }

    /// Runs the product as [`Op::run`] does and, where one launch does both, what follows: then under the product's name.
    /// Says whether it did.
    pub fn run(&self, device: &mut Device, clock: &mut Clock) -> Result<bool> {
        let mut both = false;
        run_as(self.product.name(), device, clock, |device| match device {
            Device::Launch(gpu) if gpu.facts().is_hopper() => {
                self.product.check(&gpu.memory)?;
                self.next().check(&gpu.memory)?;
                both = launch::forward(self.product, Some(self), gpu)?;
                Ok(())
            }
            _ => self.product.forward(device),
        })?;
        Ok(both)
    }

    /// Whether even a single split leaves its sums to whoever comes last, because more than its columns belong together.
    pub(super) fn keeps_parts(&self, facts: &Facts) -> bool {
        facts.is_hopper() && self.product.m() <= FEW_ROWS as usize && !matches!(self.next, Following::Norm(_))
    }

    /// Where the result of SwiGLU goes, of a product of any number of rows.
    pub(super) fn gated(&self) -> Option<&'a Tensor> {
        match self.next {
            Following::Swiglu(op) => Some(&op.y),
            _ => None,
        }
    }

    /// What the kernel of few rows is told of the word that follows.
    pub(super) fn arguments(&self, at: &Addresses) -> Result<LinearFewArgs> {
        let nothing = LinearFewArgs::default();
        Ok(match self.next {
            Following::Swiglu(op) => LinearFewArgs { following: 1, swiglu: at.of(&op.y)?, ..nothing },
            Following::QkRope(op) => LinearFewArgs { following: 2, heads: op.arguments(at)?, ..nothing },
            Following::Norm(op) => LinearFewArgs { following: 3, rows: op.arguments(at)?, ..nothing },
        })
    }
}
