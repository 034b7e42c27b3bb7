//! A product and the word that reads its result, in one launch of Hopper's: of few rows, where a launch of its own would take
//! longer than what it does, and SwiGLU of any number, which then need not read what was just written.
//!
//! Kernels: `cuda/linear_few_sm90.cu`, `cuda/linear_sm90.cu`. The bits are those of the two words one after the other, and
//! so are all values that these write. Anywhere else they run one after the other.

use super::arguments::LinearFewArgs;
use super::launch;
use super::plan_few::FEW_ROWS;
use super::{Activation, Linear, Op};
use crate::base::{DType, Result};
use crate::device::{Addresses, Clock, Device, Facts};
use crate::ops::norm::{Kind, Norm};
use crate::ops::qk_rope::QkRope;
use crate::ops::swiglu::Swiglu;
use crate::tensor::Tensor;

/// Rows up to which one warpgroup normalises them all in less time than a launch takes. Unmeasured.
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

    /// Whether this reads what `product` writes, in sizes that one launch is made for.
    fn fits(self, product: &Linear) -> bool {
        let (y, m) = (&product.y, product.m());
        let few = m <= FEW_ROWS as usize;
        let mut widths = product.segments.iter().map(|s| s.weight.shape().rows());
        let alone = product.activation == Activation::None && product.residual.is_none() && product.z.is_none();
        let plain = alone && product.segments.iter().all(|s| s.bias.is_none() && s.adapter.is_none());
        let fits = match self {
            Following::Swiglu(op) => {
                let halves = widths.len() == 2 && widths.all(|n| n == op.y.shape.width());
                op.gate_up.same_value(y) && halves && (few || plain)
            }
            Following::QkRope(op) => {
                op.qkv.same_value(y) && few && op.heads.width == HEAD && widths.all(|n| n % HEAD == 0)
            }
            Following::Norm(op) => {
                let whole = op.rows.is_none() && matches!(op.kind, Kind::Rms { .. });
                op.x.same_value(y) && m <= NORM_ROWS && whole
            }
        };
        fits && m > 0 && product.rows.is_none() && y.dtype == DType::Bf16
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

    /// As [`Op::run`], of both. What one launch does is the product's under its name.
    pub fn run(&self, device: &mut Device, clock: &mut Clock) -> Result<()> {
        if !device.facts().is_some_and(Facts::is_hopper) {
            self.product.run(device, clock)?;
            return self.next().run(device, clock);
        }
        self.product.check(device.memory())?;
        self.next().check(device.memory())?;
        let mut done = false;
        {
            let name = self.product.name();
            let _range = device.range(name);
            clock.time(device, name, |device| {
                let Device::Launch(gpu) = device else { return self.product.forward(device) };
                done = launch::forward(self.product, Some(self), gpu)?;
                Ok(())
            })?;
            device.check_after()?;
        }
        if done { Ok(()) } else { self.next().run(device, clock) }
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
            Following::QkRope(op) => {
                op.stored_in_bf16()?;
                LinearFewArgs { following: 2, heads: op.arguments(at)?, ..nothing }
            }
            Following::Norm(op) => LinearFewArgs { following: 3, rows: op.arguments(at)?, ..nothing },
        })
    }
}
