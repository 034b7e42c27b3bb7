// The gradients of attention over packed sequences with heads 72 to 128 wide, by Hopper's own instructions.
//
// Maths, semantics and tensors as in attention_backward.cu; q, k, v and dy come as attention_sm90.cuh says, the
// statistics by a map of their own, 64 queries a box. W is the kernel's width, 80 or 128; a slot is a tile of 64 queries.
//
//   tensor         shape            dtype  layout
//   sums           [slots, H, 64 W] f32    scratch: what dq has so far, as registers hold it
//   counters       [1 + slots H]    u32    scratch: blocks that have begun; who has added to a tile of sums
//
// Numerics and rounding points as in attention_backward.cu.
//
// attention_bwd_statistics: four lanes have two queries of a head. It also clears the counters.
// attention_bwd: a block has 128 keys of one key head and walks over the tiles of 64 queries that see them, the last
// first, and in each over the query heads of its group, with keys as the rows of s and dp: the left operand of dv's
// product is what the registers hold, and ds goes to shared memory, where dk's and dq's products read it. The copying
// warpgroup runs one tile ahead.
//
//   for each tile of queries, for each head:  s^T = k q^T, dp^T = v dy^T, ds = 2^(s - lse) (dp - delta),
//                                             dv += p^T dy, dk += ds^T q, sums += ds k
//
// 1. Five products. dq of a tile is a sum over blocks, which a fixed order makes deterministic: the blocks of a head add
//    to it in the order of their keys, each waiting for a counter that the one before moves. The first stores, the last
//    rounds what has come together into dq. All begin with the last tile and go through all tiles in the same
//    order, so that a block which is one step behind its forerunner never waits again.
// 2. Which keys a block has is a number that it draws as it begins, so whom it waits for has begun before it, whatever the
//    order in which a GPU starts blocks. The same tile of all heads comes together, so that few of
//    those that begin at once wait for each other. Sequences follow each other, so that the sums under way at once stay in
//    the L2 cache; but under a causal mask, where walks are of unequal length, as many side by side as make 32 heads, so that
//    the longest begin first.
// 3. Three warps of the copying warpgroup send sums, in turn, so that a step has three steps' time for its turn to come, for
//    its sums to arrive and, in the last block, for dq.
// 4. The exponentials run under dp, ds under most of dv, and the rest of dv while the warpgroups meet; dk while dq leaves.
//    All of p as an operand beside p itself and ds would be more registers than there are. The warpgroups meet once a step,
//    since each half of the width of dq has the keys of both; ds is in shared memory twice, so that a second meeting is not
//    needed.
// 5. Registers: 40 for a copying thread, 232 for the others, which at width 128 hold 128 sums of dk and dv and 64 of a step.
// 6. The rows behind a sequence's end belong to another sequence: they are cleared before any product reads them, so that
//    no number of theirs, NaN or not, gets in.
//
// Limits: as attention_sm90.cu's. Shared memory: 196 KiB. Deterministic.
#include "attention_sm90.cuh"

struct AttentionBackwardSm90Args {
  AttentionBackwardArgs gradients;
  float* sums;
  uint32_t* counters;
  TensorMap q;
  TensorMap k;
  TensorMap v;
  TensorMap dy;
  TensorMap statistics;
};
LAYOUT(AttentionBackwardSm90Args, gradients, sums, counters, q, k, v, dy, statistics);

namespace attention {

constexpr uint32_t kWideBytes = kTileBytes<kWide>;
constexpr int kNarrow = 64;                // queries of a step
constexpr uint32_t kNarrowBytes = kTileBytes<kNarrow>;
constexpr uint32_t kWeightBytes = kWide * kNarrow * 2;
// Of a step's queries, two numbers each. A box begins at a multiple of 16 bytes, so at an even query: it has two more.
constexpr uint32_t kStatisticsBytes = (kNarrow + 2) * 2 * 4;
constexpr uint32_t kStatisticsPlace = (kStatisticsBytes + 127) & ~127u;
template <int W> constexpr uint32_t kSumBytes = kNarrow * W * 4;

// Where things are in shared memory: keys, values; twice queries and dy; twice ds; sums of dq; twice statistics.
constexpr uint32_t kQueriesAt = 2 * kWideBytes, kWeightsAt = kQueriesAt + 4 * kNarrowBytes;
constexpr uint32_t kSumsAt = kWeightsAt + 2 * kWeightBytes, kStatisticsAt = kSumsAt + kSumBytes<128>;
constexpr int kEarly = 48;                 // queries whose p is multiplied before ds is there
constexpr int kSenders = 3;                // warps that send sums, a step each in turn

// Barriers of a block: keys and values have come; a step's queries have come, their place is free (two each, 8 bytes
// apart); sums of dq lie ready (one for each warp that sends, in turn), their place is free.
struct Walk {
  uint32_t stays, here, free, sums_here, sums_free;
  DEV explicit Walk(uint64_t* s_barriers) {
    stays = smem_u32(s_barriers), here = stays + 8, free = stays + 24, sums_here = stays + 40, sums_free = stays + 64;
    if (threadIdx.x == 0) {
      mbar_init(stays, 1);
      UNROLL for (int i = 0; i < 2; i++) mbar_init(here + 8 * i, 1), mbar_init(free + 8 * i, 8);   // a warp each
      UNROLL for (int i = 0; i < kSenders; i++) mbar_init(sums_here + 8 * i, 8);
      mbar_init(sums_free, 1);
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
  DEV void wait_sums(int step) const { mbar_wait(sums_here + 8 * (step % kSenders), step / kSenders & 1); }
  DEV void leave(uint32_t barrier) const {
    if ((threadIdx.x & 31) == 0) mbar_arrive(barrier);
  }
};

// What a block has: keys of a head, and the tiles of queries from `begin` to `last` that see them.
struct Work {
  Span span;
  int sequence, key_head, begin, last;
  DEV int steps(const AttentionBackwardArgs& a) const { return (last + 1 - begin) * a.group; }
};

DEV Work find_work(const AttentionBackwardArgs& a, int number) {
  Work w;
  w.key_head = number % (int)gridDim.x;
  const int window = a.causal ? max(1, 32 / (int)gridDim.x) : 1;
  w.span = find_ranked_tile(a.starts, a.sequences, a.tokens, window, number / (int)gridDim.x, w.sequence);
  // under a causal mask the first query that sees a key of this tile is the first of them
  w.begin = a.causal ? w.span.tile * (kWide / kNarrow) : 0;
  w.last = (w.span.length + kNarrow - 1) / kNarrow - 1;
  return w;
}

// A step of a walk, the same for all roles: tile i of the queries, of this query head.
struct Step { int i, head; };
DEV Step step_of(const Work& work, const AttentionBackwardArgs& a, int number) {
  return {work.last - number / a.group, work.key_head * a.group + number % a.group};
}

DEV void copy_steps(const AttentionBackwardSm90Args& args, const Work& work, const Walk& walk, uint32_t tiles) {
  const AttentionBackwardArgs& a = args.gradients;
  const int first = work.span.from + work.span.tile * kWide;
  mbar_arrive_expect_tx(walk.stays, 2 * kWideBytes);
  copy_rows<kWide>(tiles, &args.k, walk.stays, work.key_head, first);
  copy_rows<kWide>(tiles + kWideBytes, &args.v, walk.stays, work.key_head, first);
  for (int number = 0; number < work.steps(a); number++) {
    const Step step = step_of(work, a, number);
    const uint32_t place = number & 1, queries = tiles + kQueriesAt + place * 2 * kNarrowBytes;
    const uint32_t here = walk.expect(number, 2 * kNarrowBytes + kStatisticsBytes);
    const int from = work.span.from + step.i * kNarrow;
    copy_rows<kNarrow>(queries, &args.q, here, step.head, from);
    copy_rows<kNarrow>(queries + kNarrowBytes, &args.dy, here, step.head, from);
    tma_load_2d(tiles + kStatisticsAt + place * kStatisticsPlace, &args.statistics, here, (from & ~1) * 2, step.head);
  }
}

// dq of a step's queries, once all blocks have added to it, by a warp. Sums lie as registers held them: of each 8 columns
// four for every thread of a warpgroup, two columns of a row and of the row 8 below.
template <int W> DEV void round_dq(const AttentionBackwardArgs& a, const Work& work, const Step& step, const float4* sums) {
  constexpr int kBatch = W == 80 ? 2 : 4;  // of 8 columns; so many loads are under way at once
  const int lane = threadIdx.x & 31, stride = a.heads * a.width, first = step.i * kNarrow + (lane >> 2);
  bf16* dq = a.dq + (int64_t)(work.span.from + first) * stride + step.head * a.width + (lane & 3) * 2;
  UNROLL1 for (int c = 0; c < kNarrow / 16 * (W / 8 / kBatch); c++) {
    const int row = (c & 3) * 16, from = (c >> 2) * kBatch;
    float4 v[kBatch];
    UNROLL for (int j = 0; j < kBatch; j++) v[j] = sums[(from + j) * 128 + (c & 3) * 32 + lane];
    UNROLL for (int h = 0; h < 2; h++) {
      if (first + row + h * 8 >= work.span.length) continue;
      uint32_t* pairs = (uint32_t*)(dq + (row + h * 8) * stride + from * 8);
      UNROLL for (int j = 0; j < kBatch; j++) {
        if ((from + j) * 8 >= a.width) continue;
        float low = (h ? v[j].z : v[j].x) * a.scale, high = (h ? v[j].w : v[j].y) * a.scale;
        if (a.add_dq) low += bflo(pairs[j * 4]), high += bfhi(pairs[j * 4]);
        pairs[j * 4] = pack_bf16(low, high);
      }
    }
  }
}

// By one of the warps that send, of every third step.
template <int W>
DEV void send_sums(const AttentionBackwardSm90Args& args, const Work& work, const Walk& walk, uint32_t sums_place) {
  const AttentionBackwardArgs& a = args.gradients;
  const int tile = work.span.tile;
  for (int number = (int)(threadIdx.x >> 5) - 1; number < work.steps(a); number += kSenders) {
    const Step step = step_of(work, a, number);
    // the blocks that add to dq of this tile of queries
    const int owners = a.causal ? step.i / (kWide / kNarrow) + 1 : (work.span.length + kWide - 1) / kWide;
    const int slot = (work.span.from / kNarrow + work.sequence + step.i) * a.heads + step.head;
    float* sums = args.sums + (int64_t)slot * (kNarrow * W);
    uint32_t* counter = args.counters + 1 + slot;
    if ((threadIdx.x & 31) == 0) {
      if (tile > 0) wait_counter(counter, (uint32_t)tile);
      walk.wait_sums(number);
      if (tile > 0) {
        fence_proxy_async_global();
        bulk_add(sums, sums_place, kSumBytes<W>);
      } else {
        bulk_store(sums, sums_place, kSumBytes<W>);
      }
      bulk_commit();
      bulk_wait_read<0>();                 // on sm_90 it takes as long as the next: see bulk_wait_read
      mbar_arrive(walk.sums_free);
      bulk_wait<0>();
      if (tile < owners - 1) arrive_counter(counter, (uint32_t)owners);
    }
    __syncwarp();
    if (tile == owners - 1) round_dq<W>(a, work, step, (const float4*)sums);
  }
}

DEV void wgmma_dq(float (&d)[32], uint64_t a, uint64_t b, int scale_d) { wgmma_m64n64k16<1, 1>(d, a, b, scale_d); }
DEV void wgmma_dq(float (&d)[8], uint64_t a, uint64_t b, int scale_d) { wgmma_m64n16k16<1, 1>(d, a, b, scale_d); }

DEV void wgmma_dk(float (&d)[40], uint64_t a, uint64_t b) { wgmma_m64n80k16<0, 1>(d, a, b, 1); }
DEV void wgmma_dk(float (&d)[64], uint64_t a, uint64_t b) { wgmma_m64n128k16<0, 1>(d, a, b, 1); }

// A warpgroup's 64 keys of ds^T in shared memory, a row of 64 queries for each, swizzled by 128 bytes.
DEV void leave_weights(uint32_t to, const Weights<kNarrow>& ds) {
  const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5 & 3) * 16 + (lane & 15);
  UNROLL for (int kk = 0; kk < kNarrow / 16; kk++) {
    stmatrix_x4(to + row * 128 + (((kk * 2 + (lane >> 4)) ^ (row & 7)) << 4), ds.v[kk]);
  }
}

// dk and dv of keys 64 `part` to 64 `part` + 63 of the block; of each step's dq the COLUMNS columns from 64 `part` on.
template <int W, int COLUMNS>
DEV void compute_gradients(const AttentionBackwardArgs& a, const Work& work, const Walk& walk, uint8_t* s_tiles, int part) {
  const int lane = threadIdx.x & 31, n = work.span.length, first = work.span.tile * kWide + part * 64;
  const int row = first + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);   // and row + 8
  const uint32_t tiles = smem_u32(s_tiles), keys = tiles + part * 64 * 128;
  float4* s_sums = (float4*)(s_tiles + kSumsAt) + part * 8 * 128 + (threadIdx.x & 127);
  float dk[W / 2], dv[W / 2];
  UNROLL for (int i = 0; i < W / 2; i++) dk[i] = 0.f, dv[i] = 0.f;

  mbar_wait(walk.stays, 0);
  const int n_keys = n - work.span.tile * kWide;
  if (n_keys < kWide) {
    clear_rows<kWide>(s_tiles, n_keys);
    clear_rows<kWide>(s_tiles + kWideBytes, n_keys);
    fence_proxy_async();
    bar_sync<1>(256);
  }
  for (int number = 0; number < work.steps(a); number++) {
    const int place = number & 1, i = step_of(work, a, number).i, end = n - i * kNarrow;
    uint8_t* s_queries = s_tiles + kQueriesAt + place * 2 * kNarrowBytes;
    float* s_statistics = (float*)(s_tiles + kStatisticsAt + place * kStatisticsPlace) + (work.span.from & 1) * 2;
    const uint32_t queries = smem_u32(s_queries), weights = tiles + kWeightsAt + place * kWeightBytes;
    walk.wait_here(number);
    if (end < kNarrow) {
      clear_rows<kNarrow>(s_queries, end);
      clear_rows<kNarrow>(s_queries + kNarrowBytes, end);
      const int at = end * 2 + (int)threadIdx.x - 128;
      if (at < kNarrow * 2) s_statistics[at] = 0.f;
      fence_proxy_async();
      bar_sync<1>(256);
    }
    float p[kNarrow / 2], ds[kNarrow / 2], dq[COLUMNS / 2];
    wgmma_fence();
    multiply_rows<W, kWide, kNarrow>(p, keys, queries);
    wgmma_commit();
    wgmma_fence();
    multiply_rows<W, kWide, kNarrow>(ds, keys + kWideBytes, queries + kNarrowBytes);
    wgmma_commit();
    wgmma_wait<1>();
    const bool edge = (a.causal && i * kNarrow < first + 64) || end < kNarrow || n - first < 64;
    UNROLL for (int c = 0; c < kNarrow / 8; c++) {
      const float* lses = s_statistics + (c * 8 + (lane & 3) * 2) * 2;
      UNROLL for (int e = c * 4; e < c * 4 + 4; e++) p[e] = ex2(fmaf(p[e], a.scale_log2, -lses[(e & 1) * 2]));
    }
    if (edge) {                            // of each key, the queries from `low` to `end` see it
      UNROLL for (int h = 0; h < 2; h++) {
        const int key = row + h * 8, low = key >= n ? kNarrow : a.causal ? key - i * kNarrow : 0;
        UNROLL for (int c = 0; c < kNarrow / 4; c++) {
          const int query = (c >> 1) * 8 + (lane & 3) * 2 + (c & 1);
          if (query < low || query >= end) p[(c >> 1) * 4 + h * 2 + (c & 1)] = 0.f;
        }
      }
    }
    const Weights<kEarly> p_early(p);
    wgmma_fence();
    add_weighted<W, kNarrow>(dv, p_early, queries + kNarrowBytes);
    wgmma_commit();
    wgmma_wait<1>();
    UNROLL for (int c = 0; c < kNarrow / 8; c++) {
      const float* deltas = s_statistics + (c * 8 + (lane & 3) * 2) * 2 + 1;
      UNROLL for (int e = c * 4; e < c * 4 + 4; e++) ds[e] = p[e] * (ds[e] - deltas[(e & 1) * 2]);
    }
    leave_weights(weights + part * 64 * 128, Weights<kNarrow>(ds));
    const Weights<kNarrow - kEarly> p_late(p, kEarly);
    wgmma_fence();
    add_weighted<W, kNarrow>(dv, p_late, queries + kNarrowBytes, kEarly);   // of one group with dq
    fence_proxy_async();
    bar_sync<1>(256);
    wgmma_fence();
    const uint64_t ds_across = wgmma_desc_sw128(weights, kHalfBytes<kWide>, 1024);
    const uint64_t keys_across = wgmma_desc_sw128(tiles + part * kHalfBytes<kWide>, kHalfBytes<kWide>, 1024);
    UNROLL for (int kk = 0; kk < kWide / 16; kk++) {
      wgmma_dq(dq, wgmma_desc_along(ds_across, kk * 2048), wgmma_desc_along(keys_across, kk * 2048), kk > 0);
    }
    wgmma_commit();
    wgmma_fence();
    const uint64_t ds_along = wgmma_desc_sw128(weights + part * 64 * 128, kAlongK, 1024);
    const uint64_t queries_across = wgmma_desc_sw128(queries, kHalfBytes<kNarrow>, 1024);
    UNROLL for (int kk = 0; kk < kNarrow / 16; kk++) {
      wgmma_dk(dk, wgmma_desc_along(ds_along, kk * 32), wgmma_desc_along(queries_across, kk * 2048));
    }
    wgmma_commit();
    if (number > 0) mbar_wait(walk.sums_free, place ^ 1);
    wgmma_wait<1>();
    UNROLL for (int j = 0; j < COLUMNS / 8; j++) {
      s_sums[j * 128] = make_float4(dq[j * 4], dq[j * 4 + 1], dq[j * 4 + 2], dq[j * 4 + 3]);
    }
    fence_proxy_async();                   // the statistics were read too, before TMA writes there again
    __syncwarp();
    walk.leave(walk.sums_here + 8 * (number % kSenders));
    wgmma_wait<0>();
    walk.leave(walk.free + 8 * place);
  }
  UNROLL for (int i = 0; i < W / 2; i++) dk[i] *= a.scale;
  const int64_t k_at = (work.span.from + first) * a.k_stride + work.key_head * a.width;
  const int64_t v_at = (work.span.from + first) * a.v_stride + a.v_column + work.key_head * a.width;
  store_sums<W>(dk, a.dk + k_at, a.k_stride, n - first, a.width, a.add_dk);
  store_sums<W>(dv, a.dv + v_at, a.v_stride, n - first, a.width, a.add_dv);
  if (a.add_dv) return;
  clear_outside(a.dv + (work.span.from + first) * a.v_stride, min(64, n - first), a.v_stride, a.v_column, a.width,
                work.key_head, a.heads / a.group);
}

template <int W> DEV void backward(const AttentionBackwardSm90Args& args) {
  const AttentionBackwardArgs& a = args.gradients;
  uint8_t* s_tiles = swizzled_memory();
  SHARED(uint64_t, s_barriers, [9]);
  SHARED(uint32_t, s_number, [1]);
  SHARED(Work, s_work, [1]);
  if (threadIdx.x == 0) s_number[0] = atomicAdd(args.counters, 1u);
  if (threadIdx.x < 32) {
    __syncwarp();
    const Work found = find_work(a, (int)s_number[0]);
    if (threadIdx.x == 0) s_work[0] = found;
  }
  __syncthreads();
  const Work& work = s_work[0];
  if (work.span.tile * kWide >= work.span.length) return;
  const Walk walk(s_barriers);
  if (threadIdx.x < 128) {
    reg_dealloc<40>();
    if (threadIdx.x == 0) copy_steps(args, work, walk, smem_u32(s_tiles));
    if (threadIdx.x >= 32) send_sums<W>(args, work, walk, smem_u32(s_tiles + kSumsAt));
  } else {
    reg_alloc<232>();
    if (threadIdx.x < 256 || W == 128) {
      compute_gradients<W, 64>(a, work, walk, s_tiles, (threadIdx.x >> 7) - 1);
    } else {
      compute_gradients<W, 16>(a, work, walk, s_tiles, 1);
    }
  }
}

}  // namespace attention

KERNEL(attention_bwd_statistics_sm90_bf16, 128, 1, const __grid_constant__ AttentionBackwardSm90Args args) {
  const AttentionBackwardArgs& a = args.gradients;
  const int head = blockIdx.x, slot = blockIdx.y;
  if (threadIdx.x == 0) {
    args.counters[1 + (int64_t)slot * a.heads + head] = 0;
    if (head == 0 && slot == 0) args.counters[0] = 0;
  }
  float lse[2], delta[2];
  const int row = slot * 64 + (int)(threadIdx.x >> 5) * 16 + (int)(threadIdx.x & 31) / 4;
  attention::find_statistics<true>(lse, delta, a, head, 0, row, a.tokens);
}
KERNEL(attention_bwd_w80_sm90_bf16, 384, 1, const __grid_constant__ AttentionBackwardSm90Args a) {
  attention::backward<80>(a);
}
KERNEL(attention_bwd_w128_sm90_bf16, 384, 1, const __grid_constant__ AttentionBackwardSm90Args a) {
  attention::backward<128>(a);
}
