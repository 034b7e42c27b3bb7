//! `attention_cached`: the newest tokens of each sequence attend to all its keys and values, found through a table of
//! blocks.
//!
//! Specification: `host/attention.rs`; what the host device runs: `host/attention_tuned.rs`; kernels:
//! `cuda/attention_cached.cu`. Rounding point: y. A token's result does not depend on what else is in the batch.

use super::attention::{Compiled, SHARED_ALIGNMENT, THREADS, check_starts, slots};
use super::{Op, bf16, indices, require, shape, whole};
use crate::base::{Error, Precision, Result};
use crate::device::accelerator::COUNTERS;
use crate::device::{Device, Facts, Launch, Memory};
use crate::host::attention::{BlockTable, Heads};
use crate::host::attention_tuned;
use crate::tensor::Tensor;

crate::arguments! {
    /// Of `cuda/attention_cached.cu`. partial (f32) is scratch: for each row of a launch's slots and each split the sum of
    /// values [E], the largest score and the sum of the weights. A counter for each slot of a launch and key head.
    pub struct AttentionCachedArgs {
        q: u64,
        keys: u64,
        values: u64,
        starts: u64,
        lengths: u64,
        blocks: u64,
        partial: u64,
        counters: u64,
        y: u64,
        tokens: i32,
        sequences: i32,
        heads: i32,
        group: i32,
        width: i32,
        block: i32,
        max_blocks: i32,
        pool_blocks: i32,
        splits: i32,
        first_slot: i32,
        scale_log2: f32,
    }
}

/// Keys of a split, whatever the batch: a sum is then always made of the same parts.
const SPLIT: usize = 256;
/// Queries of a block.
const ROWS: usize = 16;
/// What the splits of one launch may leave in scratch memory; more slots than that, or than there are counters, take more
/// launches.
const MOST_SCRATCH_BYTES: usize = 64 << 20;

/// q [T, H E]: rows starts[b]..starts[b + 1] are the last ones of sequence b, which has lengths[b] tokens in the pools
/// `keys` and `values` [rows, G E], these included. Token i of sequence b lies in pool row
/// blocks[b, i / block] * block + i % block. starts [B + 1], lengths [B], blocks [B, any]: i32. y [T, H E].
#[derive(Debug, Clone)]
pub struct AttentionCached {
    pub q: Tensor,
    pub keys: Tensor,
    pub values: Tensor,
    pub starts: Tensor,
    pub lengths: Tensor,
    pub blocks: Tensor,
    pub block: usize,
    pub heads: Heads,
    pub scale: f32,
    pub y: Tensor,
}

/// How a device with kernels runs [`AttentionCached`]: a launch for each run of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Each with its first slot.
    pub launches: Vec<(u32, Launch)>,
    pub splits: usize,
    pub scratch_bytes: usize,
}

impl AttentionCached {
    pub fn plan(&self) -> Result<Plan> {
        let op = "attention_cached";
        let (t, h) = (self.q.shape.rows(), &self.heads);
        let compiled = Compiled::of(op, h)?;
        require(op, "heads", h.keys <= COUNTERS, || format!("at most {COUNTERS} key heads, or --device cpu"), h)?;
        let kernels = [
            "attention_cached_fwd_w32_bf16",
            "attention_cached_fwd_w64_bf16",
            "attention_cached_fwd_w80_bf16",
            "attention_cached_fwd_w128_bf16",
            "attention_cached_fwd_unaligned_bf16",
        ];
        let n_slots = slots(op, t * (h.queries / h.keys), ROWS, self.lengths.shape.elements())?;
        let splits = (self.blocks.shape.width() * self.block).div_ceil(SPLIT);
        let slot_bytes = h.keys * ROWS * splits * (h.width + 2) * size_of::<f32>();
        let most = (MOST_SCRATCH_BYTES / slot_bytes.max(1)).min(COUNTERS / h.keys);
        let run = most.clamp(1, n_slots.max(1) as usize) as u32;
        // keys and values, two tiles of 64 each, and the queries
        let shared_bytes = (4 * 64 + ROWS as u32) * compiled.row_bytes() + SHARED_ALIGNMENT;
        let launches = (0..n_slots).step_by(run as usize).map(|first| {
            let grid = [splits as u32, h.keys as u32, run.min(n_slots - first)];
            (first, Launch { kernel: kernels[compiled as usize], grid, block: THREADS, shared_bytes })
        });
        Ok(Plan { launches: launches.collect(), splits, scratch_bytes: run as usize * slot_bytes })
    }
}

impl Op for AttentionCached {
    fn name(&self) -> &'static str {
        "attention_cached"
    }

    fn contract(&self) -> Result<()> {
        let op = "attention_cached";
        let (t, h, b) = (self.q.shape.rows(), &self.heads, self.lengths.shape.elements());
        shape(op, "q", &self.q, [t, h.queries * h.width])?;
        let rows = self.keys.shape.rows();
        shape(op, "keys", &self.keys, [rows, h.keys * h.width])?;
        shape(op, "values", &self.values, [rows, h.keys * h.width])?;
        require(
            op,
            "block",
            self.block > 0 && rows.is_multiple_of(self.block),
            || "a divisor of the pool".into(),
            &self.block,
        )?;
        require(op, "heads", h.queries % h.keys == 0, || "groups of equal size".into(), h)?;
        require(op, "scale", self.scale > 0.0, || "a positive number".into(), &self.scale)?;
        shape(op, "starts", &self.starts, [b + 1])?;
        shape(op, "blocks", &self.blocks, [b, self.blocks.shape.width()])?;
        for (name, tensor) in [("starts", &self.starts), ("lengths", &self.lengths), ("blocks", &self.blocks)] {
            whole(op, name, tensor)?;
        }
        shape(op, "y", &self.y, self.q.shape)
    }

    fn inputs(&self) -> Vec<Tensor> {
        vec![self.q, self.keys, self.values, self.starts, self.lengths, self.blocks]
    }

    fn outputs(&self) -> Vec<Tensor> {
        vec![self.y]
    }

    fn cost(&self) -> super::Cost {
        // of the pools at most the rows that the table can name; how many are held is known to the run alone
        let named = (self.blocks.shape.elements() * self.block).min(self.keys.shape.rows());
        let rows = 2 * named * self.keys.shape.width() * self.keys.dtype.bytes();
        super::Cost { bytes: (2 * self.q.bytes() + rows) as u64, flops: 0 }
    }

    fn scratch(&self, _facts: &Facts) -> Result<Vec<usize>> {
        Ok(vec![self.plan()?.scratch_bytes])
    }

    fn check(&self, memory: &Memory) -> Result<()> {
        let op = "attention_cached";
        let (starts, lengths) = (memory.indices(&self.starts)?, memory.indices(&self.lengths)?);
        let (blocks, width) = (memory.indices(&self.blocks)?, self.blocks.shape.width());
        check_starts(op, starts, self.q.shape.rows())?;
        for (b, (pair, length)) in starts.windows(2).zip(lengths).enumerate() {
            let (new, held) = (pair[1] - pair[0], width * self.block);
            if *length < new || *length as usize > held {
                return Err(Error::Contract {
                    op,
                    argument: "lengths",
                    wanted: format!("{new} to {held} for sequence {b}"),
                    got: length.to_string(),
                });
            }
            let row = &blocks[b * width..][..(*length as usize).div_ceil(self.block)];
            indices(op, "blocks", row, self.keys.shape.rows() / self.block, false)?;
        }
        Ok(())
    }

    fn forward(&self, device: &mut Device) -> Result<()> {
        self.check(device.memory())?;
        match device {
            Device::Host(memory) => {
                let mut lent = memory.borrow(&self.inputs(), &self.weights(), &self.outputs())?;
                let (starts, lengths, blocks) =
                    (lent.i32(self.starts)?, lent.i32(self.lengths)?, lent.i32(self.blocks)?);
                let table = BlockTable { blocks, max_blocks: self.blocks.shape.width(), block: self.block };
                let (q, keys, values) = (lent.f32(self.q)?, lent.f32(self.keys)?, lent.f32(self.values)?);
                lent.output(self.y)?.fill(|y| {
                    attention_tuned::attention_cached(
                        &q,
                        &keys,
                        &values,
                        starts,
                        lengths,
                        table,
                        self.heads,
                        self.scale,
                        Precision::of(self.q.dtype),
                        y,
                    )
                })
            }
            Device::Launch(gpu) => {
                let (op, h) = ("attention_cached", &self.heads);
                bf16(op, &[&self.q, &self.keys, &self.values, &self.y])?;
                let plan = self.plan()?;
                let at = gpu.addresses(&self.inputs(), &[], &self.outputs())?;
                let [partial] = gpu.scratch(&self.scratch(gpu.facts())?)?;
                let mut args = AttentionCachedArgs {
                    q: at.of(&self.q)?,
                    keys: at.of(&self.keys)?,
                    values: at.of(&self.values)?,
                    starts: at.of(&self.starts)?,
                    lengths: at.of(&self.lengths)?,
                    blocks: at.of(&self.blocks)?,
                    partial,
                    counters: gpu.counters()?,
                    y: at.of(&self.y)?,
                    tokens: self.q.shape.rows() as i32,
                    sequences: self.lengths.shape.elements() as i32,
                    heads: h.queries as i32,
                    group: (h.queries / h.keys) as i32,
                    width: h.width as i32,
                    block: self.block as i32,
                    max_blocks: self.blocks.shape.width() as i32,
                    pool_blocks: (self.keys.shape.rows() / self.block) as i32,
                    splits: plan.splits as i32,
                    first_slot: 0,
                    scale_log2: self.scale * std::f32::consts::LOG2_E,
                };
                for (first, launch) in &plan.launches {
                    args.first_slot = *first as i32;
                    // SAFETY: `contract` holds the shapes together, `check` found all tokens and blocks in their range,
                    // and `plan` sized scratch memory and counters for all slots of a launch.
                    unsafe { gpu.launch(op, launch, &args)? }
                }
                Ok(())
            }
        }
    }
}
