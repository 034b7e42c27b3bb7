// The gradients of attention over packed sequences.
//
// Maths, with p_ij = 2^(s_ij log2 e - lse_i) the probabilities of forward, computed again: dv_j = sum_i p_ij dy_i;
// dp_ij = dy_i . v_j; delta_i = sum_j p_ij dp_ij = dy_i . y_i; ds_ij = p_ij (dp_ij - delta_i);
// dq_i = scale sum_j ds_ij k_j; dk_j = scale sum_i ds_ij q_i. Query heads that share a key head add to the
// same dk and dv. Specification: src/host/attention.rs.
//
//   tensor         shape         dtype  layout
//   q, y, dy, dq   [T, H E]      bf16   contiguous
//   k, dk          [T, G E]      bf16   rows of k_stride
//   v, dv          [T, any]      bf16   rows of v_stride, G E columns from v_column
//   starts         [B + 1]       i32    sequence b has tokens starts[b] .. starts[b + 1]
//   lse            [H, T]        f32    as forward left it
//   statistics     [H, T, 2]     f32    T rounded up to even; scratch: lse and delta side by side
// A gradient is overwritten or, with add_*, added to what is there in f32 and rounded once. Where dv is overwritten, its
// other columns become 0: they are parts of a gradient too, which others add to.
//
// Numerics: as in attention.cu. Rounding points: p and ds as they enter products; y in delta, which is forward's rounded
// one; dq, dk, dv. p enters ds unrounded, and scale multiplies the sums.
//
// attention_bwd_dq: a warp owns 16 queries of one head, a block 64; it finds their statistics, leaves them for the other
// kernel, and walks over their keys. attention_bwd_dkv: a warp owns 16 keys of one key head, a block 64; it walks over the
// query heads of its group in order and over the queries that see the keys, 32 at a time, with keys as the rows of s and
// dp, so that p^T and ds^T are the left operands of their products as they come out. Seven products, where five would do:
// the price of sums in a fixed order within a block. attention_backward_sm90.cu has five.
//
//   dq:  delta = dy . y;  for each tile of keys: s = q k^T, dp = dy v^T, ds = 2^(s - lse) (dp - delta), dq += ds k
//   dkv: for each head, for each tile of queries: s^T = k q^T, dp^T = v dy^T, dv += p^T dy, dk += ds^T q
//
// 1. Tiles are loaded one step ahead into the other half of a double buffer: one barrier a step.
// 2. Results go out through the shared rows of the warp's own operands, in chunks of 16 bytes.
//
// Limits: E at most 128. Shared memory at width 128: 96 KiB (dq), 65 KiB (dkv). Deterministic: each element of a gradient
// is one warp's sum in one order.
#include "attention.cuh"

LAYOUT(AttentionBackwardArgs, q, k, v, starts, y, lse, dy, statistics, dq, dk, dv, k_stride, v_stride, tokens, sequences,
       heads, group, width, v_column, causal, add_dq, add_dk, add_dv, scale, scale_log2);

namespace attention {

// dq of 64 queries of one head.
template <int W, bool Aligned> DEV void backward_dq(const AttentionBackwardArgs& a) {
  constexpr int kBytes = Tile<W>::kBytes;
  uint8_t *s_q = shared_memory(), *s_dy = s_q + kBytes, *s_k = s_q + 2 * kBytes, *s_v = s_q + 4 * kBytes;
  const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16, head = blockIdx.x;
  int sequence;
  const int slot = (int)(gridDim.y - 1 - blockIdx.y);
  const Span span = find_tile(a.starts, a.sequences, a.tokens, 1, kTile, slot, sequence);
  const int first = span.tile * kTile, n = span.length;
  if (first >= n) return;

  const int64_t q_stride = (int64_t)a.heads * a.width, at = (span.from + first) * q_stride + head * a.width;
  const bf16* k = a.k + span.from * a.k_stride + head / a.group * a.width;
  const bf16* v = a.v + span.from * a.v_stride + a.v_column + head / a.group * a.width;
  const int n_tiles = a.causal ? span.tile + 1 : (n + kTile - 1) / kTile;

  load_rows<W, kTile, Aligned>(s_q, a.q + at, q_stride, n - first, a.width);
  load_rows<W, kTile, Aligned>(s_dy, a.dy + at, q_stride, n - first, a.width);
  load_rows<W, kTile, Aligned>(s_k, k, a.k_stride, n, a.width);
  load_rows<W, kTile, Aligned>(s_v, v, a.v_stride, n, a.width);
  cp_async_commit();

  Rows<W> dq;
  dq.clear();
  float lse[2], delta[2];
  find_statistics<Aligned>(lse, delta, a, head, span.from, first + row + (lane >> 2), n);
  for (int j = 0; j < n_tiles; j++) {
    const int stage = (j & 1) * kBytes;
    cp_async_wait<0>();
    __syncthreads();                       // tile j is here, and everyone is done with the one before
    if (j + 1 < n_tiles) {
      const int next = j + 1, other = kBytes - stage;
      load_rows<W, kTile, Aligned>(s_k + other, k + (int64_t)next * kTile * a.k_stride, a.k_stride, n - next * kTile, a.width);
      load_rows<W, kTile, Aligned>(s_v + other, v + (int64_t)next * kTile * a.v_stride, a.v_stride, n - next * kTile, a.width);
    }
    cp_async_commit();

    float s[8][4], dp[8][4];
    rows_by_rows<W, 8>(s, smem_u32(s_q), row, smem_u32(s_k) + stage, lane);
    rows_by_rows<W, 8>(dp, smem_u32(s_dy), row, smem_u32(s_v) + stage, lane);
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int c = 0; c < 4; c++) {
      const int query = first + row + (lane >> 2) + (c >> 1) * 8, key = j * kTile + i * 8 + (lane & 3) * 2 + (c & 1);
      float p = ex2(fmaf(s[i][c], a.scale_log2, -lse[c >> 1]));
      if (j == n_tiles - 1 && (key >= n || (a.causal && key > query))) p = 0.f;
      s[i][c] = p * (dp[i][c] - delta[c >> 1]);
    }
    UNROLL for (int kk = 0; kk < kTile / 16; kk++) {
      dq.add_product(s[kk * 2], s[kk * 2 + 1], smem_u32(s_k) + stage, kk * 16, lane);
    }
  }
  dq.scale(a.scale, a.scale);
  __syncwarp();                            // the rows of queries are this warp's own; they make room for their gradient
  store_rows<W, Aligned>(dq, s_q, row, a.dq + at + row * q_stride, q_stride, n - first - row, a.width, a.add_dq, lane);
}

constexpr int kQueries = 32;               // of a step in backward_dkv: two gradients leave registers for no more

// dk and dv of 64 keys of one key head: over the query heads of its group in order, and their queries in order.
template <int W, bool Aligned> DEV void backward_dkv(const AttentionBackwardArgs& a) {
  constexpr int kBytes = Tile<W>::kBytes, kHalf = kBytes / 2;
  uint8_t *s_k = shared_memory(), *s_v = s_k + kBytes, *s_q = s_k + 2 * kBytes, *s_dy = s_k + 3 * kBytes;
  const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16, key_head = blockIdx.x;
  int sequence;
  const Span span = find_tile(a.starts, a.sequences, a.tokens, 1, kTile, (int)blockIdx.y, sequence);
  const int first = span.tile * kTile, n = span.length;
  if (first >= n) return;

  const int64_t q_stride = (int64_t)a.heads * a.width;
  const int64_t k_at = (span.from + first) * a.k_stride + key_head * a.width;
  const int64_t v_at = (span.from + first) * a.v_stride + a.v_column + key_head * a.width;
  const int64_t q_at = span.from * q_stride + (int64_t)key_head * a.group * a.width;
  // under a causal mask the first query that sees a key of this tile is the first of them
  const int begin = a.causal ? first / kQueries : 0, n_tiles = (n + kQueries - 1) / kQueries - begin;
  SHARED(float, s_statistics, [2][2 * kQueries]);
  auto load = [&](int step, int stage) {
    const int i = begin + step % n_tiles;
    const int64_t from = q_at + (int64_t)i * kQueries * q_stride + step / n_tiles * a.width;
    load_rows<W, kQueries, Aligned>(s_q + stage, a.q + from, q_stride, n - i * kQueries, a.width);
    load_rows<W, kQueries, Aligned>(s_dy + stage, a.dy + from, q_stride, n - i * kQueries, a.width);
    if (threadIdx.x < 2 * kQueries) {
      const float* statistics = statistics_of(a, key_head * a.group + step / n_tiles, span.from);
      const int at = i * kQueries * 2 + threadIdx.x;
      const bool valid = at < n * 2;
      cp_async4(smem_u32(&s_statistics[stage != 0][threadIdx.x]), valid ? statistics + at : statistics, valid);
    }
  };
  load_rows<W, kTile, Aligned>(s_k, a.k + k_at, a.k_stride, n - first, a.width);
  load_rows<W, kTile, Aligned>(s_v, a.v + v_at, a.v_stride, n - first, a.width);
  load(0, 0);
  cp_async_commit();

  Rows<W> dk, dv;
  dk.clear();
  dv.clear();
  const int n_steps = a.group * n_tiles;
  for (int step = 0; step < n_steps; step++) {
    const int stage = (step & 1) * kHalf, i = begin + step % n_tiles;
    cp_async_wait<0>();
    __syncthreads();                       // this step's queries are here, and everyone is done with those before
    if (step + 1 < n_steps) load(step + 1, kHalf - stage);
    cp_async_commit();

    // with keys as rows: both come out as the A fragments that the products below want
    float p[4][4], ds[4][4];
    rows_by_rows<W, 4>(p, smem_u32(s_k), row, smem_u32(s_q) + stage, lane);
    rows_by_rows<W, 4>(ds, smem_u32(s_v), row, smem_u32(s_dy) + stage, lane);
    const bool edge = (a.causal && i * kQueries < first + kTile) || (i + 1) * kQueries > n;
    UNROLL for (int c = 0; c < 4; c++) {
      const float4 pair = *(const float4*)&s_statistics[step & 1][(c * 8 + (lane & 3) * 2) * 2];
      UNROLL for (int e = 0; e < 4; e++) {
        const float lse = e & 1 ? pair.z : pair.x, delta = e & 1 ? pair.w : pair.y;
        p[c][e] = ex2(fmaf(p[c][e], a.scale_log2, -lse));
        if (edge) {
          const int key = first + row + (lane >> 2) + (e >> 1) * 8, query = i * kQueries + c * 8 + (lane & 3) * 2 + (e & 1);
          if (query >= n || (a.causal && key > query)) p[c][e] = 0.f;
        }
        ds[c][e] = p[c][e] * (ds[c][e] - delta);
      }
    }
    UNROLL for (int kk = 0; kk < kQueries / 16; kk++) {
      dv.add_product(p[kk * 2], p[kk * 2 + 1], smem_u32(s_dy) + stage, kk * 16, lane);
      dk.add_product(ds[kk * 2], ds[kk * 2 + 1], smem_u32(s_q) + stage, kk * 16, lane);
    }
  }
  dk.scale(a.scale, a.scale);
  __syncwarp();                            // the rows of keys and values are this warp's own
  const int n_valid = n - first - row;
  store_rows<W, Aligned>(dk, s_k, row, a.dk + k_at + row * a.k_stride, a.k_stride, n_valid, a.width, a.add_dk, lane);
  store_rows<W, Aligned>(dv, s_v, row, a.dv + v_at + row * a.v_stride, a.v_stride, n_valid, a.width, a.add_dv, lane);
  if (a.add_dv) return;
  clear_outside(a.dv + (span.from + first) * a.v_stride, min(kTile, n - first), a.v_stride, a.v_column, a.width, key_head,
                a.heads / a.group);
}

}  // namespace attention

KERNEL(attention_bwd_dq_w32_bf16, 128, 2, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dq<32, true>(a); }
KERNEL(attention_bwd_dq_w64_bf16, 128, 2, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dq<64, true>(a); }
KERNEL(attention_bwd_dq_w80_bf16, 128, 2, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dq<80, true>(a); }
KERNEL(attention_bwd_dq_w128_bf16, 128, 1, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dq<128, true>(a); }
KERNEL(attention_bwd_dq_unaligned_bf16, 128, 1, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dq<128, false>(a); }
KERNEL(attention_bwd_dkv_w32_bf16, 128, 2, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dkv<32, true>(a); }
KERNEL(attention_bwd_dkv_w64_bf16, 128, 2, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dkv<64, true>(a); }
KERNEL(attention_bwd_dkv_w80_bf16, 128, 2, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dkv<80, true>(a); }
KERNEL(attention_bwd_dkv_w128_bf16, 128, 1, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dkv<128, true>(a); }
KERNEL(attention_bwd_dkv_unaligned_bf16, 128, 1, const __grid_constant__ AttentionBackwardArgs a) { attention::backward_dkv<128, false>(a); }
