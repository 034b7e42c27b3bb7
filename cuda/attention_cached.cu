// Attention of the newest tokens of each sequence to all its keys and values in a cache, found through a table of blocks.
//
// Maths as in attention.cu, causal: token t of the n new ones of sequence b sees its first lengths[b] - n + t + 1 keys.
// Specification: src/host/attention.rs.
//
//   tensor         shape                   dtype  layout
//   q, y           [T, H E]                bf16   contiguous
//   keys, values   [pool_blocks block, G E] bf16  token i of sequence b is row blocks[b, i / block] block + i % block
//   starts         [B + 1]                 i32    new tokens starts[b] .. starts[b + 1]
//   lengths        [B]                     i32    tokens held, the new ones included
//   blocks         [B, max_blocks]         i32
//   partial        [slots, G, 16, splits, E + 2]  f32, scratch: sum of p v, m, sum of p
//   counters       [slots, G]              u32    0 before and after
//
// Numerics: as in attention.cu; bases are whole numbers here too, so joining sums multiplies them by powers of two.
// Rounding points: p, y.
//
// A block has 16 queries, all heads of a group for as many tokens as fit, so that a key is read once for them, and 256
// keys: a split. Each of its warps takes 16 keys of every tile of 64 and keeps its own maximum and sums; they are joined
// in order at the end. Whichever block of a slot and key head comes last joins its rows' splits, in order. Device memory:
// keys and values once for every 16 queries of a group; partial sums once each way, E + 2 numbers for 512 E of keys and
// values.
//
//   find the split's rows;  load queries, first tile
//   for each tile of 64 keys: start the next;  s = q k^T;  m, y and l (the sum of rounded p) as in forward
//   join the warps -> partial;  arrive;  last:  y = sum_s 2^(m_s - m) y_s / sum_s 2^(m_s - m) l_s
//
// Limits: E at most 128. Deterministic, and a row's result depends on its own keys alone: splits have a fixed size and
// begin at its sequence's first key, whatever else is in the batch and however long the table is.
#include "attention.cuh"

struct AttentionCachedArgs {
  const bf16* q;
  const bf16* keys;
  const bf16* values;
  const int32_t* starts;
  const int32_t* lengths;
  const int32_t* blocks;
  float* partial;
  uint32_t* counters;
  bf16* y;
  int32_t tokens;
  int32_t sequences;
  int32_t heads;
  int32_t group;
  int32_t width;
  int32_t block;
  int32_t max_blocks;
  int32_t pool_blocks;
  int32_t splits;
  int32_t first_slot;
  float scale_log2;
};
LAYOUT(AttentionCachedArgs, q, keys, values, starts, lengths, blocks, partial, counters, y, tokens, sequences, heads, group,
       width, block, max_blocks, pool_blocks, splits, first_slot, scale_log2);

namespace attention {

constexpr int kSplit = 256;                // keys of a split, whatever the batch
constexpr int kRows = 16;                  // queries of a block: all heads of a group, of as many tokens as fit

// The queries of a slot: rows [first, n_rows) of its sequence and key head, row r being token r / group, head r % group.
struct Queries { int sequence, from, first, n_rows, n_tokens, length; };
DEV Queries find_queries(const AttentionCachedArgs& a, int slot) {
  Queries q;
  const Span span = find_tile(a.starts, a.sequences, a.tokens, a.group, kRows, slot, q.sequence);
  q.from = span.from, q.first = span.tile * kRows, q.n_tokens = span.length, q.n_rows = span.length * a.group;
  q.length = min(max((int)a.lengths[q.sequence], 0), a.max_blocks * a.block);
  return q;
}
// How many keys a row sees: all up to its own token's.
DEV int seen_by(const AttentionCachedArgs& a, const Queries& q, int row) {
  return q.length - q.n_tokens + 1 + row / a.group;
}
// Where a split leaves a row's unnormalised sum of values, its largest score and the sum of its weights.
DEV float* partial_of(const AttentionCachedArgs& a, int row, int split) {
  const int64_t at = ((int64_t)blockIdx.z * (a.heads / a.group) + blockIdx.y) * kRows + row;
  return a.partial + (at * a.splits + split) * (a.width + 2);
}

// The splits of each row: a warp for every fourth row of a slot and key head. A lane weighs every 32nd split, and has every
// 32nd column of all splits in order: each number is read once, and those of 8 splits at a time, since the next kernel
// waits for this last block.
DEV void join_splits(const AttentionCachedArgs& a, const Queries& q) {
  constexpr int kColumns = 128 / 32, kAtOnce = 8;
  const int lane = threadIdx.x & 31, key_head = blockIdx.y, stride = a.width + 2;
  for (int r = threadIdx.x >> 5; r < kRows && q.first + r < q.n_rows; r += kThreads / 32) {
    const int row = q.first + r, n_splits = (seen_by(a, q, row) + kSplit - 1) / kSplit;
    const float* parts = partial_of(a, r, 0);
    float top = -INFINITY, weights = 0.f, y[kColumns] = {};
    for (int s = lane; s < n_splits; s += 32) top = fmaxf(top, parts[s * stride + a.width]);
    top = warp_max(top);
    const float base = top == -INFINITY ? 0.f : top;
    for (int first = 0; first < n_splits; first += 32) {
      float own = 0.f;
      if (first + lane < n_splits) {
        const float* state = parts + (first + lane) * stride + a.width;
        own = ex2(state[0] - base), weights = fmaf(own, state[1], weights);
      }
      // all that are read at once before the first is needed: no load crosses a shuffle
      for (int s = first; s < min(first + 32, n_splits); s += kAtOnce) {
        float v[kAtOnce][kColumns];
        UNROLL for (int i = 0; i < kAtOnce; i++) UNROLL for (int c = 0; c < kColumns; c++) {
          const int column = c * 32 + lane;
          v[i][c] = s + i < n_splits && column < a.width ? parts[(s + i) * stride + column] : 0.f;
        }
        UNROLL for (int i = 0; i < kAtOnce; i++) {
          const float weight = __shfl_sync(0xffffffffu, own, s - first + i);
          if (s + i < n_splits) UNROLL for (int c = 0; c < kColumns; c++) y[c] = fmaf(weight, v[i][c], y[c]);
        }
      }
    }
    weights = warp_sum(weights);
    bf16* to = a.y + ((int64_t)(q.from + row / a.group) * a.heads + key_head * a.group + row % a.group) * a.width;
    UNROLL for (int c = 0; c < kColumns; c++) {
      const int column = c * 32 + lane;
      if (column < a.width) to[column] = f2bf(y[c] / weights);
    }
  }
}

template <int W, bool Aligned> DEV void forward_cached(const AttentionCachedArgs& a) {
  constexpr int kBytes = Tile<W>::kBytes;
  uint8_t *s_k = shared_memory(), *s_v = s_k + 2 * kBytes, *s_q = s_k + 4 * kBytes;
  SHARED(int32_t, s_rows, [kSplit]);
  SHARED(float, s_state, [2][kThreads / 32][kRows]);
  SHARED(uint32_t, s_before, [1]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, key_head = blockIdx.y, split = blockIdx.x;
  const Queries q = find_queries(a, a.first_slot + (int)blockIdx.z);
  if (q.first >= q.n_rows) return;
  const int n_rows = min(kRows, q.n_rows - q.first), begin = split * kSplit;
  const int seen_by_last = seen_by(a, q, q.first + n_rows - 1), n = min(seen_by_last - begin, kSplit);
  if (n <= 0) return;

  // rows of the pools; what the table should not say becomes zeros
  for (int i = threadIdx.x; i < kSplit; i += kThreads) {
    const int token = begin + i;
    int row = -1;
    if (i < n) {
      const int block = a.blocks[(int64_t)q.sequence * a.max_blocks + token / a.block];
      if (block >= 0 && block < a.pool_blocks) row = block * a.block + token % a.block;
    }
    s_rows[i] = row;
  }
  const int64_t stride = (int64_t)(a.heads / a.group) * a.width;
  const bf16 *keys = a.keys + key_head * a.width, *values = a.values + key_head * a.width;
  // 16 rows, or all 64 of a tile of keys or values
  auto load = [&](uint8_t* s_tile, const bf16* x, int rows, auto&& place) {
    for (int c = threadIdx.x; c < rows * (Aligned ? Tile<W>::kChunks : W); c += kThreads) {
      if constexpr (Aligned) {
        const int r = c / Tile<W>::kChunks, chunk = c % Tile<W>::kChunks;
        const int64_t at = place(r);
        const bool valid = at >= 0 && chunk * 8 < a.width;
        cp_async16(smem_u32(s_tile) + Tile<W>::at(r, chunk), valid ? x + at + chunk * 8 : x, valid);
      } else {
        const int r = c / W, column = c % W;
        const int64_t at = place(r);
        *(bf16*)(s_tile + Tile<W>::at(r, column >> 3) + (column & 7) * 2) =
            at >= 0 && column < a.width ? x[at + column] : bf16{0};
      }
    }
  };
  load(s_q, a.q, kRows, [&](int r) {
    const int row = q.first + r, head = key_head * a.group + row % a.group;
    return r < n_rows ? ((int64_t)(q.from + row / a.group) * a.heads + head) * a.width : -1;
  });
  __syncthreads();
  auto load_tile = [&](int j) {
    auto place = [&](int r) { return s_rows[j * kTile + r] < 0 ? -1 : s_rows[j * kTile + r] * stride; };
    load(s_k + (j & 1) * kBytes, keys, kTile, place);
    load(s_v + (j & 1) * kBytes, values, kTile, place);
  };
  load_tile(0);
  cp_async_commit();

  Rows<W> y;
  y.clear();
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f};
  const int n_tiles = (n + kTile - 1) / kTile;
  for (int j = 0; j < n_tiles; j++) {
    cp_async_wait<0>();
    __syncthreads();                       // tile j is here, and everyone is done with the one before
    if (j + 1 < n_tiles) load_tile(j + 1);
    cp_async_commit();
    // each warp has 16 of the tile's keys
    const uint32_t stage = (j & 1) * kBytes, own = warp * 16 * Tile<W>::kStride;
    float s[2][4];
    rows_by_rows<W, 2>(s, smem_u32(s_q), 0, smem_u32(s_k) + stage + own, lane);
    UNROLL for (int h = 0; h < 2; h++) {
      const int seen = seen_by(a, q, q.first + (lane >> 2) + h * 8) - begin;
      float top = -INFINITY;
      UNROLL for (int i = 0; i < 4; i++) {
        const int key = j * kTile + warp * 16 + (i >> 1) * 8 + (lane & 3) * 2 + (i & 1);
        float& score = s[i >> 1][h * 2 + (i & 1)];
        if (key >= seen || key >= n) score = -INFINITY;
        top = fmaxf(top, score);
      }
      top = quad_max(top);
      top = raised(m[h], top * a.scale_log2);
      const float base = top == -INFINITY ? 0.f : top, shrink = ex2(m[h] - base);
      m[h] = top, l[h] *= shrink;
      UNROLL for (int p = 0; p < Rows<W>::kParts; p++) UNROLL for (int i = 0; i < Rows<W>::kTiles; i++) {
        y.v[p][i][h * 2] *= shrink, y.v[p][i][h * 2 + 1] *= shrink;
      }
      UNROLL for (int i = 0; i < 2; i++) {
        float &x = s[i][h * 2], &z = s[i][h * 2 + 1];
        x = ex2(fmaf(x, a.scale_log2, -base)), z = ex2(fmaf(z, a.scale_log2, -base));
        round_weights(x, z);
        l[h] += x + z;
      }
    }
    y.add_product(s[0], s[1], smem_u32(s_v) + stage + own, 0, lane);
  }
  __syncthreads();                         // the tiles make room for the warps' sums
  float* s_sums = (float*)s_k;
  UNROLL for (int h = 0; h < 2; h++) {
    l[h] = quad_sum(l[h]);
    const int r = (lane >> 2) + h * 8;
    if ((lane & 3) == 0) s_state[0][warp][r] = m[h], s_state[1][warp][r] = l[h];
    UNROLL for (int p = 0; p < Rows<W>::kParts; p++) UNROLL for (int i = 0; i < Rows<W>::kTiles; i++) {
      float* to = s_sums + (warp * kRows + r) * W + (p * Rows<W>::kTiles + i) * 8 + (lane & 3) * 2;
      to[0] = y.v[p][i][h * 2], to[1] = y.v[p][i][h * 2 + 1];
    }
  }
  __syncthreads();
  // the warps' parts of each row, in order
  for (int c = threadIdx.x; c < n_rows * (W + 1); c += kThreads) {
    const int r = c / (W + 1), column = c % (W + 1);
    if (column < W && column >= a.width) continue;
    float top = -INFINITY, sum = 0.f;
    UNROLL for (int w = 0; w < kThreads / 32; w++) top = fmaxf(top, s_state[0][w][r]);
    const float base = top == -INFINITY ? 0.f : top;
    UNROLL for (int w = 0; w < kThreads / 32; w++) {
      const float part = column < W ? s_sums[(w * kRows + r) * W + column] : s_state[1][w][r];
      sum = fmaf(ex2(s_state[0][w][r] - base), part, sum);
    }
    float* to = partial_of(a, r, split);
    if (column < W) to[column] = sum; else to[a.width] = top, to[a.width + 1] = sum;
  }
  // of the splits that have a key for some row, the last to come here
  const uint32_t n_splits = (uint32_t)((seen_by_last + kSplit - 1) / kSplit);
  uint32_t* counter = a.counters + blockIdx.z * gridDim.y + key_head;
  __syncthreads();                         // all of the block's parts are written
  if (threadIdx.x == 0) s_before[0] = arrive_counter(counter, n_splits);
  __syncthreads();
  if (s_before[0] == n_splits - 1) join_splits(a, q);
}

}  // namespace attention

KERNEL(attention_cached_fwd_w32_bf16, 128, 3, const __grid_constant__ AttentionCachedArgs a) { attention::forward_cached<32, true>(a); }
KERNEL(attention_cached_fwd_w64_bf16, 128, 3, const __grid_constant__ AttentionCachedArgs a) { attention::forward_cached<64, true>(a); }
KERNEL(attention_cached_fwd_w80_bf16, 128, 3, const __grid_constant__ AttentionCachedArgs a) { attention::forward_cached<80, true>(a); }
KERNEL(attention_cached_fwd_w128_bf16, 128, 3, const __grid_constant__ AttentionCachedArgs a) { attention::forward_cached<128, true>(a); }
KERNEL(attention_cached_fwd_unaligned_bf16, 128, 2, const __grid_constant__ AttentionCachedArgs a) { attention::forward_cached<128, false>(a); }
