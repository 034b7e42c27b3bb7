// linear_loss: the head and the cross-entropy of label rows, and the gradient of scale * sum(losses) in the same pass.
//
// Maths, for each row x [D] with its label:
//   l = x W^T,  M = max l,  S = sum exp(l - M)
//   loss = ln S + (M - l[label])
//   dl = round(scale exp(l - M) / S - (scale at the label))
//   dx = round(dl W),  dW += dl^T x       the products of linear.cu and linear_backward.cu
// Source of the semantics: src/host/linear_loss.rs, which follows torch.nn.functional.cross_entropy in f32 over logits of
// a bf16 head; dl is stored in bf16, as PyTorch's backward of `logits.float()` does.
//
// | tensor       | shape        | dtype    | layout                                                    |
// |--------------|--------------|----------|-----------------------------------------------------------|
// | x            | [m, D]       | bf16     | of the rows of one chunk                                  |
// | head         | [V, D]       | bf16     | as in the checkpoint                                      |
// | labels       | [m]          | i32      | in 0..V                                                   |
// | scale        | [1]          | f32      |                                                           |
// | logits       | [m, V]       | f32      | workspace, only where gradients are wanted                |
// | statistics   | [m, tiles]   | 2 x f32  | workspace: the maximum of a tile's columns, and its sum   |
// | label_logits | [m]          | f32      | workspace                                                 |
// | rows         | [m]          | 2 x f32  | workspace: M and 1 / S                                    |
// | losses       | [m]          | f32      |                                                           |
// | dlogits      | [m, stride]  | bf16     | workspace                                                 |
//
// Numerics: bf16 operands, f32 logits, statistics and losses; dl rounded once. M - l[label] is taken before ln S is
// added, so that a small loss keeps its digits. NaN in gives NaN out. Approximate: ex2.
//
// Rows come in chunks, so that the workspace has a bound whatever the batch is; within a chunk every logit is computed
// once (a pass that never stores them would compute them twice: 6 m D V operations instead of 4). The statistics of a
// tile are taken while its logits lie in shared memory, so they are read back once only, for dl. On Hopper the logits of
// many rows come from linear_loss_sm90.cu, in wider tiles; what follows them is here.
// Ownership: as linear.cu; then a warp owns a row, and for dl a thread eight neighbouring logits.
// Deterministic: tiles' statistics are combined in a fixed order. Unmeasured: no GPU was at hand.
#include "linear_loss.cuh"

namespace linear {

LAYOUT(LinearLossArgs, product, labels, statistics, label_logits);

template <class T, bool VECTOR> DEV void logits(const LinearLossArgs& a) {
  DYN_SMEM(smem);
  const Place at = place_of<T>(a.product);
  const float* sums = product<T, true, VECTOR>(a.product, at, smem, Undropped{});
  const int width = a.product.bands[0].width, tiles = ceil_div(width, T::BN);
  const int lane = threadIdx.x & 31;
  for (int r = threadIdx.x >> 5; r < T::BM && at.m0 + r < a.product.m; r += T::THREADS / 32) {
    const int64_t row = at.m0 + r;
    const int label = a.labels[row];
    float v[T::BN / 32], most = -INFINITE, sum = 0.f;
    UNROLL for (int i = 0; i < T::BN / 32; i++) {
      const int n = at.n0 + i * 32 + lane;
      v[i] = n < width ? sums[r * T::STRIDE + i * 32 + lane] : -INFINITE;
      most = fmaxf(most, v[i]);
      if (n >= width) continue;
      if (n == label) a.label_logits[row] = v[i];
      if (a.product.wide) a.product.wide[row * a.product.stride + n] = v[i];
    }
    most = warp_max(most);
    UNROLL for (int i = 0; i < T::BN / 32; i++) sum += exp_ftz(v[i] - most);  // columns beyond the vocabulary add 0
    sum = warp_sum(sum);
    if (lane == 0) a.statistics[row * tiles + at.n0 / T::BN] = make_float2(most, sum);
  }
}

}  // namespace linear

KERNEL(linear_loss_fwd_128x128_bf16, 256, 1, const __grid_constant__ linear::LinearLossArgs a) {
  linear::logits<linear::Tile128, true>(a);
}
KERNEL(linear_loss_fwd_64x64_bf16, 128, 2, const __grid_constant__ linear::LinearLossArgs a) {
  linear::logits<linear::Tile64, true>(a);
}
KERNEL(linear_loss_fwd_16x32_bf16, 64, 4, const __grid_constant__ linear::LinearLossArgs a) {
  linear::logits<linear::Tile16, true>(a);
}
KERNEL(linear_loss_fwd_any_bf16, 128, 2, const __grid_constant__ linear::LinearLossArgs a) {
  linear::logits<linear::Tile64, false>(a);
}

namespace linear {
struct LinearLossRowsArgs {
  const float2* statistics;
  const float* label_logits;
  float2* rows;
  float* losses;
  int32_t m, tiles;
};
LAYOUT(LinearLossRowsArgs, statistics, label_logits, rows, losses, m, tiles);
}  // namespace linear

// A warp owns a row. A NaN that the maximum drops is in the tile's sum.
KERNEL(linear_loss_fwd_rows_f32, 256, 1, const __grid_constant__ linear::LinearLossRowsArgs a) {
  const int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= a.m) return;
  const float2* tiles = a.statistics + (int64_t)row * a.tiles;
  float most = -linear::INFINITE, sum = 0.f;
  for (int t = lane; t < a.tiles; t += 32) most = fmaxf(most, tiles[t].x);
  most = warp_max(most);
  for (int t = lane; t < a.tiles; t += 32) sum += tiles[t].y * exp_ftz(tiles[t].x - most);
  sum = warp_sum(sum);
  if (lane == 0) {
    a.losses[row] = logf(sum) + (most - a.label_logits[row]);
    a.rows[row] = make_float2(most, 1.f / sum);
  }
}

namespace linear {
struct LinearLossGradientArgs {
  const float* logits;  // [m, v]
  const float2* rows;
  const int32_t* labels;
  const float* scale;
  bf16* dlogits;        // [m, stride]
  int64_t stride;
  int32_t v;
};
LAYOUT(LinearLossGradientArgs, logits, rows, labels, scale, dlogits, stride, v);
}  // namespace linear

// A thread owns eight neighbouring logits of a row, which is a row of the grid.
KERNEL(linear_loss_bwd_dlogits_bf16, 256, 1, const __grid_constant__ linear::LinearLossGradientArgs a) {
  const int n = ((int)blockIdx.x * 256 + (int)threadIdx.x) * 8, valid = a.v - n;
  if (valid <= 0) return;
  const int64_t row = blockIdx.y;
  const float scale = *a.scale, most = a.rows[row].x, factor = scale * a.rows[row].y;
  const int label = a.labels[row] - n;
  float l[8], d[8];
  if (a.v % 8 == 0) {
    linear::read8<true>(l, a.logits + row * a.v + n, 8);
  } else {
    linear::read8<false>(l, a.logits + row * a.v + n, valid);
  }
  UNROLL for (int i = 0; i < 8; i++) {
    d[i] = i < valid ? exp_ftz(l[i] - most) * factor - (i == label ? scale : 0.f) : 0.f;
  }
  linear::write8<true>(a.dlogits + row * a.stride + n, d, 8);  // a row's end is padded to a multiple of eight
}
