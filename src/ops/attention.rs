//! `attention`: y = softmax(scale q k^T + mask) v for packed sequences, each attending to itself.
//!
//! Specification: `host/attention.rs`; what the host device runs: `host/attention_tuned.rs`. Rounding point: y; scores
//! and probabilities stay f32, as in the flash kernels that transformers calls through SDPA.

use super::{Gradient, Op, require, shape, whole};
use crate::base::{Error, Result};
use crate::device::Device;
use crate::host::attention::{Rows, RowsMut};
use crate::host::attention_tuned;
use crate::tensor::Tensor;

pub use crate::host::attention::{Heads, Mask};

/// q [T, H E], k [T, G E]; v are columns of `v` [T, any] from `v_column`; starts [B + 1] (i32): sequence b has tokens
/// starts[b]..starts[b + 1]; y [T, H E].
#[derive(Debug, Clone)]
pub struct Attention {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub v_column: usize,
    pub starts: Tensor,
    pub heads: Heads,
    pub mask: Mask,
    pub scale: f32,
    /// Sum over the sequences of the pairs that attend to each other, for the cost.
    pub pairs: u64,
    pub y: Tensor,
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn contract(&self) -> Result<()> {
        let (t, h) = (self.q.shape.rows(), &self.heads);
        shape("attention", "q", &self.q, [t, h.queries * h.width])?;
        shape("attention", "k", &self.k, [t, h.keys * h.width])?;
        let fits = self.v.shape.rows() == t && self.v_column + h.keys * h.width <= self.v.shape.width();
        require(
            "attention",
            "v",
            fits,
            || format!("{t} rows with {h:?} from column {}", self.v_column),
            &self.v.shape,
        )?;
        require("attention", "heads", h.queries % h.keys == 0, || "groups of equal size".into(), h)?;
        whole("attention", "starts", &self.starts)?;
        shape("attention", "y", &self.y, self.q.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.q, self.k, self.v, self.starts]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn flops(&self) -> u64 {
        4 * self.pairs * (self.heads.queries * self.heads.width) as u64
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (q, k, v) = (lent.f32(self.q)?, lent.f32(self.k)?, lent.f32(self.v)?);
                let starts = lent.i32(self.starts)?;
                check_starts("attention", starts, self.q.shape.rows())?;
                let k = Rows { data: &k, start: 0, stride: self.k.shape.width() };
                let v = Rows { data: &v, start: self.v_column, stride: self.v.shape.width() };
                lent.output(self.y)?
                    .fill(|y| attention_tuned::attention(&q, k, v, starts, self.heads, self.mask, self.scale, y))
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}

/// The gradients of [`Attention`]: dy [T, H E] adds to dq, dk and the value columns of `dv`, probabilities computed
/// again.
#[derive(Debug, Clone)]
pub struct AttentionBackward {
    pub forward: Attention,
    pub dy: Tensor,
    pub dq: Gradient,
    pub dk: Gradient,
    pub dv: Gradient,
}

impl Op for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention_backward"
    }

    fn contract(&self) -> Result<()> {
        shape("attention_backward", "dy", &self.dy, self.forward.y.shape)?;
        shape("attention_backward", "dq", &self.dq.tensor, self.forward.q.shape)?;
        shape("attention_backward", "dk", &self.dk.tensor, self.forward.k.shape)?;
        shape("attention_backward", "dv", &self.dv.tensor, self.forward.v.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        let f = &self.forward;
        vec![f.q, f.k, f.v, f.starts, self.dy]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.dq.tensor, self.dk.tensor, self.dv.tensor]
    }

    fn flops(&self) -> u64 {
        // scores again, and four products of their size
        self.forward.flops() / 2 * 5
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let f = &self.forward;
                let mut lent = memory.borrow(&self.inputs(), &[], &self.outputs())?;
                let (q, k, v, dy) = (lent.f32(f.q)?, lent.f32(f.k)?, lent.f32(f.v)?, lent.f32(self.dy)?);
                let starts = lent.i32(f.starts)?;
                check_starts("attention_backward", starts, f.q.shape.rows())?;
                let (k_stride, v_stride) = (f.k.shape.width(), f.v.shape.width());
                let k = Rows { data: &k, start: 0, stride: k_stride };
                let v = Rows { data: &v, start: f.v_column, stride: v_stride };
                let (mut dq, mut dk) = (self.dq.open(&mut lent)?, self.dk.open(&mut lent)?);
                let mut dv = self.dv.open(&mut lent)?;
                attention_tuned::attention_backward(
                    &q,
                    k,
                    v,
                    starts,
                    f.heads,
                    f.mask,
                    f.scale,
                    &dy,
                    dq.values(),
                    RowsMut { data: dk.values(), start: 0, stride: k_stride },
                    RowsMut { data: dv.values(), start: f.v_column, stride: v_stride },
                );
                [dq, dk, dv].into_iter().for_each(|g| g.close());
                Ok(())
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}

/// Starts rise from 0 to the number of rows.
pub(super) fn check_starts(op: &'static str, starts: &[i32], rows: usize) -> Result<()> {
    let ends = starts.first() == Some(&0) && starts.last().copied() == i32::try_from(rows).ok();
    if ends && starts.is_sorted() {
        return Ok(());
    }
    let wanted = format!("numbers that rise from 0 to {rows}");
    Err(Error::Contract { op, argument: "starts", wanted, got: format!("{starts:?}") })
}
