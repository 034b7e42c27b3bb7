// norm: layer norm or RMS norm of each row, and its gradients.
//
// Maths, with r = 1 / sqrt(mean((x - m)^2) + eps), m = mean(x) for a layer norm and 0 for RMS, n = (x - m) r:
//   layer  y = n w + b
//   RMS    y = round(n) w
// Backward, with g = dy w:
//   dx += r (g - mean(g) - n mean(g n)), without mean(g) for RMS;  dw += sum over rows of dy n;  db += sum of dy
// Source of the semantics: transformers 5.x, Qwen3VLTextRMSNorm (modeling_qwen3_vl.py) and torch.nn.LayerNorm.
//
// | tensor      | shape  | dtype | layout                                                        |
// |-------------|--------|-------|---------------------------------------------------------------|
// | x, dx       | [T, D] | bf16  | contiguous, 16-byte aligned                                   |
// | rows        | [R]    | i32   | row of x for each row of y; absent: R = T, row i is row i     |
// | weight, bias| [D]    | bf16  | bias absent: RMS                                              |
// | y, dy       | [R, D] | bf16  |                                                               |
// | stats       | [R, 2] | f32   | m and r of each row, from the kernel of dx to that of dw      |
// | partial     | [2, chunks, D] | f32 | sums of dy n, then of dy, of CHUNK rows each            |
// | dweight, dbias | [D] | f32   | added to; absent where frozen                                 |
//
// Numerics: f32 throughout, rounded to bf16 where a row is stored and, for RMS, before the weight. The variance is that of
// differences from the mean, in a second pass, so that a large mean costs no digits. NaN in gives NaN out.
//
// Ownership: a warp owns a row, a lane 8 neighbouring columns at a time (one 16-byte load), or single columns where D is
// no multiple of 8. x and dy come once, and stay in registers through the passes (up to 4096 columns); y and dx go once.
//
// The simple algorithm: for each row, sum, sum of squares, write. For dw: for each column, sum over the rows. Deviations:
//  1. A warp and not a block a row: the sums need no barrier, and a narrow row does not idle most of a block.
//  2. dw in two stages: a thread owns a column of CHUNK rows, then one the sums of all chunks, both in order.
// Limits: a row of x at most once in `rows`. Deterministic: every sum has one order. Backward reads x again and keeps nothing.
#include "norm.cuh"

namespace row_norm {
constexpr int WARPS = 4;    // rows of a block
constexpr int CHUNK = 64;   // rows that one partial sum covers
constexpr int COLUMNS = 128;

LAYOUT(NormArgs, x, rows, weight, bias, y, n_rows, d, eps);

struct NormBackwardArgs {
  const bf16* x;
  const int32_t* rows;
  const bf16* weight;
  const bf16* dy;
  bf16* dx;
  float* stats;
  float* partial;
  float* dweight;
  float* dbias;
  int64_t n_rows;
  int32_t n_chunks;
  int32_t d;
  int32_t layer;
  int32_t add;
  float eps;
  int32_t pad;
};
LAYOUT(NormBackwardArgs, x, rows, weight, dy, dx, stats, partial, dweight, dbias, n_rows, n_chunks, d, layer, add, eps, pad);

template <int N> DEV void forward(const NormArgs& a) {
  const int64_t row = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
  if (row < a.n_rows) normalise<N>(Warp{}, a, row);
}

template <int N> DEV void backward(const NormBackwardArgs& a) {
  const int64_t row = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
  if (row >= a.n_rows) return;
  const int64_t at = a.rows ? (int64_t)a.rows[row] : row;
  const Row<N, Warp> x(a.x + at * a.d, a.d), dy(a.dy + row * a.d, a.d);
  const Warp team;
  float mean, r, w[N], old[N];
  statistics<N>(team, x, a.layer != 0, a.eps, mean, r);
  if (a.stats && Warp::rank() == 0) a.stats[2 * row] = mean, a.stats[2 * row + 1] = r;
  if (!a.dx) return;
  float of_g[4] = {}, of_gn[4] = {};
  x.each_with(dy, [&](int c, int part, float (&v)[N], float (&g)[N]) {
    load<N>(a.weight + c, w);
    UNROLL for (int i = 0; i < N; i++) {
      of_g[part] += g[i] * w[i];
      of_gn[part] += g[i] * w[i] * ((v[i] - mean) * r);
    }
  });
  const float mean_g = a.layer ? team.total(of_g) / (float)a.d : 0.0f;
  const float mean_gn = team.total(of_gn) / (float)a.d;
  bf16* dx = a.dx + at * a.d;
  x.each_with(dy, [&](int c, int, float (&v)[N], float (&g)[N]) {
    load<N>(a.weight + c, w);
    if (a.add) load<N>(dx + c, old);
    UNROLL for (int i = 0; i < N; i++) {
      v[i] = r * (g[i] * w[i] - mean_g - (v[i] - mean) * r * mean_gn) + (a.add ? old[i] : 0.0f);
    }
    store<N>(dx + c, v);
  });
}
}  // namespace row_norm

KERNEL(norm_fwd_bf16, 128, 1, const __grid_constant__ row_norm::NormArgs a) {
  if (a.d % 8 == 0) row_norm::forward<8>(a);
  else row_norm::forward<1>(a);
}

// dx, and the statistics of the rows for the gradients of the parameters.
KERNEL(norm_bwd_dx_bf16, 128, 1, const __grid_constant__ row_norm::NormBackwardArgs a) {
  if (a.d % 8 == 0) row_norm::backward<8>(a);
  else row_norm::backward<1>(a);
}

// The sums of CHUNK rows: block (columns, chunk), a thread a column.
KERNEL(norm_bwd_dw_bf16, 128, 1, const __grid_constant__ row_norm::NormBackwardArgs a) {
  const int c = blockIdx.x * row_norm::COLUMNS + threadIdx.x;
  if (c >= a.d) return;
  const int64_t first = (int64_t)blockIdx.y * row_norm::CHUNK;
  const int64_t end = first + row_norm::CHUNK < a.n_rows ? first + row_norm::CHUNK : a.n_rows;
  float dw = 0.0f, db = 0.0f;
  for (int64_t row = first; row < end; row++) {
    const int64_t at = a.rows ? (int64_t)a.rows[row] : row;
    const float dy = bf2f(a.dy[row * a.d + c]);
    dw += dy * ((bf2f(a.x[at * a.d + c]) - a.stats[2 * row]) * a.stats[2 * row + 1]);
    db += dy;
  }
  a.partial[(int64_t)blockIdx.y * a.d + c] = dw;
  a.partial[((int64_t)a.n_chunks + blockIdx.y) * a.d + c] = db;
}

// The sums of all chunks, added to the gradients of the parameters: a thread a column.
KERNEL(norm_bwd_dw_sum_f32, 128, 1, const __grid_constant__ row_norm::NormBackwardArgs a) {
  const int c = blockIdx.x * row_norm::COLUMNS + threadIdx.x;
  if (c >= a.d) return;
  float dw = 0.0f, db = 0.0f;
  for (int k = 0; k < a.n_chunks; k++) {
    dw += a.partial[(int64_t)k * a.d + c];
    db += a.partial[((int64_t)a.n_chunks + k) * a.d + c];
  }
  if (a.dweight) a.dweight[c] += dw;
  if (a.dbias) a.dbias[c] += db;
}
