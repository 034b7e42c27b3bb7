//! `qk_rope`: norm of each query and key head (text only), rotation, and where asked keys and values into the cache.
//!
//! Specification: `host/qk_rope.rs`; kernels: `cuda/qk_rope.cu`. The angles' table is made once for all layers (`qwen3vl/positions.rs`): M-RoPE and
//! the tower's 2-D rotary are then the same rotation. Rounding points: the normalised head before and after its weight,
//! and the rotated head; cos and sin stay f32.

use super::{Gradient, Op, bf16, indices, open_trained, require, shape, trained, weight_shape, whole};
use crate::base::{DType, Precision, Result};
use crate::device::{Accumulate, Addresses, Device, Facts, Launch, Memory};
use crate::host;
use crate::host::attention::Heads;
use crate::tensor::{Tensor, Weight};
use rayon::prelude::*;

crate::arguments! {
    /// Of `cuda/qk_rope.cu`. Weights are absent together; so are slots and pools.
    #[derive(Default)]
    pub struct QkRopeArgs {
        qkv: u64,
        angles: u64,
        q_weight: u64,
        k_weight: u64,
        q: u64,
        k: u64,
        slots: u64,
        keys: u64,
        values: u64,
        tokens: i32,
        heads: i32,
        key_heads: i32,
        width: i32,
        lanes: i32,
        pool_rows: i32,
        eps: f32,
    }
}

crate::arguments! {
    /// Of `cuda/qk_rope.cu`. partial [2, chunks, E] (f32) is scratch.
    pub struct QkRopeBackwardArgs {
        qkv: u64,
        angles: u64,
        q_weight: u64,
        k_weight: u64,
        dq: u64,
        dk: u64,
        dqkv: u64,
        partial: u64,
        dq_weight: u64,
        dk_weight: u64,
        tokens: i32,
        heads: i32,
        key_heads: i32,
        width: i32,
        lanes: i32,
        add: i32,
        chunks: i32,
        eps: f32,
    }
}

const THREADS: usize = 256;
/// Tokens whose heads one block adds up for the gradient of the norms' weights.
const CHUNK: usize = 64;
/// The widest head whose norm can be trained.
const WIDEST_TRAINED: usize = 256;

/// Numbers that a lane moves at once (as index of a variant, and how many), and the lanes that share a head: half a head
/// lies at a multiple of them.
fn lanes(width: usize) -> (usize, usize) {
    let (variant, numbers) = match width {
        w if w % 16 == 0 => (0, 8),
        w if w % 8 == 0 => (1, 4),
        _ => (2, 1),
    };
    (variant, (width / 2).div_ceil(numbers).next_power_of_two().min(32))
}

fn plan(op: &'static str, kernels: [&'static str; 3], tokens: usize, n_heads: usize, width: usize) -> Result<Launch> {
    let (variant, lanes) = lanes(width);
    let blocks = (tokens * n_heads * lanes).div_ceil(THREADS);
    let fits = i32::try_from(blocks).is_ok() && i32::try_from(tokens).is_ok();
    require(op, "tokens", fits, || "fewer in one pass".into(), &tokens)?;
    Ok(Launch::of(kernels[variant], blocks as u32, THREADS as u32))
}

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

impl QkRope {
    /// How a device with kernels runs it: a few lanes a head, the values' too where they go into the cache.
    pub fn plan(&self) -> Result<Launch> {
        let kernels = ["qk_rope_fwd_v8_bf16", "qk_rope_fwd_v4_bf16", "qk_rope_fwd_v1_bf16"];
        let h = &self.heads;
        let n_heads = h.queries + h.keys * if self.append.is_some() { 2 } else { 1 };
        plan("qk_rope", kernels, self.qkv.shape.rows(), n_heads, h.width)
    }

    pub(super) fn arguments(&self, at: &Addresses) -> Result<QkRopeArgs> {
        let (h, append) = (&self.heads, self.append.as_ref());
        let weight = |norm: Option<&Weight>| norm.map_or(Ok(0), |w| at.weight(w));
        Ok(QkRopeArgs {
            qkv: at.of(&self.qkv)?,
            angles: at.of(&self.angles)?,
            q_weight: weight(self.norms.as_ref().map(|n| &n.query))?,
            k_weight: weight(self.norms.as_ref().map(|n| &n.key))?,
            q: at.of(&self.q)?,
            k: at.of(&self.k)?,
            slots: at.of_optional(append.map(|a| &a.slots))?,
            keys: at.of_optional(append.map(|a| &a.keys))?,
            values: at.of_optional(append.map(|a| &a.values))?,
            tokens: self.qkv.shape.rows() as i32,
            heads: h.queries as i32,
            key_heads: h.keys as i32,
            width: h.width as i32,
            lanes: lanes(h.width).1 as i32,
            pool_rows: append.map_or(0, |a| a.keys.shape.rows() as i32),
            eps: self.norms.as_ref().map_or(0.0, |n| n.eps),
        })
    }
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

    fn check(&self, memory: &Memory) -> Result<()> {
        let check = |a: &Append| indices("qk_rope", "slots", memory.indices(&a.slots)?, a.keys.shape.rows(), false);
        self.append.as_ref().map_or(Ok(()), check)
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
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
                let row = h.keys * h.width;
                let v = (h.queries + h.keys) * h.width;
                let keys = new_keys.chunks_exact(row);
                let new_values = qkv.chunks_exact(stride).map(|x| &x[v..][..row]);
                lent.output(append.keys)?.write_rows(slots, keys)?;
                lent.output(append.values)?.write_rows(slots, new_values)
            }
            Device::Launch(gpu) => {
                bf16("qk_rope", &[&self.qkv, &self.q, &self.k])?;
                self.append.as_ref().map_or(Ok(()), |a| bf16("qk_rope", &[&a.keys, &a.values]))?;
                let launch = self.plan()?;
                let at = gpu.addresses(&self.inputs(), &self.weights(), &self.outputs())?;
                let args = self.arguments(&at)?;
                // SAFETY: `contract` holds the shapes together, and the slots are rows of the pools.
                unsafe { gpu.launch("qk_rope", &launch, &args) }
            }
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

impl QkRopeBackward {
    /// How a device with kernels runs it: dqkv; then, where norms are trained, chunks of their gradient and the sum.
    pub fn plan(&self) -> Result<(Launch, Option<[Launch; 2]>)> {
        let (op, f) = ("qk_rope_backward", &self.forward);
        let kernels = ["qk_rope_bwd_v8_bf16", "qk_rope_bwd_v4_bf16", "qk_rope_bwd_v1_bf16"];
        let (t, h) = (f.qkv.shape.rows(), &f.heads);
        let cleared = if self.dqkv.accumulate == Accumulate::Overwrite { h.keys } else { 0 };
        let main = plan(op, kernels, t, h.queries + h.keys + cleared, h.width)?;
        if trained(self.weights()).is_empty() || t == 0 {
            return Ok((main, None));
        }
        let wanted = || format!("trained norms of heads at most {WIDEST_TRAINED} wide");
        require(op, "heads", h.width <= WIDEST_TRAINED, wanted, h)?;
        let grid = [t.div_ceil(CHUNK) as u32, 2, 1];
        let chunks = Launch { kernel: "qk_rope_bwd_dweight_bf16", grid, block: THREADS as u32, shared_bytes: 0 };
        Ok((main, Some([chunks, Launch::of("qk_rope_bwd_dweight_sum_f32", 2, THREADS as u32)])))
    }
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

    fn scratch(&self, _facts: &Facts) -> Result<Vec<usize>> {
        // partial sums of both weights' gradients for each chunk of rows
        let (_, of_weights) = self.plan()?;
        let chunks = self.forward.qkv.shape.rows().div_ceil(CHUNK);
        let numbers = if of_weights.is_some() { 2 * chunks * self.forward.heads.width } else { 0 };
        Ok(vec![numbers * size_of::<f32>()])
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
            Device::Launch(gpu) => {
                let (op, f) = ("qk_rope_backward", &self.forward);
                bf16(op, &[&f.qkv, &self.dq, &self.dk, &self.dqkv.tensor])?;
                let (main, of_weights) = self.plan()?;
                let at = gpu.addresses(&self.inputs(), &self.weights(), &self.outputs())?;
                let (t, h) = (f.qkv.shape.rows(), &f.heads);
                let chunks = t.div_ceil(CHUNK);
                let [partial] = gpu.scratch(&self.scratch(gpu.facts())?)?;
                let weight = |norm: Option<&Weight>| norm.map_or(Ok(0), |w| at.weight(w));
                let gradient = |norm: Option<&Weight>| norm.map_or(Ok(0), |w| at.gradient(w));
                let (query, key) = (f.norms.as_ref().map(|n| &n.query), f.norms.as_ref().map(|n| &n.key));
                let args = QkRopeBackwardArgs {
                    qkv: at.of(&f.qkv)?,
                    angles: at.of(&f.angles)?,
                    q_weight: weight(query)?,
                    k_weight: weight(key)?,
                    dq: at.of(&self.dq)?,
                    dk: at.of(&self.dk)?,
                    dqkv: at.of(&self.dqkv.tensor)?,
                    partial,
                    dq_weight: gradient(query)?,
                    dk_weight: gradient(key)?,
                    tokens: t as i32,
                    heads: h.queries as i32,
                    key_heads: h.keys as i32,
                    width: h.width as i32,
                    lanes: lanes(h.width).1 as i32,
                    add: i32::from(self.dqkv.accumulate == Accumulate::Add),
                    chunks: chunks as i32,
                    eps: f.norms.as_ref().map_or(0.0, |n| n.eps),
                };
                for launch in std::iter::once(&main).chain(of_weights.iter().flatten()) {
                    // SAFETY: `contract` holds the shapes together, those of weights and their gradients too; the scratch
                    // memory holds both sides' sums of each chunk.
                    unsafe { gpu.launch(op, launch, &args)? }
                }
                Ok(())
            }
        }
    }
}
