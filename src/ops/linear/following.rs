//! A product and the word that reads its result, in one launch: of few rows on Hopper, where a launch of its own would take
//! longer than what it does.
//!
//! Kernels: `cuda/linear_few_sm90.cu`. The bits are those of the two words one after the other, and so are all values that
//! these write. Anywhere else they run one after the other.

use super::arguments::LinearFewArgs;
use super::launch;
use super::plan_few::FEW_ROWS;
use super::{Linear, Op};
use crate::base::{DType, Result};
use crate::device::{Addresses, Clock, Device, Facts};
use crate::ops::norm::{Kind, Norm};
use crate::ops::qk_rope::QkRope;
use crate::ops::swiglu::Swiglu;

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

impl<'a> Followed<'a> {
    /// None where the word reads something else.
    pub fn of(product: &'a Linear, next: Following<'a>) -> Option<Followed<'a>> {
        let reads = match next {
            Following::Swiglu(op) => op.gate_up,
            Following::QkRope(op) => op.qkv,
            Following::Norm(op) => op.x,
        };
        reads.same_value(&product.y).then_some(Followed { product, next })
    }

    pub fn next(&self) -> &'a dyn Op {
        match self.next {
            Following::Swiglu(op) => op,
            Following::QkRope(op) => op,
            Following::Norm(op) => op,
        }
    }

    /// As [`Op::scratch`], for both.
    pub fn scratch(&self, facts: &Facts) -> Result<Vec<usize>> {
        Ok(launch::forward_scratch(self.product, self.keeps_parts(facts), facts))
    }

    /// As [`Op::run`], of both. What one launch does is the product's under its name.
    pub fn run(&self, device: &mut Device, clock: &mut Clock) -> Result<()> {
        if !device.facts().is_some_and(|facts| self.fits(facts)) {
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

    /// Whether the sizes are those that one launch is made for. Where they lie may still speak against it.
    fn fits(&self, facts: &Facts) -> bool {
        let (product, m) = (self.product, self.product.m());
        let mut widths = product.segments.iter().map(|s| s.weight.shape().rows());
        let few = facts.is_hopper() && (1..=FEW_ROWS as usize).contains(&m) && product.rows.is_none();
        few && product.y.dtype == DType::Bf16
            && match self.next {
                Following::Swiglu(op) => widths.len() == 2 && widths.all(|n| n == op.y.shape.width()),
                Following::QkRope(op) => op.heads.width == HEAD && widths.all(|n| n % HEAD == 0),
                Following::Norm(op) => op.rows.is_none() && matches!(op.kind, Kind::Rms { .. }) && m <= NORM_ROWS,
            }
    }

    /// Whether even a single split leaves its sums to whoever comes last, because more than its columns belong together.
    pub(super) fn keeps_parts(&self, facts: &Facts) -> bool {
        self.fits(facts) && !matches!(self.next, Following::Norm(_))
    }

    /// What the kernel is told of the word that follows.
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
