// What the attention kernels of Hopper share: tiles of head rows that TMA brings, and their products by wgmma.
//
// A block has three warpgroups: one copies (a thread of it issues), two compute, 64 rows of the block's 128 each.
// Tensors come through maps of [T, heads, E] with boxes of 64 rows of one head by 64 columns, swizzled by 128 bytes. A
// tile is two halves of 64 columns, one above the other. Columns from E on lie outside of the map and are zero: a head
// narrower than its kernel needs no mask, and the next head's numbers stay out.
#pragma once
#include "attention.cuh"

namespace attention {

constexpr int kWide = 128;                           // rows that a block owns
template <int ROWS> constexpr uint32_t kHalfBytes = ROWS * 128;
template <int ROWS> constexpr uint32_t kTileBytes = 2 * kHalfBytes<ROWS>;

// The dynamic shared memory from where swizzled boxes may begin; launches ask for 1024 bytes more.
DEV uint8_t* swizzled_memory() {
  DYN_SMEM(s_raw);
  return s_raw + (-smem_u32(s_raw) & 1023);
}

// The tile of kWide rows with this number, by a warp. Sequences come in windows of at most 32, and of a window first the
// first tiles of all of its sequences, then the second ones: a lane of the warp has a sequence. A window has slots as a
// sequence of find_tile has; a tile past the end where there are more slots than tiles.
DEV Span find_ranked_tile(const int32_t* starts, int sequences, int tokens, int window, int slot, int& sequence) {
  auto first_slot = [&](int b) { return start_of(starts, b, tokens) / kWide + b; };
  int low = 0, high = (sequences - 1) / window;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first_slot(middle * window) <= slot) low = middle; else high = middle - 1;
  }
  const int lane = threadIdx.x & 31, b = low * window + lane;
  const bool valid = lane < window && b < sequences;
  const int from = valid ? start_of(starts, b, tokens) : 0, n = valid ? start_of(starts, b + 1, tokens) - from : 0;
  const int tiles = (max(n, 0) + kWide - 1) / kWide;
  int rank = slot - first_slot(low * window), tile = 0, last = tokens / kWide;
  while (tile < last) {                    // the largest for which no more than `rank` tiles have a smaller number
    const int middle = (tile + last + 1) / 2;
    if (warp_sum(min(tiles, middle)) <= rank) tile = middle; else last = middle - 1;
  }
  rank -= warp_sum(min(tiles, tile));
  uint32_t long_enough = __ballot_sync(0xffffffffu, tiles > tile);
  if (rank >= __popc(long_enough)) {
    sequence = 0;
    return {0, 0, 0};
  }
  for (; rank > 0; rank--) long_enough &= long_enough - 1;
  const int owner = __ffs((int)long_enough) - 1;
  sequence = low * window + owner;
  return {__shfl_sync(0xffffffffu, from, owner), __shfl_sync(0xffffffffu, n, owner), tile};
}

// Starts the copy of ROWS rows of a head, kTileBytes<ROWS> on the barrier.
template <int ROWS> DEV void copy_rows(uint32_t to, const TensorMap* map, uint32_t barrier, int head, int row) {
  UNROLL for (int half = 0; half < 2; half++) UNROLL for (int i = 0; i < ROWS; i += 64) {
    tma_load_3d(to + half * kHalfBytes<ROWS> + i * 128, map, barrier, half * 64, head, row + i);
  }
}

// Rows of a tile from `first` on become zero, by the 256 threads that compute. fence_proxy_async and a barrier must
// follow.
template <int ROWS> DEV void clear_rows(uint8_t* s_tile, int first) {
  const int pieces = (ROWS - first) * 8;
  for (int i = (int)threadIdx.x - 128; i < 2 * pieces; i += 256) {
    const int half = i / pieces, at = i % pieces;
    *(V4*)(s_tile + half * kHalfBytes<ROWS> + first * 128 + at * 16) = V4{0, 0, 0, 0};
  }
}

DEV void wgmma_rows(float (&d)[32], uint64_t a, uint64_t b, int scale_d) { wgmma_m64n64k16<0, 0>(d, a, b, scale_d); }
DEV void wgmma_rows(float (&d)[64], uint64_t a, uint64_t b, int scale_d) { wgmma_m64n128k16<0, 0>(d, a, b, scale_d); }

// d = the 64 rows at `a`, of a tile of A_ROWS, times the B_ROWS rows of the tile at `b`, over W columns.
template <int W, int A_ROWS, int B_ROWS> DEV void multiply_rows(float (&d)[B_ROWS / 2], uint32_t a, uint32_t b) {
  const uint64_t a_desc = wgmma_desc_sw128(a, kAlongK, 1024), b_desc = wgmma_desc_sw128(b, kAlongK, 1024);
  UNROLL for (int kk = 0; kk < W / 16; kk++) {
    const uint32_t half = kk >> 2, at = (kk & 3) * 32;
    wgmma_rows(d, wgmma_desc_along(a_desc, half * kHalfBytes<A_ROWS> + at),
               wgmma_desc_along(b_desc, half * kHalfBytes<B_ROWS> + at), kk > 0);
  }
}

// Sums of 64 rows by COLUMNS columns, from column `first` on, as the left operand of a product, rounded.
template <int COLUMNS> struct Weights {
  uint32_t v[COLUMNS / 16][4];
  template <int SUMS> DEV explicit Weights(const float (&x)[SUMS], int first = 0) {
    UNROLL for (int kk = 0; kk < COLUMNS / 16; kk++) UNROLL for (int c = 0; c < 4; c++) {
      const int i = first / 2 + kk * 8 + c * 2;
      v[kk][c] = pack_bf16(x[i], x[i + 1]);
    }
  }
};

DEV void wgmma_weights(float (&d)[40], const uint32_t (&a)[4], uint64_t b) { wgmma_m64n80k16_rs<1>(d, a, b, 1); }
DEV void wgmma_weights(float (&d)[64], const uint32_t (&a)[4], uint64_t b) { wgmma_m64n128k16_rs<1>(d, a, b, 1); }

// d += weights times as many rows, from row `first` on, of the tile of ROWS at `b`.
template <int W, int ROWS, int COLUMNS>
DEV void add_weighted(float (&d)[W / 2], const Weights<COLUMNS>& weights, uint32_t b, int first = 0) {
  const uint64_t b_desc = wgmma_desc_sw128(b, kHalfBytes<ROWS>, 1024);
  UNROLL for (int kk = 0; kk < COLUMNS / 16; kk++) {
    wgmma_weights(d, weights.v[kk], wgmma_desc_along(b_desc, (first / 16 + kk) * 2048));
  }
}

// The warpgroup's 64 rows in a tensor, rows below n_valid and columns below width. `add`: to what is there already,
// rounded once.
template <int W>
DEV void store_sums(const float (&d)[W / 2], bf16* y, int64_t stride, int n_valid, int width, bool add) {
  const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
  UNROLL for (int h = 0; h < 2; h++) {
    if (row + h * 8 >= n_valid) continue;
    bf16* to = y + (row + h * 8) * stride + (lane & 3) * 2;
    UNROLL for (int i = 0; i < W / 8; i++) {
      if (i * 8 >= width) continue;
      float low = d[i * 4 + h * 2], high = d[i * 4 + h * 2 + 1];
      uint32_t* pair = (uint32_t*)(to + i * 8);
      if (add) low += bflo(*pair), high += bfhi(*pair);
      *pair = pack_bf16(low, high);
    }
  }
}

}  // namespace attention
