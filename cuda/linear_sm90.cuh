// The matrix product of linear on Hopper: operands by TMA, products by wgmma.
//
// A block has three warpgroups and stays for many tiles of 128 x BN. One thread of the first warpgroup is the producer:
// it fills a ring of stages (64 steps of k of both operands, 128-byte swizzle), one tensor map an operand, and runs
// ahead into the next tile while the others still store. The other two warpgroups each own 64 x BN sums in registers.
// A stage has two barriers: `full`, completed by the bytes that TMA delivers, and `empty`, on which each consumer arrives
// once. A consumer issues the products of a step, waits until those of the step before have finished, and only then gives
// that step's stage back, so the tensor cores never run dry between steps.
//
// Operands lie with k contiguous or with their other index contiguous (wgmma's own transposition), so forward, dx and dW
// read the same memory untransposed. TMA fills what lies outside an operand with zeros: ragged edges need no masks but at
// the store. y goes out by TMA (linear_store_sm90.cuh). Sums that are no y - in f32, for named rows, of one split, of few
// rows, gradients of weights - go through 32 columns of shared memory at a time (16 where BN is no multiple of 32), so that
// 16 bytes of a row move at once.
//
// Narrow products of many rows, as adapters have, have too few tiles for all multiprocessors: k is cut for them
// (src/ops/linear/plan_narrow.rs), and linear_sum of linear.cu adds up what the splits left.
//
// BN is 128, 176, 192 or 256: the plan takes the width whose tiles fill the multiprocessors best
// (src/ops/linear/plan_sm90.rs); of x A^T and of gradients of weights it is 64, 128, 192 or 256. A right operand with k
// contiguous comes in one box of BN rows, or in several that have fewer; else in boxes of 64 columns, of which the last may
// hold more than wgmma's N reads.
//
// Few rows: a product of at most 128 rows reads each weight once and is as fast as that, so there the left operand is
// the weight and the right one x, with BN 16, 32, 64 or 128 for all rows. The ring has more stages, so that 96 KiB or
// more of the weight are under way for each multiprocessor; k is cut where the weight has few tiles
// (src/ops/linear/plan_few.rs); and the tile is transposed on its way through shared memory. What a row sums, and in
// which order, is the same for every BN. linear_few_sm90.cu has what happens then.
//
// Shared memory: 4 (128 + BN) 64 2 bytes of stages (BN rounded up to a multiple of 64), for few rows 8 or, with 128, 6
// of them, and 32 KiB of results on their way out (few rows: 20), in all at most 226 KiB. One block a multiprocessor.
#pragma once
#include "linear_dropout.cuh"
#include "linear_store_sm90.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
namespace linear {

constexpr int HOPPER_M = 128, HOPPER_K = 64;
constexpr int ATOM_BYTES = 64 * HOPPER_K * 2;   // 64 columns of an operand whose other index is contiguous

// What a tile sums: `scaled` of its steps come first and are multiplied by `scale` together.
struct HopperTile {
  int place;  // among all of a split
  int band, split, m0, n0, steps, scaled;
  int dropped;  // the last so many steps are of sums that drop out
  float scale;
};

// A position in the ring of stages. `phase` is the parity of the round.
template <int STAGES> struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  DEV void advance() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <int BN, int TA, int TB> DEV void wgmma(float (&d)[BN / 2], uint64_t a, uint64_t b, int accumulate) {
  if constexpr (BN == 256) {
    wgmma_m64n256k16<TA, TB>(d, a, b, accumulate);
  } else if constexpr (BN == 192) {
    wgmma_m64n192k16<TA, TB>(d, a, b, accumulate);
  } else if constexpr (BN == 176) {
    wgmma_m64n176k16<TA, TB>(d, a, b, accumulate);
  } else if constexpr (BN == 128) {
    wgmma_m64n128k16<TA, TB>(d, a, b, accumulate);
  } else if constexpr (BN == 64) {
    wgmma_m64n64k16<TA, TB>(d, a, b, accumulate);
  } else if constexpr (BN == 32) {
    wgmma_m64n32k16<TA, TB>(d, a, b, accumulate);
  } else {
    static_assert(BN == 16, "a width that has its instruction here");
    wgmma_m64n16k16<TA, TB>(d, a, b, accumulate);
  }
}

// A barrier of one consumer warpgroup.
DEV void consumer_sync(int consumer) {
  if (consumer == 0) {
    bar_sync<1>(128);
  } else {
    bar_sync<2>(128);
  }
}

// Columns of an operand in shared memory, and those of a step that come: whole boxes of 64 where k is not contiguous.
template <int OUTER> constexpr int STORED = (OUTER + 63) / 64 * 64;
template <int OUTER, bool ALONG_K> constexpr int LOADED = ALONG_K ? OUTER : STORED<OUTER>;

// One operand's part of a step, OUTER wide.
template <int OUTER, bool ALONG_K> DEV void load_boxes(uint32_t to, const TensorMap* map, uint32_t full, int outer, int k) {
  if constexpr (ALONG_K) {
    tma_load_2d(to, map, full, k, outer);
  } else {
    UNROLL for (int i = 0; i < STORED<OUTER> / 64; i++) tma_load_2d(to + i * ATOM_BYTES, map, full, outer + i * 64, k);
  }
}

// How sums leave by shared memory: SLICE columns at a time, and floats in a row of them there, some more than it has, so
// that rows do not share banks. With ACROSS a slice's rows are its columns.
template <int BN> constexpr int SLICE = BN % 32 == 0 ? 32 : 16;
template <int BN, bool ACROSS> constexpr int SLICE_STRIDE = ACROSS ? 64 + 4 : SLICE<BN> + 8;
template <int BN, bool ACROSS> constexpr uint32_t SLICE_BYTES = (ACROSS ? SLICE<BN> : 64) * SLICE_STRIDE<BN, ACROSS> * 4;

// A warpgroup's sums of a tile, slice by slice, to what Work::store says.
template <int BN, class Work>
DEV void store_slices(const Work& work, const HopperTile& tile, int consumer, float* slice, const float (&d)[BN / 2]) {
  constexpr int SLICE = linear::SLICE<BN>, STRIDE = SLICE_STRIDE<BN, Work::ACROSS>;
  const int tid = threadIdx.x, lane = tid & 31, warp = (tid >> 5) & 3;
  for (int s = 0; s < BN / SLICE; s++) {
    UNROLL for (int from = 0; from < BN / SLICE; from++) {
      if (from != s) continue;  // registers have no run-time index
      UNROLL for (int j = 0; j < SLICE / 8; j++) UNROLL for (int h = 0; h < 2; h++) {
        const int i = (from * SLICE / 8 + j) * 4 + 2 * h;
        const int row = warp * 16 + h * 8 + (lane >> 2), column = j * 8 + (lane & 3) * 2;
        if constexpr (Work::ACROSS) {
          slice[column * STRIDE + row] = d[i];
          slice[(column + 1) * STRIDE + row] = d[i + 1];
        } else {
          *(float2*)(slice + row * STRIDE + column) = make_float2(d[i], d[i + 1]);
        }
      }
    }
    consumer_sync(consumer);
    constexpr int EIGHTS = (Work::ACROSS ? 64 : SLICE) / 8;  // of a row of the slice
    UNROLL1 for (int c = tid & 127; c < 64 * SLICE / 8; c += 128) {
      const int r = c / EIGHTS, column = c % EIGHTS * 8;
      float v[8];
      read8<true>(v, slice + r * STRIDE + column, 8);
      const int m = tile.m0 + consumer * 64, n = tile.n0 + s * SLICE;
      work.store(tile, m + (Work::ACROSS ? column : r), n + (Work::ACROSS ? r : column), v);
    }
    consumer_sync(consumer);  // all have read the slice before the next is written
  }
}

// What a Work is unless it says otherwise.
struct AnyWork {
  static constexpr bool ACROSS = false, SEVERAL = false, SLICED = true, STAGED = false, ARRIVES = false, DROPOUT = false;
};

// Work has:
//   STAGES of the ring; ACROSS, whether the result lies along m;
//   SEVERAL, whether the right operand, with k contiguous, is several matrices, and if so uint32_t right_bytes() const of a
//   step and void load_right(uint32_t to, const TensorMap* first, uint32_t full, int n0, int k) const;
//   int tiles() const; HopperTile tile(int index) const;
//   void each_step(const HopperTile&, load) const: load(left map, right map, k) for each step in order;
//   SLICED, whether sums may leave slice by slice, and if so void store(const HopperTile&, int m, int n, float (&v)[8]) const:
//   eight sums from (m, n) on, along n or, with ACROSS, along m;
//   ARRIVES, and if so void finish(const HopperTile&, int consumer) const, once a warpgroup has stored all of its sums;
//   STAGED, whether they may leave from registers through the room for TMA's boxes, and if so
//   void store_tile(Staging&, const HopperTile&, int row, float (&d)[BN / 2]) const: a warp's 16 rows; with SLICED as well,
//   bool staged() const, which of the two it is;
//   DROPOUT, whether sums drop out, and if so const LinearDropout& dropout(const HopperTile&, int step) const and
//   RandomKey key(const LinearDropout&, int m) const.
template <int BN, bool LEFT_ALONG_K, bool RIGHT_ALONG_K, class Work> DEV void run_sm90(const Work& work) {
  constexpr int STAGES = Work::STAGES;
  constexpr uint32_t LEFT_BYTES = HOPPER_M * HOPPER_K * 2, STAGE_BYTES = LEFT_BYTES + STORED<BN> * HOPPER_K * 2;
  constexpr uint32_t SLICES_BYTES = SLICE_BYTES<BN, Work::ACROSS>;
  constexpr uint32_t OUT_BYTES = Work::STAGED ? STAGING_BYTES : 2 * SLICES_BYTES;
  static_assert(OUT_BYTES >= 2 * SLICES_BYTES, "room for either way out");
  DYN_SMEM(raw);
  const uint32_t base = (smem_u32(raw) + 1023u) & ~1023u;  // swizzled boxes begin at multiples of 1024
  const uint32_t slices = base + STAGES * STAGE_BYTES, full = slices + OUT_BYTES;
  const uint32_t empty = full + 8 * STAGES;
  const int tid = threadIdx.x, warpgroup = tid >> 7, lane = tid & 31;
  if (tid == 0) {
    UNROLL for (int s = 0; s < STAGES; s++) {
      mbar_init(full + 8 * s, 1);
      mbar_init(empty + 8 * s, 2);
    }
    fence_mbar_init();
  }
  __syncthreads();
  Ring<STAGES> ring;
  if (warpgroup == 0) {
    reg_dealloc<40>();
    if (tid != 0) return;
    uint32_t step_bytes = LEFT_BYTES + LOADED<BN, RIGHT_ALONG_K> * HOPPER_K * 2;
    if constexpr (Work::SEVERAL) step_bytes = LEFT_BYTES + work.right_bytes();
    for (int t = blockIdx.x; t < work.tiles(); t += gridDim.x) {
      const HopperTile tile = work.tile(t);
      work.each_step(tile, [&](const TensorMap* left, const TensorMap* right, int k) {
        const uint32_t to = base + ring.stage * STAGE_BYTES, bar = full + 8 * ring.stage;
        mbar_wait(empty + 8 * ring.stage, ring.phase ^ 1);
        mbar_arrive_expect_tx(bar, step_bytes);
        load_boxes<HOPPER_M, LEFT_ALONG_K>(to, left, bar, tile.m0, k);
        if constexpr (Work::SEVERAL) {
          static_assert(RIGHT_ALONG_K, "forward");
          work.load_right(to + LEFT_BYTES, right, bar, tile.n0, k);
        } else {
          load_boxes<BN, RIGHT_ALONG_K>(to + LEFT_BYTES, right, bar, tile.n0, k);
        }
        ring.advance();
      });
    }
    return;
  }
  reg_alloc<232>();
  const int consumer = warpgroup - 1, warp = (tid >> 5) & 3;
  const bool leads = (tid & 127) == 0;
  float* slice = (float*)(raw + (slices - smem_u32(raw)) + consumer * SLICES_BYTES);
  Staging staging{slices + (consumer * 4 + warp) * 2 * STAGED_BYTES};
  float d[BN / 2];
  for (int t = blockIdx.x; t < work.tiles(); t += gridDim.x) {
    const HopperTile tile = work.tile(t);
    if (tile.split > 0 && tile.steps == 0) continue;  // of a band with fewer splits
    int held = -1;  // the stage that the products in flight read
    int accumulate = 0;
    if constexpr (Work::DROPOUT) {
      // else ptxas sees sums of the tile before, which plain additions wrote, enter the first product, and serialises all
      UNROLL for (int i = 0; i < BN / 2; i++) d[i] = 0.f;
      accumulate = 1;
    }
    auto multiply_steps = [&](int steps) {
      for (int i = 0; i < steps; i++) {
        mbar_wait(full + 8 * ring.stage, ring.phase);
        const uint32_t left = base + ring.stage * STAGE_BYTES + consumer * (LEFT_BYTES / 2);
        const uint32_t right = base + ring.stage * STAGE_BYTES + LEFT_BYTES;
        wgmma_fence();
        UNROLL for (int kk = 0; kk < HOPPER_K / 16; kk++) {
          const uint64_t a = wgmma_desc_sw128(left + kk * (LEFT_ALONG_K ? 32 : 2048), LEFT_ALONG_K ? kAlongK : ATOM_BYTES, 1024);
          const uint64_t b = wgmma_desc_sw128(right + kk * (RIGHT_ALONG_K ? 32 : 2048), RIGHT_ALONG_K ? kAlongK : ATOM_BYTES, 1024);
          wgmma<BN, !LEFT_ALONG_K, !RIGHT_ALONG_K>(d, a, b, accumulate);
          accumulate = 1;
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (held >= 0 && leads) mbar_arrive(empty + 8 * held);
        held = ring.stage;
        ring.advance();
      }
      wgmma_wait<0>();
      if (held >= 0 && leads) mbar_arrive(empty + 8 * held);
      held = -1;
    };
    if (tile.scaled > 0) {
      multiply_steps(tile.scaled);
      UNROLL for (int i = 0; i < BN / 2; i++) d[i] *= tile.scale;
    }
    multiply_steps(tile.steps - tile.scaled - tile.dropped);
    if constexpr (Work::DROPOUT) {
      static_assert(LEFT_ALONG_K && !RIGHT_ALONG_K, "dx");
      for (int i = tile.steps - tile.dropped; i < tile.steps; i++) {
        const LinearDropout& dropout = work.dropout(tile, i);
        const RandomKey key = work.key(dropout, tile.m0 + consumer * 64 + warp * 16 + kept_row(lane));
        mbar_wait(full + 8 * ring.stage, ring.phase);
        const uint32_t left = base + ring.stage * STAGE_BYTES + consumer * (LEFT_BYTES / 2);
        const uint32_t right = base + ring.stage * STAGE_BYTES + LEFT_BYTES;
        UNROLL for (int n = 0; n < BN / 64; n++) {
          float v[32];
          wgmma_fence();
          UNROLL for (int kk = 0; kk < HOPPER_K / 16; kk++) {
            const uint64_t a = wgmma_desc_sw128(left + kk * 32, kAlongK, 1024);
            const uint64_t b = wgmma_desc_sw128(right + n * ATOM_BYTES + kk * 2048, ATOM_BYTES, 1024);
            wgmma_m64n64k16<0, 1>(v, a, b, kk > 0);
          }
          wgmma_commit();
          wgmma_wait<0>();
          const uint32_t kept = kept_sums<8>(key, tile.n0 + n * 64, dropout.from, lane);
          UNROLL for (int j = 0; j < 32; j++) d[n * 32 + j] = fmaf(v[j], kept >> j & 1 ? dropout.kept : 0.f, d[n * 32 + j]);
        }
        if (leads) mbar_arrive(empty + 8 * ring.stage);
        ring.advance();
      }
    }
    const int row = tile.m0 + consumer * 64 + warp * 16;
    if constexpr (Work::STAGED && Work::SLICED) {
      if (work.staged()) {
        work.store_tile(staging, tile, row, d);
      } else {
        store_slices<BN>(work, tile, consumer, slice, d);
      }
    } else if constexpr (Work::STAGED) {
      work.store_tile(staging, tile, row, d);
    } else {
      store_slices<BN>(work, tile, consumer, slice, d);
    }
    if constexpr (Work::ARRIVES) work.finish(tile, consumer);
  }
  if constexpr (Work::STAGED) staging.finish();
}

}  // namespace linear
#endif
