// y = softmax(scale q k^T + mask) v for packed sequences, each attending to itself.
//
// Maths, for one query of one head: s_j = scale q . k_j over the keys j that it sees; p_j = exp(s_j - m), m about max_j s_j;
// y = sum_j p_j v_j / sum_j p_j; lse = log2(sum_j 2^(s_j log2 e)). Semantics: Qwen3VLTextAttention (causal) and
// Qwen3VLVisionAttention (full) of transformers 5.17, modeling_qwen3_vl.py. Specification: src/host/attention.rs.
//
//   tensor  shape      dtype  layout
//   q, y    [T, H E]   bf16   contiguous
//   k       [T, G E]   bf16   rows of k_stride
//   v       [T, G E]   bf16   rows of v_stride: columns of a wider tensor, from its first value column
//   starts  [B + 1]    i32    sequence b has tokens starts[b] .. starts[b + 1]
//   lse     [H, T]     f32    null where nobody asks for it
// 16-byte alignment of all rows where E is a multiple of 8; any other E takes the `unaligned` kernel.
//
// Numerics: products of bf16 with f32 sums; scores, maxima and sums in f32; exp as ex2.approx of scores times log2 e.
// Rounding points: p = 2^(s log2 e - m), m the row's largest s log2 e rounded up to a whole number; and y. Since m is whole,
// one that grows from tile to tile shrinks the sums by powers of two: p is rounded to the same bf16 whatever the tiles, and
// the host rounds it at the same place. y is divided by the sum of rounded p, so that it is a mean of values and a lone
// key's value comes out as it is; lse takes the sum before rounding. NaN in q gives NaN in its row of y; NaN in a key or a
// value also reaches earlier rows of its tile.
//
// A warp owns 16 queries of one head, a block 64; it walks over the keys that they see in tiles of 64. Device memory: q
// and y once; k and v once for every 64 queries of each head that shares them, from L2.
//
//   load queries, first keys
//   for each tile of keys:
//     start loading this tile's values and the next keys
//     s = q k^T;  mask the diagonal or the ragged end
//     m' = max(m, ceil(s));  y, l, r *= 2^(m - m');  p = 2^(s - m');  l += p
//     p = round(p);  r += p;  y += p v
//   y /= r;  lse = m + log2(l)
//
// 1. Queries stay in registers: their tile in shared memory is the values' after that, and three tiles do (48 KiB at
//    width 128), so that two blocks fit a multiprocessor of 100 KiB.
// 2. Keys are loaded a tile ahead, values while the scores are computed; two barriers a tile.
// 3. The last tiles of sequences go first: under a causal mask they are the longest.
// 4. y goes out through shared memory, in chunks of 16 bytes.
//
// Limits: E at most 128, other widths padded with zeros into the next of 32, 64, 80, 128. Deterministic: every sum has
// one order, which depends on the token's own sequence alone. Backward needs q, k, v, y and lse.
#include "attention.cuh"

LAYOUT(AttentionArgs, q, k, v, starts, y, lse, k_stride, v_stride, tokens, sequences, heads, group, width, causal,
       scale_log2);

namespace attention {

template <int W, bool Aligned> DEV void forward(const AttentionArgs& a) {
  uint8_t *s_v = shared_memory(), *s_k = s_v + Tile<W>::kBytes;      // values: one tile, first the queries; keys: two
  uint32_t values = smem_u32(s_v), keys = smem_u32(s_k);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.x;
  int sequence;
  const int slot = (int)(gridDim.y - 1 - blockIdx.y);
  const Span span = find_tile(a.starts, a.sequences, a.tokens, 1, kTile, slot, sequence);
  const int first = span.tile * kTile, n = span.length;
  if (first >= n) return;

  const int64_t q_stride = (int64_t)a.heads * a.width;
  const bf16* q = a.q + (span.from + first) * q_stride + head * a.width;
  const bf16* k = a.k + span.from * a.k_stride + head / a.group * a.width;
  const bf16* v = a.v + span.from * a.v_stride + head / a.group * a.width;
  const int n_tiles = (a.causal ? span.tile + 1 : (n + kTile - 1) / kTile);

  load_rows<W, kTile, Aligned>(s_v, q, q_stride, n - first, a.width);
  cp_async_commit();
  load_rows<W, kTile, Aligned>(s_k, k, a.k_stride, n, a.width);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  uint32_t r_q[W / 16][4];
  UNROLL for (int kk = 0; kk < W / 16; kk++) ldmatrix_x4(r_q[kk], Tile<W>::along(a_address<W>(values, warp * 16, lane), kk));

  Rows<W> y;
  y.clear();
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f}, r[2] = {0.f, 0.f};
  for (int j = 0; j < n_tiles; j++) {
    cp_async_wait<0>();
    __syncthreads();                       // keys j are here, and everyone is done with values j - 1 (or the queries)
    load_rows<W, kTile, Aligned>(s_v, v + (int64_t)j * kTile * a.v_stride, a.v_stride, n - j * kTile, a.width);
    cp_async_commit();
    if (j + 1 < n_tiles) {
      const bf16* next = k + (int64_t)(j + 1) * kTile * a.k_stride;
      load_rows<W, kTile, Aligned>(s_k + ((j + 1) & 1) * Tile<W>::kBytes, next, a.k_stride, n - (j + 1) * kTile, a.width);
    }
    cp_async_commit();

    float s[8][4];
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int c = 0; c < 4; c++) s[i][c] = 0.f;
    UNROLL for (int kk = 0; kk < W / 16; kk++) {
      uint32_t b[8][2];
      load_b<W, 8>(b, Tile<W>::along(b_address<W>(keys + (j & 1) * Tile<W>::kBytes, lane), kk));
      mma_16816_row<8>(s, r_q[kk], b);
    }
    if (j == n_tiles - 1) {                // the diagonal under a causal mask, else the ragged end
      UNROLL for (int i = 0; i < 8; i++) UNROLL for (int c = 0; c < 4; c++) {
        int row = first + warp * 16 + (lane >> 2) + (c >> 1) * 8, key = j * kTile + i * 8 + (lane & 3) * 2 + (c & 1);
        if (key >= n || (a.causal && key > row)) s[i][c] = -INFINITY;
      }
    }
    float base[2], shrink[2];
    UNROLL for (int h = 0; h < 2; h++) {
      float top = -INFINITY;
      UNROLL for (int i = 0; i < 8; i++) top = fmaxf(top, fmaxf(s[i][h * 2], s[i][h * 2 + 1]));
      top = quad_max(top);
      top = raised(m[h], top * a.scale_log2);
      base[h] = top == -INFINITY ? 0.f : top;
      shrink[h] = ex2(m[h] - base[h]);
      m[h] = top;
      l[h] *= shrink[h], r[h] *= shrink[h];
    }
    y.scale(shrink[0], shrink[1]);
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int c = 0; c < 4; c++) {
      s[i][c] = ex2(fmaf(s[i][c], a.scale_log2, -base[c >> 1]));
      l[c >> 1] += s[i][c];
    }
    UNROLL for (int i = 0; i < 8; i++) UNROLL for (int c = 0; c < 4; c += 2) {
      round_weights(s[i][c], s[i][c + 1]);
      r[c >> 1] += s[i][c] + s[i][c + 1];
    }
    cp_async_wait<1>();
    __syncthreads();                       // values j are here
    UNROLL for (int kk = 0; kk < kTile / 16; kk++) y.add_product(s[kk * 2], s[kk * 2 + 1], values, kk * 16, lane);
  }
  UNROLL for (int h = 0; h < 2; h++) {
    l[h] = quad_sum(l[h]), r[h] = quad_sum(r[h]);
    const int query = first + warp * 16 + (lane >> 2) + h * 8;
    if (a.lse && (lane & 3) == 0 && query < n) a.lse[(int64_t)head * a.tokens + span.from + query] = m[h] + log2f(l[h]);
  }
  y.scale(1.f / r[0], 1.f / r[1]);
  // the keys' tiles are free: every warp passed the last barrier after its last scores
  const int row = warp * 16;
  bf16* to = a.y + (span.from + first + row) * q_stride + head * a.width;
  store_rows<W, Aligned>(y, s_k, row, to, q_stride, n - first - row, a.width, false, lane);
}

}  // namespace attention

KERNEL(attention_fwd_w32_bf16, 128, 3, const __grid_constant__ AttentionArgs a) { attention::forward<32, true>(a); }
KERNEL(attention_fwd_w64_bf16, 128, 3, const __grid_constant__ AttentionArgs a) { attention::forward<64, true>(a); }
KERNEL(attention_fwd_w80_bf16, 128, 2, const __grid_constant__ AttentionArgs a) { attention::forward<80, true>(a); }
KERNEL(attention_fwd_w128_bf16, 128, 2, const __grid_constant__ AttentionArgs a) { attention::forward<128, true>(a); }
KERNEL(attention_fwd_unaligned_bf16, 128, 2, const __grid_constant__ AttentionArgs a) { attention::forward<128, false>(a); }
