// linear: y = act(x W^T + b + scale (x A^T) B^T) + residual for several weights that share x, and dx = dz W + ds A.
//
// Maths, forward, for each segment (its own columns of y):
//   s = round((x o keep) A^T)              a product of its own, stored: backward reads it again
//   z = scale s B^T + x W^T + b            one product: s and B extend k, before x and W
//   y = round(act(z) + residual)           z itself is stored, rounded, where backward needs it
// Maths, backward:
//   ds = round(scale dz B)                 a product; the columns of an adapter side by side, as s
//   dx = round(sum over segments of (dz W + (ds A) o keep) (+ dx))
// keep is 1 but behind a dropout: see linear_dropout.cuh.
// Source of the semantics: src/host/linear.rs, which follows torch.nn.functional.linear, PEFT's lora.Linear and
// PyTorch's gelu.
//
// | tensor          | shape          | dtype | layout                                                              |
// |-----------------|----------------|-------|---------------------------------------------------------------------|
// | x, dx           | [rows of x, k] | bf16  | k contiguous; `rows` [m] (i32) may name the rows that are used      |
// | weight, A, B    | [n, k], [R, k], [n, R] | bf16 | as in the checkpoint; backward reads them untransposed        |
// | bias            | [n]            | bf16  |                                                                     |
// | y, z, residual, dz | [m, N]      | bf16  | N: all segments' columns side by side                               |
// | s, ds           | [m, sum of R]  | bf16  |                                                                     |
// | noise           | [rows of x, 2] | u32   | the key of each row of x, where something drops out                 |
// | wide            | [m, N]         | f32   | logits                                                              |
// | partial         | [splits, m, N] | f32   | workspace: where k is cut, the sums of each of its splits           |
// All pointers at 16 bytes at least; widths and offsets that are no multiples of 8 take the `any` kernels.
//
// Numerics: bf16 operands, f32 sums, rounding where the formulas say round. scale multiplies the f32 sum of s B^T, before
// x W^T is added, so that scale B is never rounded. NaN in gives NaN out. Approximate: exp_ftz in GELU.
//
// Ownership: a block owns a tile of y (128 x 128, 64 x 64, or 16 x 32 for decoding), which lies in one segment; a warp
// 64 x 32, 32 x 32 or 16 x 16 of it. x is read once for each column of tiles, W once for each row of tiles, mostly from
// L2, since neighbouring blocks share them; y, z and the residual cross device memory once.
//
// The simple algorithm: for each tile, for each piece of k, multiply; then one pass over the tile for bias, activation
// and residual. Deviations:
//  1. Sums pass through shared memory before they are stored, so that 16 bytes of a row are read and written at once.
//  2. A column tile reads only its own segment's columns of s, not those of all adapters.
//  3. Blocks go through the tiles in groups of eight rows (see tile_of).
//  4. Dropouts have kernels of their own, so that products without one keep their registers. Where x drops out there are
//     tiles of 64 x 64 alone: an adapter has few columns, and each column of tiles draws all words again.
//  5. dx of the head's loss, and on Hopper what adapters multiply of many rows, have few tiles and a long k, which is cut
//     into splits, whose sums linear_sum adds in order.
// Unmeasured: no GPU was at hand.
//
// Limits: 4 segments, 8 pieces. Deterministic: one block owns a tile and sums in one order. For backward: s, and z where
// there is an activation.
#include "linear_dropout.cuh"

namespace linear {

LAYOUT(LinearDropout, module, from, kept);
LAYOUT(LinearPiece, left, right, left_stride, right_stride, dropout, depth, gathered);
LAYOUT(LinearBand, bias, column, width, first, end, scaled, scale);
LAYOUT(LinearArgs, pieces, bands, rows, noise, added, y, z, wide, partial, stride, m, n_bands, activation, scattered,
       splits, split_depth);

template <class T, bool VECTOR> DEV void store(const LinearArgs& a, Place at, const float* sums) {
  for (int c = threadIdx.x; c < T::BM * T::BN / 8; c += T::THREADS) {
    const int r = c / (T::BN / 8), column = c % (T::BN / 8) * 8;
    float v[8];
    UNROLL for (int i = 0; i < 8; i++) v[i] = sums[r * T::STRIDE + column + i];
    store8<VECTOR>(a, at.band, blockIdx.y, at.m0 + r, at.n0 + column, v);
  }
}

template <class T, bool NT, bool VECTOR> DEV void run(const LinearArgs& a) {
  DYN_SMEM(smem);
  const Place at = place_of<T>(a);
  store<T, VECTOR>(a, at, product<T, NT, VECTOR>(a, at, smem, Undropped{}));
}

// With dropouts: forward in the left operand, backward in the sums.
template <class T, bool NT, bool VECTOR> DEV void run_dropout(const LinearArgs& a) {
  DYN_SMEM(smem);
  const Place at = place_of<T>(a);
  if constexpr (NT) {
    store<T, VECTOR>(a, at, product<T, NT, VECTOR>(a, at, smem, DroppedLeft<T>(a, at)));
  } else {
    store<T, VECTOR>(a, at, product<T, NT, VECTOR>(a, at, smem, DroppedSums<T>(a, at)));
  }
}

}  // namespace linear

KERNEL(linear_fwd_128x128_bf16, 256, 1, const __grid_constant__ linear::LinearArgs a) {
  linear::run<linear::Tile128, true, true>(a);
}
KERNEL(linear_fwd_64x64_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run<linear::Tile64, true, true>(a);
}
KERNEL(linear_fwd_16x32_bf16, 64, 4, const __grid_constant__ linear::LinearArgs a) {
  linear::run<linear::Tile16, true, true>(a);
}
KERNEL(linear_fwd_any_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run<linear::Tile64, true, false>(a);
}
KERNEL(linear_fwd_dropout_64x64_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run_dropout<linear::Tile64, true, true>(a);
}
KERNEL(linear_fwd_dropout_any_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run_dropout<linear::Tile64, true, false>(a);
}
KERNEL(linear_bwd_dx_128x128_bf16, 256, 1, const __grid_constant__ linear::LinearArgs a) {
  linear::run<linear::Tile128, false, true>(a);
}
KERNEL(linear_bwd_dx_64x64_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run<linear::Tile64, false, true>(a);
}
KERNEL(linear_bwd_dx_any_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run<linear::Tile64, false, false>(a);
}
KERNEL(linear_bwd_dx_dropout_128x128_bf16, 256, 1, const __grid_constant__ linear::LinearArgs a) {
  linear::run_dropout<linear::Tile128, false, true>(a);
}
KERNEL(linear_bwd_dx_dropout_64x64_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run_dropout<linear::Tile64, false, true>(a);
}
KERNEL(linear_bwd_dx_dropout_any_bf16, 128, 2, const __grid_constant__ linear::LinearArgs a) {
  linear::run_dropout<linear::Tile64, false, false>(a);
}

namespace linear {

// Adds up what the splits of a product left, in their order, with what follows: a thread owns eight neighbouring
// columns of one band in one row.
template <bool VECTOR> DEV void add_splits(const LinearArgs& a) {
  int eights = 0, b = 0;
  for (int i = 0; i < a.n_bands; i++) eights += ceil_div(a.bands[i].width, 8);
  const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= (int64_t)a.m * eights) return;
  int n = (int)(i % eights) * 8;
  for (int width; n >= (width = ceil_div(a.bands[b].width, 8) * 8); b++) n -= width;
  const LinearBand& band = a.bands[b];
  const int m = (int)(i / eights), valid = band.width - n;
  float sum[8];
  add_splits8<VECTOR>(a, band, splits_of(a, band), m, n, valid, sum);
  finish8<VECTOR>(a, band, m, n, valid, sum);
}

}  // namespace linear

KERNEL(linear_sum_bf16, 256, 1, const __grid_constant__ linear::LinearArgs a) { linear::add_splits<true>(a); }
KERNEL(linear_sum_any_bf16, 256, 1, const __grid_constant__ linear::LinearArgs a) { linear::add_splits<false>(a); }
