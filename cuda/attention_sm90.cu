// y = softmax(scale q k^T + mask) v for packed sequences with heads 72 to 128 wide, by Hopper's own instructions.
//
// Maths, semantics and tensors as in attention.cu; q, k and v come as attention_sm90.cuh says.
//
// Numerics and rounding points as in attention.cu. NaN in q gives NaN in its row of y; NaN in a key or a value also reaches
// earlier rows of its tile.
//
// A block has 128 queries of one head: a warpgroup that copies (one thread of it issues), and two with 64 queries each
// that compute, over keys in tiles of 128. Device memory: as in attention.cu, with half as many walks over k and v.
//
//   copying:    queries;  for each tile: when their place is free, keys, values
//   computing:  s = q k^T and p of the first tile;  for each tile: start s = q k^T of the next, start y += p v of this one;
//               when s is there: m, l, r and p of the next;  when y is there: y *= 2^(m - m')
//
// 1. Keys and values have two places each and barriers of their own. The next tile's scores are computed before this one's
//    values are added, so that a warpgroup's own exponentials run under its second product. The two start their products in
//    turns (FlashAttention-3, arXiv 2407.08608, section 3.1), so that one's exponentials run under the other's products.
// 2. m is a whole number (attention.cuh) and rises seldom: while no row's does, y stays as it is.
// 3. ptxas moves a wait for products up as far as it can, and arithmetic down: one's own exponentials would begin when the
//    second product has ended. So the wait stands behind a branch on all sums, which no warp takes: sums of exponentials are not
//    below 0, but ptxas does not know it. (One that some warps take would leave them at two waits, where PTX wants one.)
//    A test reads the order of the machine's instructions.
// 4. Registers: 24 for a copying thread, 240 for the others.
// 5. The rows behind a sequence's last key belong to another sequence: their values are cleared before the product, so
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
constexpr int kClear = 1, kFirstsTurn = 2, kSecondsTurn = 3;   // named barriers

// What one of the two computing warpgroups does, for queries 64 `part` to 64 `part` + 63 of the block.
template <int W>
DEV void compute(const AttentionArgs& a, const Span& span, const Barriers& bars, uint8_t* s_tiles, int n_tiles,
                 int part) {
  constexpr uint32_t kBytes = kTileBytes<kWide>;
  const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31, n = span.length;
  const int first = span.tile * kWide + part * 64, row = first + warp * 16 + (lane >> 2);   // and row + 8
  const uint32_t queries = smem_u32(s_tiles), keys = queries + kBytes, values = keys + 2 * kBytes;
  float y[W / 2], s[64], shrink[2];
  UNROLL for (int i = 0; i < W / 2; i++) y[i] = 0.f;
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f}, r[2] = {0.f, 0.f};

  auto start_scores = [&](int j) {
    wgmma_fence();
    multiply_rows<W, kWide, kWide>(s, queries + part * 64 * 128, keys + (j & 1) * kBytes);
    wgmma_commit();
  };
  auto wait_for = [&](uint32_t tiles, int j) { mbar_wait(tiles + 8 * (j & 1), j >> 1 & 1); };
  auto leave = [&](uint32_t free, int j) {
    if (lane == 0) mbar_arrive(free + 8 * (j & 1));
  };
  // Products are started between these, of tile j by the first warpgroup and then by the second.
  auto take_turn = [&](int j) {
    if (part == 1) bar_sync<kSecondsTurn>(256);
    else if (j > 0) bar_sync<kFirstsTurn>(256);
  };
  auto pass_turn = [&](int j) {
    if (part == 0) bar_arrive<kSecondsTurn>(256);
    else if (j < n_tiles - 1) bar_arrive<kFirstsTurn>(256);
  };
  // s becomes p of tile j, rounded
  auto weigh = [&](int j) {
    if (j == n_tiles - 1) {                // the diagonal under a causal mask, else the ragged end
      UNROLL for (int i = 0; i < 64; i++) {
        const int key = j * kWide + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
        if (key >= n || (a.causal && key > row + (i >> 1 & 1) * 8)) s[i] = -INFINITY;
      }
    }
    UNROLL for (int h = 0; h < 2; h++) {
      float top = -INFINITY;
      UNROLL for (int i = 0; i < 16; i++) top = fmaxf(top, fmaxf(s[i * 4 + h * 2], s[i * 4 + h * 2 + 1]));
      top = quad_max(top);
      top = raised(m[h], top * a.scale_log2);
      const float base = top == -INFINITY ? 0.f : top;
      shrink[h] = ex2(m[h] - base);
      m[h] = top, l[h] *= shrink[h], r[h] *= shrink[h];
      UNROLL for (int i = h * 2; i < 64; i += 4) {
        s[i] = ex2(fmaf(s[i], a.scale_log2, -base)), s[i + 1] = ex2(fmaf(s[i + 1], a.scale_log2, -base));
        l[h] += s[i] + s[i + 1];
        round_weights(s[i], s[i + 1]);
        r[h] += s[i] + s[i + 1];
      }
    }
  };

  mbar_wait(bars.queries, 0);
  wait_for(bars.keys, 0);
  take_turn(0);
  start_scores(0);
  pass_turn(0);
  wgmma_wait<0>();
  leave(bars.keys_free, 0);
  weigh(0);
  Weights<kWide> p(s);
  for (int j = 0; j + 1 < n_tiles; j++) {
    wait_for(bars.keys, j + 1);
    wait_for(bars.values, j);
    take_turn(j + 1);
    start_scores(j + 1);
    wgmma_fence();
    add_weighted<W, kWide>(y, p, values + (j & 1) * kBytes);
    wgmma_commit();
    pass_turn(j + 1);
    wgmma_wait<1>();
    leave(bars.keys_free, j + 1);
    weigh(j + 1);
    // never, but ptxas has the exponentials before it
    if (__any_sync(0xffffffffu, l[0] + l[1] + r[0] + r[1] < 0.f)) wgmma_wait<0>();
    else {
      wgmma_wait<0>();
      if (__any_sync(0xffffffffu, shrink[0] != 1.f || shrink[1] != 1.f)) {
        UNROLL for (int i = 0; i < W / 2; i++) y[i] *= shrink[i >> 1 & 1];
      }
    }
    leave(bars.values_free, j);
    p = Weights<kWide>(s);
  }
  const int last = n_tiles - 1;
  wait_for(bars.values, last);
  if (n_tiles * kWide > n) {
    clear_rows<kWide>(s_tiles + (3 + (last & 1)) * kBytes, n - last * kWide);
    fence_proxy_async();
    bar_sync<kClear>(256);
  }
  wgmma_fence();
  add_weighted<W, kWide>(y, p, values + (last & 1) * kBytes);
  wgmma_commit();
  wgmma_wait<0>();

  UNROLL for (int h = 0; h < 2; h++) {
    l[h] = quad_sum(l[h]), r[h] = quad_sum(r[h]);
    const int query = row + h * 8;
    if (a.lse && (lane & 3) == 0 && query < n) {
      a.lse[(int64_t)blockIdx.x * a.tokens + span.from + query] = m[h] + log2f(l[h]);
    }
    shrink[h] = 1.f / r[h];
  }
  UNROLL for (int i = 0; i < W / 2; i++) y[i] *= shrink[i >> 1 & 1];
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
  SHARED(Span, s_span, [1]);
  if (threadIdx.x < 32) {
    // under a causal mask the last tiles have the longest walks: those of all sequences begin first
    int sequence;
    const Span found = find_ranked_tile(a.starts, a.sequences, a.tokens, a.causal ? 32 : 1,
                                        (int)(gridDim.y - 1 - blockIdx.y), sequence);
    if (threadIdx.x == 0) s_span[0] = found;
  }
  if (threadIdx.x == 0) {
    mbar_init(bars.queries, 1);
    UNROLL for (int i = 0; i < 2; i++) {
      mbar_init(bars.keys + 8 * i, 1), mbar_init(bars.values + 8 * i, 1);
      mbar_init(bars.keys_free + 8 * i, 8), mbar_init(bars.values_free + 8 * i, 8);   // a warp each
    }
    fence_mbar_init();
  }
  __syncthreads();
  const Span span = s_span[0];
  const int first = span.tile * kWide, n = span.length;
  if (first >= n) return;
  const int n_tiles = a.causal ? span.tile + 1 : (n + kWide - 1) / kWide;
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
