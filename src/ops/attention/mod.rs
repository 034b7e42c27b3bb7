//! `attention`: y = softmax(scale q k^T + mask) v for packed sequences, each attending to itself.
//!
//! Specification: `host/attention.rs`; what the host device runs: `host/attention_tuned.rs`; kernels: `cuda/attention.cu`
//! and `cuda/attention_backward.cu`, on Hopper for heads 72 to 128 wide `cuda/attention_sm90.cu` and
//! `cuda/attention_backward_sm90.cu`. Rounding points in bf16: probabilities and their gradients where they enter
//! products; y, and dq, dk, dv. In bf16 forward leaves log2 of each query's sum of exponentials for backward, which reads
//! that and y; in f32 both are computed again.

mod backward;
mod hopper;

use super::{Op, bf16, require, shape, whole};
use crate::base::{DType, Error, Precision, Result};
use crate::device::{Accumulate, Device, Facts, Launch, Memory};
use crate::host::attention::Rows;
use crate::host::attention_tuned;
use crate::tensor::Tensor;

pub use crate::host::attention::{Heads, Mask};
pub use backward::{AttentionBackward, AttentionBackwardArgs};
pub use hopper::{AttentionBackwardSm90Args, AttentionSm90Args};

crate::arguments! {
    /// Of `cuda/attention.cu`. Strides count elements; v is the address of its first column.
    pub struct AttentionArgs {
        q: u64,
        k: u64,
        v: u64,
        starts: u64,
        y: u64,
        lse: u64,
        k_stride: i64,
        v_stride: i64,
        tokens: i32,
        sequences: i32,
        heads: i32,
        group: i32,
        width: i32,
        causal: i32,
        scale_log2: f32,
    }
}

/// The widths of heads that kernels are compiled for. A narrower head runs padded; one whose rows do not begin at
/// multiples of 16 bytes is read element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compiled {
    W32,
    W64,
    W80,
    W128,
    Unaligned,
}

impl Compiled {
    pub(super) fn of(op: &'static str, heads: &Heads) -> Result<Compiled> {
        Ok(match heads.width {
            1..=128 if !heads.width.is_multiple_of(8) => Compiled::Unaligned,
            8..=32 => Compiled::W32,
            40..=64 => Compiled::W64,
            72..=80 => Compiled::W80,
            88..=128 => Compiled::W128,
            _ => {
                let wanted = "heads at most 128 wide, or --device cpu".into();
                return Err(Error::Contract { op, argument: "heads", wanted, got: format!("{heads:?}") });
            }
        })
    }

    /// Bytes of a row in shared memory.
    pub(super) fn row_bytes(self) -> u32 {
        match self {
            Compiled::W32 => 64,
            Compiled::W64 => 128,
            Compiled::W80 => 176,
            Compiled::W128 | Compiled::Unaligned => 256,
        }
    }
}

/// Queries or keys of a tile, and threads of a block.
const TILE: usize = 64;
pub(super) const THREADS: u32 = 128;
/// The kernels begin at the first multiple of this in their shared memory.
pub(super) const SHARED_ALIGNMENT: u32 = 256;

/// One block for each head and slot of `tile_rows` rows: the tiles of each sequence, rounded up, have slots of their own.
pub(super) fn slots(op: &'static str, rows: usize, tile_rows: usize, sequences: usize) -> Result<u32> {
    let slots = rows / tile_rows + sequences;
    let fits = slots <= 65_535 && i32::try_from(rows).is_ok();
    require(op, "tokens", fits, || format!("at most {} rows in one pass", 65_535 * tile_rows), &rows)?;
    Ok(slots as u32)
}

fn plan(op: &'static str, kernels: [&'static str; 5], per_head: usize, tiles: u32, f: &Attention) -> Result<Launch> {
    let compiled = Compiled::of(op, &f.heads)?;
    let grid = [per_head as u32, slots(op, f.q.shape.rows(), TILE, f.sequences())?, 1];
    let shared_bytes = tiles * TILE as u32 * compiled.row_bytes() + SHARED_ALIGNMENT;
    Ok(Launch { kernel: kernels[compiled as usize], grid, block: THREADS, shared_bytes })
}

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
    /// [H, T] (f32), where there is a backward in bf16: log2 of each query's sum of 2^(scores log2 e).
    pub lse: Option<Tensor>,
}

impl Attention {
    fn precision(&self) -> Precision {
        Precision::of(self.q.dtype)
    }

    /// How a device with kernels runs it.
    pub fn plan(&self, facts: &Facts) -> Result<Launch> {
        if let Some(launch) = hopper::forward(self, facts)? {
            return Ok(launch);
        }
        let kernels = [
            "attention_fwd_w32_bf16",
            "attention_fwd_w64_bf16",
            "attention_fwd_w80_bf16",
            "attention_fwd_w128_bf16",
            "attention_fwd_unaligned_bf16",
        ];
        // two tiles of keys, one of values
        plan("attention", kernels, self.heads.queries, 3, self)
    }

    fn group(&self) -> i32 {
        (self.heads.queries / self.heads.keys) as i32
    }

    fn sequences(&self) -> usize {
        self.starts.shape.elements() - 1
    }

    fn causal(&self) -> i32 {
        i32::from(self.mask == Mask::Causal)
    }
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
        require("attention", "scale", self.scale > 0.0, || "a positive number".into(), &self.scale)?;
        whole("attention", "starts", &self.starts)?;
        require("attention", "starts", self.starts.shape.elements() > 0, || "a first one".into(), &self.starts.shape)?;
        if let Some(lse) = &self.lse {
            shape("attention", "lse", lse, [h.queries, t])?;
            let of_bf16 = self.precision() == Precision::Bf16 && lse.dtype == DType::F32;
            require("attention", "lse", of_bf16, || "f32 beside tensors in bf16".into(), &lse.dtype)?;
        }
        shape("attention", "y", &self.y, self.q.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.q, self.k, self.v, self.starts]
    }

    fn outputs(&self) -> Vec<Tensor> {
        [self.y].into_iter().chain(self.lse).collect()
    }

    fn flops(&self) -> u64 {
        4 * self.pairs * (self.heads.queries * self.heads.width) as u64
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        check_starts("attention", memory.indices(&self.starts)?, self.q.shape.rows())
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (q, k, v) = (lent.f32(self.q)?, lent.f32(self.k)?, lent.f32(self.v)?);
                let starts = lent.i32(self.starts)?;
                let k = Rows { data: &k, start: 0, stride: self.k.shape.width() };
                let v = Rows { data: &v, start: self.v_column, stride: self.v.shape.width() };
                let (heads, mask, scale, precision) = (self.heads, self.mask, self.scale, self.precision());
                let mut lse = self.lse.map(|lse| lent.output(lse)?.open(Accumulate::Overwrite)).transpose()?;
                lent.output(self.y)?.fill(|y| {
                    let lse = lse.as_mut().map(|lse| lse.values());
                    attention_tuned::attention(&q, k, v, starts, heads, mask, scale, precision, y, lse);
                })
            }
            Device::Launch(gpu) => {
                bf16("attention", &[&self.q, &self.k, &self.v, &self.y])?;
                let launch = self.plan(gpu.facts())?;
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                if self.q.shape.rows() == 0 {
                    return Ok(());
                }
                let args = AttentionArgs {
                    q: at.of(&self.q)?,
                    k: at.of(&self.k)?,
                    v: at.of(&self.v)? + 2 * self.v_column as u64,
                    starts: at.of(&self.starts)?,
                    y: at.of(&self.y)?,
                    lse: self.lse.map_or(Ok(0), |lse| at.of(&lse))?,
                    k_stride: self.k.shape.width() as i64,
                    v_stride: self.v.shape.width() as i64,
                    tokens: self.q.shape.rows() as i32,
                    sequences: self.sequences() as i32,
                    heads: self.heads.queries as i32,
                    group: self.group(),
                    width: self.heads.width as i32,
                    causal: self.causal(),
                    scale_log2: self.scale * std::f32::consts::LOG2_E,
                };
                if hopper::runs(self, gpu.facts()) {
                    let args = hopper::forward_arguments(self, args, gpu, &at)?;
                    // SAFETY: as below; reads go through tensor maps of the tensors' own sizes.
                    return unsafe { gpu.launch("attention", &launch, &args) };
                }
                // SAFETY: `contract` holds the shapes together and the starts rise to the number of rows, so that the
                // kernel reads rows that q, k, v have and columns that the strides have, and writes y's.
                unsafe { gpu.launch("attention", &launch, &args) }
            }
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
