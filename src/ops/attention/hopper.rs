//! What Hopper's own kernels of attention are launched with: `cuda/attention_sm90.cu`, `cuda/attention_backward_sm90.cu`.

use super::{Attention, AttentionArgs, AttentionBackward, AttentionBackwardArgs, Compiled, slots};
use crate::base::Result;
use crate::device::launcher::{MapType, Swizzle, TensorMap, TensorMapShape};
use crate::device::{Accelerator, Addresses, Facts, Launch};
use crate::tensor::Tensor;

crate::arguments! {
    /// Of `cuda/attention_sm90.cu`: what TMA brings comes through maps.
    pub struct AttentionSm90Args {
        attention: AttentionArgs,
        q: TensorMap,
        k: TensorMap,
        v: TensorMap,
    }
}

crate::arguments! {
    /// Of `cuda/attention_backward_sm90.cu`, likewise.
    pub struct AttentionBackwardSm90Args {
        gradients: AttentionBackwardArgs,
        sums: u64,
        counters: u64,
        q: TensorMap,
        k: TensorMap,
        v: TensorMap,
        dy: TensorMap,
        statistics: TensorMap,
    }
}

/// Queries (of backward: keys) of a block, and threads of one.
const ROWS: usize = 128;
const THREADS: u32 = 384;
/// Rows of a box, and its columns; queries of a step of backward.
const BOX: u32 = 64;

/// Numbers of a box of statistics: two a query, and room for the query before, since a box begins at a multiple of 16 bytes.
const STATISTICS: u32 = 2 * (BOX + 2);

/// Bytes that such a box has for itself: TMA writes to multiples of 128.
const STATISTICS_BYTES: u32 = (STATISTICS * 4).next_multiple_of(128);
/// Bytes of a tile of [`ROWS`] rows, and what aligns the first.
const TILE_BYTES: u32 = ROWS as u32 * 2 * 128;
const SHARED_ALIGNMENT: u32 = 1024;

/// Which kernel of two, for heads up to 80 and up to 128 wide, where one runs it.
fn choose(f: &Attention, facts: &Facts) -> Option<usize> {
    match Compiled::of("attention", &f.heads) {
        Ok(Compiled::W80) if facts.is_hopper() => Some(0),
        Ok(Compiled::W128) if facts.is_hopper() => Some(1),
        _ => None,
    }
}

pub(super) fn runs(f: &Attention, facts: &Facts) -> bool {
    choose(f, facts).is_some()
}

fn launch(op: &'static str, kernel: &'static str, per_head: usize, bytes: u32, f: &Attention) -> Result<Launch> {
    let grid = [per_head as u32, slots(op, f.q.shape.rows(), ROWS, f.sequences())?, 1];
    Ok(Launch { kernel, grid, block: THREADS, shared_bytes: bytes + SHARED_ALIGNMENT })
}

/// The launch of forward, where these kernels run it.
pub(super) fn forward(f: &Attention, facts: &Facts) -> Result<Option<Launch>> {
    let Some(i) = choose(f, facts) else { return Ok(None) };
    let kernel = ["attention_fwd_w80_sm90_bf16", "attention_fwd_w128_sm90_bf16"][i];
    // queries, and keys and values twice
    launch("attention", kernel, f.heads.queries, 5 * TILE_BYTES, f).map(Some)
}

/// Bytes that backward's sums of dq of one head have for the queries of a step.
fn sum_bytes(i: usize) -> usize {
    [80, 128][i] * BOX as usize * size_of::<f32>()
}

/// Tiles of queries that have sums: each sequence's, rounded up, have slots of their own.
fn sum_slots(f: &Attention) -> Result<u32> {
    slots("attention_backward", f.q.shape.rows(), BOX as usize, f.sequences())
}

/// Bytes of backward's sums and of its counters: one for each tile of sums, and one for the blocks that have begun.
pub(super) fn backward_scratch(f: &Attention, facts: &Facts) -> Result<[usize; 2]> {
    let Some(i) = choose(f, facts) else { return Ok([0; 2]) };
    let tiles = sum_slots(f)? as usize * f.heads.queries;
    Ok([tiles * sum_bytes(i), (1 + tiles) * size_of::<u32>()])
}

/// The launches of backward, where these kernels run it: the statistics of the queries, then all gradients.
pub(super) fn backward(f: &Attention, facts: &Facts) -> Result<Option<[Launch; 2]>> {
    let Some(i) = choose(f, facts) else { return Ok(None) };
    let op = "attention_backward";
    let grid = [f.heads.queries as u32, sum_slots(f)?, 1];
    let statistics = Launch { kernel: "attention_bwd_statistics_sm90_bf16", grid, block: 128, shared_bytes: 0 };
    let kernel = ["attention_bwd_w80_sm90_bf16", "attention_bwd_w128_sm90_bf16"][i];
    // keys and values, twice half a tile of queries, of dy and of weights; sums, statistics twice
    let bytes = 5 * TILE_BYTES + sum_bytes(1) as u32 + 2 * STATISTICS_BYTES;
    Ok(Some([statistics, launch(op, kernel, f.heads.keys, bytes, f)?]))
}

/// Rows of `heads` heads, from a column of a tensor on, as boxes of one head: what lies beyond a head's width is zero.
fn map(
    gpu: &Accelerator,
    at: &Addresses,
    tensor: &Tensor,
    column: usize,
    heads: usize,
    f: &Attention,
) -> Result<TensorMap> {
    let width = f.heads.width as u64;
    gpu.tensor_map(&TensorMapShape {
        dtype: MapType::Bf16,
        address: at.of(tensor)? + 2 * column as u64,
        sizes: &[width, heads as u64, tensor.shape.rows() as u64],
        strides_bytes: &[2 * width, 2 * tensor.shape.width() as u64],
        box_sizes: &[64, 1, BOX],
        swizzle: Swizzle::Bytes128,
    })
}

pub(super) fn forward_arguments(
    f: &Attention,
    attention: AttentionArgs,
    gpu: &Accelerator,
    at: &Addresses,
) -> Result<AttentionSm90Args> {
    Ok(AttentionSm90Args {
        attention,
        q: map(gpu, at, &f.q, 0, f.heads.queries, f)?,
        k: map(gpu, at, &f.k, 0, f.heads.keys, f)?,
        v: map(gpu, at, &f.v, f.v_column, f.heads.keys, f)?,
    })
}

pub(super) fn backward_arguments(
    op: &AttentionBackward,
    gradients: AttentionBackwardArgs,
    [sums, counters]: [u64; 2],
    gpu: &Accelerator,
    at: &Addresses,
) -> Result<AttentionBackwardSm90Args> {
    let (f, heads) = (&op.forward, op.forward.heads.queries);
    let numbers = 2 * op.statistics_rows();
    let statistics = gpu.tensor_map(&TensorMapShape {
        dtype: MapType::F32,
        address: gradients.statistics,
        sizes: &[numbers as u64, heads as u64],
        strides_bytes: &[(numbers * size_of::<f32>()) as u64],
        box_sizes: &[STATISTICS, 1],
        swizzle: Swizzle::None,
    })?;
    Ok(AttentionBackwardSm90Args {
        gradients,
        sums,
        counters,
        q: map(gpu, at, &f.q, 0, heads, f)?,
        k: map(gpu, at, &f.k, 0, f.heads.keys, f)?,
        v: map(gpu, at, &f.v, f.v_column, f.heads.keys, f)?,
        dy: map(gpu, at, &op.dy, 0, heads, f)?,
        statistics,
    })
}
