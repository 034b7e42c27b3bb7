// The gradients of attention over packed sequences with heads 72 to 128 wide, by Hopper's own instructions.
//
// Maths, semantics and tensors as in attention_backward.cu; q, k, v and dy come as attention_sm90.cuh says, the
// statistics by a map of their own, 64 queries a box.
//
// Numerics and rounding points as in attention_backward.cu.
//
// attention_bwd_dq: a block has 128 queries of one head, finds their statistics while the first tiles come, and walks over
// their keys in tiles of 128. attention_bwd_dkv: a block has 128 keys of one key head and walks over the query heads of
// its group in order and over the queries that see the keys, 64 at a time, with keys as the rows of s and dp. So in
// both the left operand of the last products is what the registers hold. Of each the copying warpgroup runs one tile
// ahead.
//
//   dq:  delta = dy . y;  for each tile of keys: s = q k^T, dp = dy v^T, ds = 2^(s - lse) (dp - delta), dq += ds k
//   dkv: for each head, for each tile of queries: s^T = k q^T, dp^T = v dy^T, dv += p^T dy, dk += ds^T q
//
// 1. A tile has two places, each with a barrier for what has come and one for what is free. The two computing
//    warpgroups drift apart: one's exponentials under the other's products, and its own p under its dp. (ds under
//    dv += p^T dy as well would take 16 bytes more of registers than there are at width 128.)
// 2. Seven products a tile of pairs: three in dq, four in dkv.
// 3. Registers: 40 for a copying thread, 232 for the others, which at width 128 hold 192 sums (128 of dk and dv, or 64 of
//    dq).
// 4. The rows behind a sequence's end belong to another sequence: they are cleared in the tiles that are walked over
//    before any product reads them, so that no number of theirs, NaN or not, gets in.
//
// Limits: as attention_sm90.cu's. Shared memory: 193 KiB (dq), 130 KiB (dkv). Deterministic, as attention_backward.cu is.
#include "attention_sm90.cuh"

struct AttentionBackwardSm90Args {
  AttentionBackwardArgs gradients;
  TensorMap q;
  TensorMap k;
  TensorMap v;
  TensorMap dy;
  TensorMap statistics;
};
LAYOUT(AttentionBackwardSm90Args, gradients, q, k, v, dy, statistics);

namespace attention {

constexpr uint32_t kWideBytes = kTileBytes<kWide>;
constexpr int kNarrow = 64;                // queries of a step in backward_dkv
constexpr uint32_t kNarrowBytes = kTileBytes<kNarrow>;
// Of a step's queries, two numbers each. A box begins at a multiple of 16 bytes, so at an even query: it has two more.
constexpr uint32_t kStatisticsBytes = (kNarrow + 2) * 2 * 4;
constexpr uint32_t kStatisticsPlace = (kStatisticsBytes + 127) & ~127u;

// Barriers of a walk: what stays has come; a place's tile has come; a place is free (the last two: two each, 8 bytes
// apart).
struct Walk {
  uint32_t stays, here, free;
  DEV explicit Walk(uint64_t* s_barriers) {
    stays = smem_u32(s_barriers), here = stays + 8, free = stays + 24;
    if (threadIdx.x == 0) {
      mbar_init(stays, 1);
      UNROLL for (int i = 0; i < 2; i++) mbar_init(here + 8 * i, 1), mbar_init(free + 8 * i, 8);   // a warp each
      fence_mbar_init();
    }
    __syncthreads();
  }
  DEV void wait_here(int step) const { mbar_wait(here + 8 * (step & 1), step >> 1 & 1); }
  // By the copying thread: the barrier on which the step's `bytes` will arrive, once its place is free.
  DEV uint32_t expect(int step, uint32_t bytes) const {
    mbar_wait(free + 8 * (step & 1), (step >> 1 & 1) ^ 1);
    mbar_arrive_expect_tx(here + 8 * (step & 1), bytes);
    return here + 8 * (step & 1);
  }
  DEV void leave(int step) const {
    if ((threadIdx.x & 31) == 0) mbar_arrive(free + 8 * (step & 1));
  }
};

// dq of queries 64 `part` to 64 `part` + 63 of the block. s_tiles: queries, dy, and twice keys and values.
template <int W>
DEV void compute_dq(const AttentionBackwardArgs& a, const Span& span, const Walk& walk, uint8_t* s_tiles,
                    int n_tiles, int part) {
  const int lane = threadIdx.x & 31, n = span.length, head = blockIdx.x, first = span.tile * kWide + part * 64;
  const int row = first + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);   // and row + 8
  const uint32_t queries = smem_u32(s_tiles) + part * 64 * 128;
  float dq[W / 2], lse[2], delta[2];
  UNROLL for (int i = 0; i < W / 2; i++) dq[i] = 0.f;
  find_statistics<true>(lse, delta, a, head, span.from, row, n);
  mbar_wait(walk.stays, 0);
  for (int j = 0; j < n_tiles; j++) {
    uint8_t* s_keys = s_tiles + (2 + (j & 1) * 2) * kWideBytes;
    const uint32_t keys = smem_u32(s_keys);
    walk.wait_here(j);
    const bool last = j == n_tiles - 1;
    if (last && n_tiles * kWide > n) {
      clear_rows<kWide>(s_keys, n - j * kWide);
      clear_rows<kWide>(s_keys + kWideBytes, n - j * kWide);
      fence_proxy_async();
      bar_sync<1>(256);
    }
    float s[64], dp[64];
    wgmma_fence();
    multiply_rows<W, kWide, kWide>(s, queries, keys);
    wgmma_commit();
    wgmma_fence();
    multiply_rows<W, kWide, kWide>(dp, queries + kWideBytes, keys + kWideBytes);
    wgmma_commit();
    wgmma_wait<1>();
    UNROLL for (int i = 0; i < 64; i++) s[i] = ex2(fmaf(s[i], a.scale_log2, -lse[i >> 1 & 1]));
    if (last) {
      UNROLL for (int i = 0; i < 64; i++) {
        const int key = j * kWide + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
        if (key >= n || (a.causal && key > row + (i >> 1 & 1) * 8)) s[i] = 0.f;
      }
    }
    wgmma_wait<0>();
    UNROLL for (int i = 0; i < 64; i++) s[i] *= dp[i] - delta[i >> 1 & 1];
    const Weights<kWide> ds(s);
    wgmma_fence();
    add_weighted<W, kWide>(dq, ds, keys);
    wgmma_commit();
    wgmma_wait<0>();
    walk.leave(j);
  }
  UNROLL for (int i = 0; i < W / 2; i++) dq[i] *= a.scale;
  const int64_t stride = (int64_t)a.heads * a.width, to = (span.from + first) * stride + head * a.width;
  store_sums<W>(dq, a.dq + to, stride, n - first, a.width, a.add_dq);
}

template <int W> DEV void backward_dq(const AttentionBackwardSm90Args& args) {
  const AttentionBackwardArgs& a = args.gradients;
  uint8_t* s_tiles = swizzled_memory();
  SHARED(uint64_t, s_barriers, [5]);
  int sequence;
  const Span span = find_tile(a.starts, a.sequences, a.tokens, 1, kWide, (int)(gridDim.y - 1 - blockIdx.y), sequence);
  const int first = span.tile * kWide, n = span.length;
  if (first >= n) return;
  const int n_tiles = a.causal ? span.tile + 1 : (n + kWide - 1) / kWide;
  const Walk walk(s_barriers);
  if (threadIdx.x < 128) {
    reg_dealloc<40>();
    if (threadIdx.x == 0) {
      const uint32_t queries = smem_u32(s_tiles);
      const int key_head = blockIdx.x / a.group;
      mbar_arrive_expect_tx(walk.stays, 2 * kWideBytes);
      copy_rows<kWide>(queries, &args.q, walk.stays, blockIdx.x, span.from + first);
      copy_rows<kWide>(queries + kWideBytes, &args.dy, walk.stays, blockIdx.x, span.from + first);
      for (int j = 0; j < n_tiles; j++) {
        const uint32_t keys = queries + (2 + (j & 1) * 2) * kWideBytes, here = walk.expect(j, 2 * kWideBytes);
        copy_rows<kWide>(keys, &args.k, here, key_head, span.from + j * kWide);
        copy_rows<kWide>(keys + kWideBytes, &args.v, here, key_head, span.from + j * kWide);
      }
    }
  } else {
    reg_alloc<232>();
    compute_dq<W>(a, span, walk, s_tiles, n_tiles, (threadIdx.x >> 7) - 1);
  }
}

// dk and dv of keys 64 `part` to 64 `part` + 63 of the block, over tiles of queries from `begin` on, `n_tiles` a head.
// s_tiles: keys, values, twice queries and dy, twice statistics.
template <int W>
DEV void compute_dkv(const AttentionBackwardArgs& a, const Span& span, const Walk& walk, uint8_t* s_tiles, int begin,
                     int n_tiles, int part) {
  const int lane = threadIdx.x & 31, n = span.length, key_head = blockIdx.x, first = span.tile * kWide + part * 64;
  const int row = first + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);   // and row + 8
  const uint32_t keys = smem_u32(s_tiles) + part * 64 * 128;
  float dk[W / 2], dv[W / 2];
  UNROLL for (int i = 0; i < W / 2; i++) dk[i] = 0.f, dv[i] = 0.f;
  mbar_wait(walk.stays, 0);
  for (int step = 0, i = begin; step < a.group * n_tiles; step++) {
    uint8_t* s_queries = s_tiles + 2 * kWideBytes + (step & 1) * 2 * kNarrowBytes;
    float* s_statistics =
        (float*)(s_tiles + 2 * kWideBytes + 4 * kNarrowBytes + (step & 1) * kStatisticsPlace) + (span.from & 1) * 2;
    const uint32_t queries = smem_u32(s_queries);
    walk.wait_here(step);
    const int end = n - i * kNarrow;
    if (end < kNarrow) {
      clear_rows<kNarrow>(s_queries, end);
      clear_rows<kNarrow>(s_queries + kNarrowBytes, end);
      const int at = end * 2 + (int)threadIdx.x - 128;
      if (at < kNarrow * 2) s_statistics[at] = 0.f;
      fence_proxy_async();
      bar_sync<1>(256);
    }
    float p[kNarrow / 2], ds[kNarrow / 2];
    wgmma_fence();
    multiply_rows<W, kWide, kNarrow>(p, keys, queries);
    wgmma_commit();
    wgmma_fence();
    multiply_rows<W, kWide, kNarrow>(ds, keys + kWideBytes, queries + kNarrowBytes);
    wgmma_commit();
    wgmma_wait<1>();
    const bool edge = (a.causal && i * kNarrow < first + 64) || end < kNarrow;
    UNROLL for (int c = 0; c < kNarrow / 8; c++) {
      const float* lses = s_statistics + (c * 8 + (lane & 3) * 2) * 2;
      UNROLL for (int e = c * 4; e < c * 4 + 4; e++) p[e] = ex2(fmaf(p[e], a.scale_log2, -lses[(e & 1) * 2]));
    }
    if (edge) {
      UNROLL for (int e = 0; e < kNarrow / 2; e++) {
        const int key = row + (e >> 1 & 1) * 8, query = i * kNarrow + (e >> 2) * 8 + (lane & 3) * 2 + (e & 1);
        if (query >= n || (a.causal && key > query)) p[e] = 0.f;
      }
    }
    wgmma_wait<0>();
    UNROLL for (int c = 0; c < kNarrow / 8; c++) {
      const float* deltas = s_statistics + (c * 8 + (lane & 3) * 2) * 2 + 1;
      UNROLL for (int e = c * 4; e < c * 4 + 4; e++) ds[e] = p[e] * (ds[e] - deltas[(e & 1) * 2]);
    }
    const Weights<kNarrow> weights_p(p), weights_ds(ds);
    wgmma_fence();
    add_weighted<W, kNarrow>(dv, weights_p, queries + kNarrowBytes);
    add_weighted<W, kNarrow>(dk, weights_ds, queries);
    wgmma_commit();
    wgmma_wait<0>();
    fence_proxy_async();                   // the statistics were read, before TMA writes there again
    __syncwarp();
    walk.leave(step);
    if (++i == begin + n_tiles) i = begin;
  }
  UNROLL for (int i = 0; i < W / 2; i++) dk[i] *= a.scale;
  const int64_t k_at = (span.from + first) * a.k_stride + key_head * a.width;
  const int64_t v_at = (span.from + first) * a.v_stride + a.v_column + key_head * a.width;
  store_sums<W>(dk, a.dk + k_at, a.k_stride, n - first, a.width, a.add_dk);
  store_sums<W>(dv, a.dv + v_at, a.v_stride, n - first, a.width, a.add_dv);
  if (a.add_dv) return;
  clear_outside(a.dv + (span.from + first) * a.v_stride, min(64, n - first), a.v_stride, a.v_column, a.width, key_head,
                a.heads / a.group);
}

template <int W> DEV void backward_dkv(const AttentionBackwardSm90Args& args) {
  const AttentionBackwardArgs& a = args.gradients;
  uint8_t* s_tiles = swizzled_memory();
  SHARED(uint64_t, s_barriers, [5]);
  int sequence;
  const Span span = find_tile(a.starts, a.sequences, a.tokens, 1, kWide, (int)blockIdx.y, sequence);
  const int first = span.tile * kWide, n = span.length;
  if (first >= n) return;
  // under a causal mask the first query that sees a key of this tile is the first of them
  const int begin = a.causal ? first / kNarrow : 0, n_tiles = (n + kNarrow - 1) / kNarrow - begin;
  const Walk walk(s_barriers);
  if (threadIdx.x < 128) {
    reg_dealloc<40>();
    if (threadIdx.x == 0) {
      const uint32_t keys = smem_u32(s_tiles);
      mbar_arrive_expect_tx(walk.stays, 2 * kWideBytes);
      copy_rows<kWide>(keys, &args.k, walk.stays, blockIdx.x, span.from + first);
      copy_rows<kWide>(keys + kWideBytes, &args.v, walk.stays, blockIdx.x, span.from + first);
      int step = 0;
      for (int head = blockIdx.x * a.group; head < (int)(blockIdx.x + 1) * a.group; head++) {
        for (int i = begin; i < begin + n_tiles; i++, step++) {
          const uint32_t queries = keys + 2 * kWideBytes + (step & 1) * 2 * kNarrowBytes;
          const uint32_t statistics = keys + 2 * kWideBytes + 4 * kNarrowBytes + (step & 1) * kStatisticsPlace;
          const uint32_t here = walk.expect(step, 2 * kNarrowBytes + kStatisticsBytes);
          const int from = span.from + i * kNarrow;
          copy_rows<kNarrow>(queries, &args.q, here, head, from);
          copy_rows<kNarrow>(queries + kNarrowBytes, &args.dy, here, head, from);
          tma_load_2d(statistics, &args.statistics, here, (from & ~1) * 2, head);
        }
      }
    }
  } else {
    reg_alloc<232>();
    compute_dkv<W>(a, span, walk, s_tiles, begin, n_tiles, (threadIdx.x >> 7) - 1);
  }
}

}  // namespace attention

KERNEL(attention_bwd_dq_w80_sm90_bf16, 384, 1, const __grid_constant__ AttentionBackwardSm90Args a) {
  attention::backward_dq<80>(a);
}
KERNEL(attention_bwd_dq_w128_sm90_bf16, 384, 1, const __grid_constant__ AttentionBackwardSm90Args a) {
  attention::backward_dq<128>(a);
}
KERNEL(attention_bwd_dkv_w80_sm90_bf16, 384, 1, const __grid_constant__ AttentionBackwardSm90Args a) {
  attention::backward_dkv<80>(a);
}
KERNEL(attention_bwd_dkv_w128_sm90_bf16, 384, 1, const __grid_constant__ AttentionBackwardSm90Args a) {
  attention::backward_dkv<128>(a);
}
