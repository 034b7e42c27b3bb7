//! `qk_rope`: norm of each query and key head (text only), rotation, and where asked keys and values into the cache.
//!
//! Specification: `host/qk_rope.rs`. The angles' table is made once for all layers (`qwen3vl/positions.rs`): M-RoPE and
//! the tower's 2-D rotary are then the same rotation. Rounding points: the normalised head before and after its weight,
//! and the rotated head; cos and sin stay f32.

use super::{Gradient, Op, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{DType, Precision, Result};
use crate::device::Device;
use crate::host;
use crate::host::attention::Heads;
use crate::tensor::{Tensor, Weight};
use rayon::prelude::*;

/// RMS norms of query and key heads, weights [E].
#[derive(Debug, Clone)]
pub struct HeadNorms {
    pub query: Weight,
    pub key: Weight,
    pub eps: f32,
}

/// Where new keys and values go: `slots` [T] (i32) names each token's row in the pools [rows, G E], which are written
/// as a side effect, in the order of tokens.
#[derive(Debug, Clone, Copy)]
pub struct Append {
    pub keys: Tensor,
    pub values: Tensor,
    pub slots: Tensor,
}

/// qkv [T, (H + 2G) E] becomes q [T, H E] and k [T, G E]; v stays where it is. angles [T, E] (f32): cos of E/2 angles,
/// then sin.
#[derive(Debug, Clone)]
pub struct QkRope {
    pub qkv: Tensor,
    pub angles: Tensor,
    pub norms: Option<HeadNorms>,
    pub heads: Heads,
    pub append: Option<Append>,
    pub precision: Precision,
    pub q: Tensor,
    pub k: Tensor,
}

impl Op for QkRope {
    fn name(&self) -> &'static str {
        "qk_rope"
    }

    fn contract(&self) -> Result<()> {
        let (t, h) = (self.qkv.shape.rows(), &self.heads);
        shape("qk_rope", "qkv", &self.qkv, [t, (h.queries + 2 * h.keys) * h.width])?;
        shape("qk_rope", "angles", &self.angles, [t, h.width])?;
        let f32 = || "f32".to_string();
        require("qk_rope", "angles", self.angles.dtype == DType::F32, f32, &self.angles.dtype)?;
        require("qk_rope", "heads", h.width % 2 == 0, || "an even width".into(), h)?;
        shape("qk_rope", "q", &self.q, [t, h.queries * h.width])?;
        shape("qk_rope", "k", &self.k, [t, h.keys * h.width])?;
        for w in self.weights() {
            weight_shape("qk_rope", "norm weight", w, [h.width])?;
        }
        if let Some(a) = &self.append {
            shape("qk_rope", "slots", &a.slots, [t])?;
            whole("qk_rope", "slots", &a.slots)?;
            let rows = a.keys.shape.rows();
            shape("qk_rope", "cached keys", &a.keys, [rows, h.keys * h.width])?;
            shape("qk_rope", "cached values", &a.values, [rows, h.keys * h.width])?;
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<Tensor> {
        let slots = self.append.map(|a| a.slots);
        [self.qkv, self.angles].into_iter().chain(slots).collect()
    }

    fn outputs(&self) -> Vec<Tensor> {
        let pools = self.append.iter().flat_map(|a| [a.keys, a.values]);
        [self.q, self.k].into_iter().chain(pools).collect()
    }

    fn weights(&self) -> Vec<&Weight> {
        self.norms.iter().flat_map(|n| [&n.query, &n.key]).collect()
    }

    fn cost(&self) -> super::Cost {
        // of the pools only the rows written
        let new = if self.append.is_some() { 2 * self.k.bytes() } else { 0 };
        let tensors = [self.qkv, self.angles, self.q, self.k].iter().map(Tensor::bytes).sum::<usize>();
        super::Cost { bytes: (tensors + new) as u64, flops: 0 }
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (qkv, angles) = (lent.f32(self.qkv)?, lent.f32(self.angles)?);
                let h = self.heads;
                let stride = self.qkv.shape.width();
                let weights = self.weights();
                let values = weights.iter().map(|w| lent.values(w, self.precision)).collect::<Result<Vec<_>>>()?;
                let eps = self.norms.as_ref().map_or(0.0, |n| n.eps);
                let norm = |i: usize| values.get(i).map(|w| host::qk_rope::HeadNorm { weight: w, eps });
                let rotate = |column: usize, heads: usize, norm, y: &mut [f32]| {
                    let rows = qkv.par_chunks_exact(stride).zip(angles.par_chunks_exact(h.width));
                    let rows = rows.zip(y.par_chunks_exact_mut(heads * h.width)).with_min_len(32);
                    rows.for_each(|((x, angles), y)| {
                        host::qk_rope::rotate(x, stride, column, heads, h.width, angles, norm, self.precision, y)
                    })
                };
                lent.output(self.q)?.fill(|q| rotate(0, h.queries, norm(0), q))?;
                let mut new_keys = Vec::new();
                lent.output(self.k)?.fill(|k| {
                    rotate(h.queries * h.width, h.keys, norm(1), k);
                    new_keys = if self.append.is_some() { k.to_vec() } else { Vec::new() };
                })?;
                let Some(append) = &self.append else { return Ok(()) };
                let slots = lent.i32(append.slots)?;
                indices("qk_rope", "slots", slots, append.keys.shape.rows(), false)?;
                let row = h.keys * h.width;
                let v = (h.queries + h.keys) * h.width;
                let keys = new_keys.chunks_exact(row);
                let new_values = qkv.chunks_exact(stride).map(|x| &x[v..][..row]);
                lent.output(append.keys)?.write_rows(slots, keys)?;
                lent.output(append.values)?.write_rows(slots, new_values)
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}

/// The gradients of [`QkRope`]: dq [T, H E] and dk [T, G E] add to the query and key columns of dqkv, and to the norms'
/// where they are trained. The value columns are attention's to write.
#[derive(Debug, Clone)]
pub struct QkRopeBackward {
    pub forward: QkRope,
    pub dq: Tensor,
    pub dk: Tensor,
    pub dqkv: Gradient,
}

impl Op for QkRopeBackward {
    fn name(&self) -> &'static str {
        "qk_rope_backward"
    }

    fn contract(&self) -> Result<()> {
        shape("qk_rope_backward", "dq", &self.dq, self.forward.q.shape)?;
        shape("qk_rope_backward", "dk", &self.dk, self.forward.k.shape)?;
        shape("qk_rope_backward", "dqkv", &self.dqkv.tensor, self.forward.qkv.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.forward.qkv, self.forward.angles, self.dq, self.dk]
    }

    fn outputs(&self) -> Vec<Tensor> {
        std::iter::once(self.dqkv.tensor).chain(trained(self.forward.weights())).collect()
    }

    fn weights(&self) -> Vec<&Weight> {
        self.forward.weights()
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        match device {
            Device::Host(memory) => {
                let f = &self.forward;
                let weights = self.weights();
                let mut lent = memory.borrow(&self.inputs(), &weights, &self.outputs())?;
                let (qkv, angles) = (lent.f32(f.qkv)?, lent.f32(f.angles)?);
                let gradients = [lent.f32(self.dq)?, lent.f32(self.dk)?];
                let values = weights.iter().map(|w| lent.values(w, f.precision)).collect::<Result<Vec<_>>>()?;
                let eps = f.norms.as_ref().map_or(0.0, |n| n.eps);
                let (h, stride) = (f.heads, f.qkv.shape.width());
                let mut dqkv = self.dqkv.open(&mut lent)?;
                let parts = [(0, h.queries), (h.queries * h.width, h.keys)];
                for (i, ((column, heads), dy)) in parts.into_iter().zip(&gradients).enumerate() {
                    let norm = values.get(i).map(|w| host::qk_rope::HeadNorm { weight: w, eps });
                    let mut dweight = open_trained(&mut lent, weights.get(i).copied())?;
                    let rotate = |x: &[f32], angles: &[f32], dy: &[f32], dx: &mut [f32], dw: Option<&mut [f32]>| {
                        host::qk_rope::rotate_backward(x, stride, column, heads, h.width, angles, norm, dy, dx, dw)
                    };
                    match &mut dweight {
                        Some(dw) => rotate(&qkv, &angles, dy, dqkv.values(), Some(dw.values())),
                        None => {
                            let rows = qkv.par_chunks_exact(stride).zip(angles.par_chunks_exact(h.width));
                            let rows = rows.zip(dy.par_chunks_exact(heads * h.width));
                            let rows = rows.zip(dqkv.values().par_chunks_exact_mut(stride)).with_min_len(32);
                            rows.for_each(|(((x, angles), dy), dx)| rotate(x, angles, dy, dx, None));
                        }
                    }
                    dweight.into_iter().for_each(|g| g.close());
                }
                dqkv.close();
                Ok(())
            }
            Device::Launch(_) => Err(super::no_kernel(self.name())),
        }
    }
}
