// y = softmax(scale q k^T + mask) v for packed sequences with heads 72 to 128 wide, by Hopper's own instructions.
//
// Maths, semantics and tensors as in attention.cu; q, k and v come as attention_sm90.cuh says.
//
// Numerics as in attention.cu: p enters the second product as two bf16. Rounding point: y. NaN in q gives NaN in its
// row of y; NaN in a key or a value also reaches earlier rows of its tile.
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
// Limits: E a multiple of 8 from 72 (up to 80 by the kernel of that width) to 128; TMA wants rows and the first column of
// values at multiples of 16 bytes. Shared memory: 161 KiB. Deterministic, as attention.cu is.
#include "attention_sm90.cuh"

struct AttentionSm90Args {
  AttentionArgs attention;
  TensorMap q;
  TensorMap k;
  TensorMap v;
};
LAYOUT(AttentionSm90Args, attention, q, k, v);

namespace attention {

struct Barriers { uint32_t queries, keys, values, keys_free, values_free; };   // the last four: two each, 8 bytes apart

// What one of the two computing warpgroups does, for queries 64 `part` to 64 `part` + 63 of the block.
template <int W>
DEV void compute(const AttentionArgs& a, const Span& span, const Barriers& bars, uint8_t* s_tiles, int n_tiles,
                 int part) {
  constexpr uint32_t kBytes = kTileBytes<kWide>;
  const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31, n = span.length;
  const int first = span.tile * kWide + part * 64, row = first + warp * 16 + (lane >> 2);   // and row + 8
  const uint32_t queries = smem_u32(s_tiles), keys = queries + kBytes, values = keys + 2 * kBytes;
  float y[W / 2];
  UNROLL for (int i = 0; i < W / 2; i++) y[i] = 0.f;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f};
  mbar_wait(bars.queries, 0);
  for (int j = 0; j < n_tiles; j++) {
    const uint32_t stage = j & 1, parity = (j >> 1) & 1;
    float s[64];
    mbar_wait(bars.keys + 8 * stage, parity);
    wgmma_fence();
    multiply_rows<W, kWide, kWide>(s, queries + part * 64 * 128, keys + stage * kBytes);
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
      top = quad_max(top);
      top = fmaxf(m[h], top * a.scale_log2);
      const float base = top == -INFINITY ? 0.f : top, shrink = ex2(m[h] - base);
      m[h] = top, l[h] *= shrink;
      UNROLL for (int i = 0; i < W / 8; i++) y[i * 4 + h * 2] *= shrink, y[i * 4 + h * 2 + 1] *= shrink;
      UNROLL for (int i = 0; i < 16; i++) UNROLL for (int c = i * 4 + h * 2; c < i * 4 + h * 2 + 2; c++) {
        s[c] = ex2(fmaf(s[c], a.scale_log2, -base));
        l[h] += s[c];
      }
    }
    const Weights<kWide> p(s);
    mbar_wait(bars.values + 8 * stage, parity);
    if (last && (j + 1) * kWide > n) {
      clear_rows<kWide>(s_tiles + (3 + stage) * kBytes, n - j * kWide);
      fence_proxy_async();
      bar_sync<1>(256);
    }
    wgmma_fence();
    add_weighted<W, kWide>(y, p, values + stage * kBytes);
    wgmma_commit();
    wgmma_wait<0>();
    if (lane == 0) mbar_arrive(bars.values_free + 8 * stage);
  }
  UNROLL for (int h = 0; h < 2; h++) {
    l[h] = quad_sum(l[h]);
    const float inverse = 1.f / l[h];
    UNROLL for (int i = 0; i < W / 8; i++) y[i * 4 + h * 2] *= inverse, y[i * 4 + h * 2 + 1] *= inverse;
  }
  const int64_t stride = (int64_t)a.heads * a.width, to = (span.from + first) * stride + blockIdx.x * a.width;
  store_sums<W>(y, a.y + to, stride, n - first, a.width, false);
}

template <int W> DEV void forward(const AttentionSm90Args& args) {
  const AttentionArgs& a = args.attention;
  constexpr uint32_t kBytes = kTileBytes<kWide>;
  uint8_t* s_tiles = swizzled_memory();
  SHARED(uint64_t, s_barriers, [9]);
  const uint32_t queries = smem_u32(s_tiles), keys = queries + kBytes, values = keys + 2 * kBytes;
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
      mbar_arrive_expect_tx(bars.queries, kBytes);
      copy_rows<kWide>(queries, &args.q, bars.queries, blockIdx.x, span.from + first);
      const int head = blockIdx.x / a.group;
      for (int j = 0; j < n_tiles; j++) {
        const uint32_t stage = j & 1, parity = (j >> 1) & 1;
        mbar_wait(bars.keys_free + 8 * stage, parity ^ 1);
        mbar_arrive_expect_tx(bars.keys + 8 * stage, kBytes);
        copy_rows<kWide>(keys + stage * kBytes, &args.k, bars.keys + 8 * stage, head, span.from + j * kWide);
        mbar_wait(bars.values_free + 8 * stage, parity ^ 1);
        mbar_arrive_expect_tx(bars.values + 8 * stage, kBytes);
        copy_rows<kWide>(values + stage * kBytes, &args.v, bars.values + 8 * stage, head, span.from + j * kWide);
      }
    }
  } else {
    reg_alloc<240>();
    compute<W>(a, span, bars, s_tiles, n_tiles, (threadIdx.x >> 7) - 1);
  }
}

}  // namespace attention

KERNEL(attention_fwd_w80_sm90_bf16, 384, 1, const __grid_constant__ AttentionSm90Args a) {
  attention::forward<80>(a);
}
KERNEL(attention_fwd_w128_sm90_bf16, 384, 1, const __grid_constant__ AttentionSm90Args a) {
  attention::forward<128>(a);
}
