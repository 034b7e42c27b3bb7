// y = softmax(scale q k^T + mask) v for packed sequences with heads 128 wide, by Hopper's own instructions.
//
// Maths, semantics and tensors as in attention.cu; q, k and v come through tensor maps of [T, H 128], [T, G 128] and the
// value columns of [T, any], boxes of 64 columns by 128 rows, swizzled by 128 bytes.
//
// Numerics as in attention.cu: p enters the second product as two bf16. Rounding point: y. NaN in q gives NaN in its row
// of y; NaN in a key or a value also reaches earlier rows of its tile.
//
// A block has 128 queries of one head: a warpgroup that copies (one thread of it issues), and two with 64 queries each
// that compute, over keys in tiles of 128. Device memory: as in attention.cu, with half as many walks over k and v.
//
//   copying:    queries;  for each tile: when their place is free, keys, values
//   computing:  for each tile: s = q k^T;  m, l, y and p as in attention.cu;  y += p v
//
// 1. Keys and values have two places each and barriers of their own, so that the copies of one run under the other's
//    product, and the two computing warpgroups drift apart: one's softmax under the other's products.
// 2. Registers: 24 for a copying thread, 240 for the others.
// 3. The rows behind a sequence's last key belong to another sequence: their values are cleared before the product, so
//    that no number of it, NaN or not, gets in.
//
// Limits: E = 128; TMA wants rows at multiples of 16 bytes, which 128 gives. Deterministic, as attention.cu is.
#include "attention.cuh"

struct AttentionSm90Args {
  TensorMap q;
  TensorMap k;
  TensorMap v;
  const int32_t* starts;
  bf16* y;
  int32_t tokens;
  int32_t sequences;
  int32_t heads;
  int32_t group;
  int32_t causal;
  float scale_log2;
};
LAYOUT(AttentionSm90Args, q, k, v, starts, y, tokens, sequences, heads, group, causal, scale_log2);

namespace attention {

constexpr int kWide = 128;                           // queries and keys of a tile, and the width of a head
constexpr uint32_t kHalfBytes = kWide * 128;         // 64 columns of a tile
constexpr uint32_t kWideBytes = 2 * kHalfBytes;

struct Barriers { uint32_t queries, keys, values, keys_free, values_free; };   // the last four: two each, 8 bytes apart

DEV void copy_tile(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row) {
  mbar_arrive_expect_tx(barrier, kWideBytes);
  tma_load_2d(to, map, barrier, column, row);
  tma_load_2d(to + kHalfBytes, map, barrier, column + 64, row);
}

// What one of the two computing warpgroups does, for queries 64 `part` to 64 `part` + 63 of the block.
DEV void compute(const AttentionSm90Args& a, const Span& span, const Barriers& bars, uint8_t* s_values, uint32_t queries,
                 uint32_t keys, uint32_t values, int n_tiles, int part) {
  const int thread = threadIdx.x & 127, warp = thread >> 5, lane = thread & 31, n = span.length;
  const int row = span.tile * kWide + part * 64 + warp * 16 + (lane >> 2);   // and row + 8
  float y[64];
  UNROLL for (int i = 0; i < 64; i++) y[i] = 0.f;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f};
  mbar_wait(bars.queries, 0);
  for (int j = 0; j < n_tiles; j++) {
    const uint32_t stage = j & 1, parity = (j >> 1) & 1;
    float s[64];
    mbar_wait(bars.keys + 8 * stage, parity);
    wgmma_fence();
    UNROLL for (int kk = 0; kk < kWide / 16; kk++) {
      const uint32_t at = (kk >> 2) * kHalfBytes + (kk & 3) * 32;
      const uint64_t q = wgmma_desc_sw128(queries + part * 64 * 128 + at, 0, 1024);
      wgmma_m64n128k16<0, 0>(s, q, wgmma_desc_sw128(keys + stage * kWideBytes + at, 0, 1024), kk > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    if (lane == 0) mbar_arrive(bars.keys_free + 8 * stage);

    const bool last = j == n_tiles - 1;
    if (last) {                            // the diagonal under a causal mask, else the ragged end
      UNROLL for (int i = 0; i < 64; i++) {
        const int key = j * kWide + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
        if (key >= n || (a.causal && key > row + (i >> 1 & 1) * 8)) s[i] = -INFINITY;
      }
    }
    UNROLL for (int h = 0; h < 2; h++) {
      float top = -INFINITY;
      UNROLL for (int i = 0; i < 16; i++) top = fmaxf(top, fmaxf(s[i * 4 + h * 2], s[i * 4 + h * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(m[h], top * a.scale_log2);
      const float base = top == -INFINITY ? 0.f : top, shrink = ex2(m[h] - base);
      m[h] = top, l[h] *= shrink;
      UNROLL for (int i = 0; i < 16; i++) UNROLL for (int c = i * 4 + h * 2; c < i * 4 + h * 2 + 2; c++) {
        y[c] *= shrink;
        s[c] = ex2(fmaf(s[c], a.scale_log2, -base));
        l[h] += s[c];
      }
    }
    uint32_t high[kWide / 16][4], low[kWide / 16][4];
    UNROLL for (int kk = 0; kk < kWide / 16; kk++) UNROLL for (int c = 0; c < 4; c++) {
      split(high[kk][c], low[kk][c], s[kk * 8 + c * 2], s[kk * 8 + c * 2 + 1]);
    }
    mbar_wait(bars.values + 8 * stage, parity);
    if (last && (j + 1) * kWide > n) {
      const int first = n - j * kWide;
      for (int i = part * 128 + thread; i < 2 * (kWide - first) * 8; i += 256) {
        const int half = i / ((kWide - first) * 8), at = i % ((kWide - first) * 8);
        *(V4*)(s_values + stage * kWideBytes + half * kHalfBytes + first * 128 + at * 16) = V4{0, 0, 0, 0};
      }
      fence_proxy_async();
      bar_sync<1>(256);
    }
    wgmma_fence();
    UNROLL for (int kk = 0; kk < kWide / 16; kk++) {
      const uint64_t v = wgmma_desc_sw128(values + stage * kWideBytes + kk * 2048, kHalfBytes, 1024);
      wgmma_m64n128k16_rs<1>(y, high[kk], v, 1);
      wgmma_m64n128k16_rs<1>(y, low[kk], v, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    if (lane == 0) mbar_arrive(bars.values_free + 8 * stage);
  }
  UNROLL for (int h = 0; h < 2; h++) {
    l[h] += __shfl_xor_sync(~0u, l[h], 1);
    l[h] += __shfl_xor_sync(~0u, l[h], 2);
    const float inverse = 1.f / l[h];
    if (row + h * 8 >= n) continue;
    bf16* to = a.y + ((int64_t)(span.from + row + h * 8) * a.heads + blockIdx.x) * kWide + (lane & 3) * 2;
    UNROLL for (int i = 0; i < 16; i++) {
      *(uint32_t*)(to + i * 8) = pack_bf16(y[i * 4 + h * 2] * inverse, y[i * 4 + h * 2 + 1] * inverse);
    }
  }
}

}  // namespace attention

KERNEL(attention_fwd_w128_sm90_bf16, 384, 1, const __grid_constant__ AttentionSm90Args a) {
  using namespace attention;
  DYN_SMEM(s_raw);
  uint8_t* s_tiles = s_raw + (-smem_u32(s_raw) & 1023);
  SHARED(uint64_t, s_barriers, [9]);
  const uint32_t queries = smem_u32(s_tiles), keys = queries + kWideBytes, values = keys + 2 * kWideBytes;
  const uint32_t at = smem_u32(s_barriers);
  const Barriers bars = {at, at + 8, at + 24, at + 40, at + 56};
  int sequence;
  const Span span = find_tile(a.starts, a.sequences, a.tokens, 1, kWide, (int)(gridDim.y - 1 - blockIdx.y), sequence);
  const int first = span.tile * kWide, n = span.length;
  if (first >= n) return;
  const int n_tiles = a.causal ? span.tile + 1 : (n + kWide - 1) / kWide;
  if (threadIdx.x == 0) {
    mbar_init(bars.queries, 1);
    UNROLL for (int i = 0; i < 2; i++) {
      mbar_init(bars.keys + 8 * i, 1), mbar_init(bars.values + 8 * i, 1);
      mbar_init(bars.keys_free + 8 * i, 8), mbar_init(bars.values_free + 8 * i, 8);   // a warp each
    }
    fence_mbar_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    reg_dealloc<24>();
    if (threadIdx.x == 0) {
      copy_tile(queries, &a.q, bars.queries, blockIdx.x * kWide, span.from + first);
      const int column = blockIdx.x / a.group * kWide;
      for (int j = 0; j < n_tiles; j++) {
        const uint32_t stage = j & 1, parity = (j >> 1) & 1;
        mbar_wait(bars.keys_free + 8 * stage, parity ^ 1);
        copy_tile(keys + stage * kWideBytes, &a.k, bars.keys + 8 * stage, column, span.from + j * kWide);
        mbar_wait(bars.values_free + 8 * stage, parity ^ 1);
        copy_tile(values + stage * kWideBytes, &a.v, bars.values + 8 * stage, column, span.from + j * kWide);
      }
    }
  } else {
    reg_alloc<240>();
    const int part = (threadIdx.x >> 7) - 1;
    compute(a, span, bars, s_tiles + 3 * kWideBytes, queries, keys, values, n_tiles, part);
  }
}
