// How a tile of y leaves linear's product on Hopper: rounded in registers, through shared memory, by TMA.
//
// A warp owns 16 rows of the tile. It takes 64 of their columns at a time to shared memory (stmatrix, 128-byte swizzle,
// 2 KiB), where a box of TMA's begins its way to y; two of them are under way while the next is written, and what the last
// ones still do runs under the next tile's products. No warp waits for another. What lies outside of y's own columns and
// rows is not stored, by the map's sizes. A tile of 176 columns ends with a box that holds 16 columns of the one before
// again: the same bytes to the same place.
//
// What is added to the sums comes from device memory in the fragments' own layout, four bytes a lane, of which four lanes
// have 16 and the next fragment's the 16 beside.
#pragma once
#include "linear_product.cuh"
#include "swiglu.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
namespace linear {

constexpr uint32_t STAGED_ROWS = 16, STAGED_BYTES = STAGED_ROWS * 128, STAGED_WARPS = 8;
constexpr uint32_t STAGING_BYTES = STAGED_WARPS * 2 * STAGED_BYTES;   // of a block

// The two places of a warp, used in turn.
struct Staging {
  uint32_t at;
  int turn = 0;
  DEV uint32_t next() {
    if ((threadIdx.x & 31) == 0) bulk_wait_read<1>();  // all but the latest box have been read
    __syncwarp();
    turn ^= 1;
    return at + turn * STAGED_BYTES;
  }
  DEV void store(const TensorMap* map, uint32_t from, int column, int row) const {
    fence_proxy_async();
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
      tma_store_2d(map, from, column, row);
      bulk_commit();
    }
  }
  // Before the block ends.
  DEV void finish() const {
    if ((threadIdx.x & 31) == 0) bulk_wait_read<0>();
  }
};

DEV void read2(float (&to)[2], const bf16* from) {
  const uint32_t pair = *(const uint32_t*)from;
  to[0] = bflo(pair), to[1] = bfhi(pair);
}

// What follows the sums of a warp's 16 rows from `row` and BN columns from `n0`, in the order of finish8. Columns of the
// band come in eights, so that a pair lies inside or outside of it.
template <int BN> DEV void finish_tile(const LinearArgs& a, const LinearBand& band, int row, int n0, float (&d)[BN / 2]) {
  const int lane = threadIdx.x & 31, n = n0 + (lane & 3) * 2;
  const int m[2] = {row + (lane >> 2), row + (lane >> 2) + 8};
  float from[2];
  if (band.bias) {
    UNROLL for (int j = 0; j < BN / 8; j++) {
      if (n + j * 8 >= band.width) continue;
      read2(from, band.bias + n + j * 8);
      UNROLL for (int c = 0; c < 4; c++) d[j * 4 + c] += from[c & 1];
    }
  }
  if (a.z) {
    UNROLL for (int h = 0; h < 2; h++) {
      if (m[h] >= a.m) continue;
      bf16* z = a.z + (int64_t)m[h] * a.stride + band.column + n;
      UNROLL for (int j = 0; j < BN / 8; j++) {
        if (n + j * 8 < band.width) *(uint32_t*)(z + j * 8) = pack_bf16(d[j * 4 + h * 2], d[j * 4 + h * 2 + 1]);
      }
    }
  }
  if (a.activation != NONE) {
    UNROLL for (int i = 0; i < BN / 2; i++) d[i] = activate(a.activation, d[i]);
  }
  if (a.added) {
    UNROLL for (int h = 0; h < 2; h++) {
      if (m[h] >= a.m) continue;
      const bf16* added = a.added + (a.rows ? a.rows[m[h]] : m[h]) * a.stride + band.column + n;
      UNROLL for (int j = 0; j < BN / 8; j++) {
        if (n + j * 8 >= band.width) continue;
        read2(from, added + j * 8);
        d[j * 4 + h * 2] += from[0], d[j * 4 + h * 2 + 1] += from[1];
      }
    }
  }
}

// 64 columns of a warp's 16 rows, as pairs in the fragments' layout, to where the map says.
DEV void store_box(Staging& staging, const TensorMap* map, int row, int column, const uint32_t (&pairs)[16]) {
  const int lane = threadIdx.x & 31, matrix = lane >> 3;
  // of the four matrices of 8 x 8 that a stmatrix takes, the second is below the first and the others beside these two
  const int r = (lane & 7) + (matrix & 1) * 8, chunk = matrix >> 1;
  const uint32_t to = staging.next();
  UNROLL for (int i = 0; i < 4; i++) {
    const uint32_t four[4] = {pairs[i * 4], pairs[i * 4 + 1], pairs[i * 4 + 2], pairs[i * 4 + 3]};
    stmatrix_x4(to + r * 128 + (((i * 2 + chunk) ^ (r & 7)) << 4), four);
  }
  staging.store(map, to, column, row);
}

// A warp's 16 rows from `row` and BN columns from `n0`, rounded, to where the map says.
template <int BN> DEV void store_tile(Staging& staging, const TensorMap* map, int row, int n0, const float (&d)[BN / 2]) {
  UNROLL for (int s = 0; s < (BN + 63) / 64; s++) {
    const int from = s * 64 + 64 <= BN ? s * 64 : BN - 64;
    uint32_t pairs[16];
    UNROLL for (int i = 0; i < 16; i++) pairs[i] = pack_bf16(d[from / 2 + 2 * i], d[from / 2 + 2 * i + 1]);
    store_box(staging, map, row, n0 + from, pairs);
  }
}

// A warp's 16 rows and 128 columns of gate, then as many of up, rounded, to y, and SwiGLU of what was rounded.
DEV void store_gated(Staging& staging, const TensorMap* gate, const TensorMap* up, const TensorMap* gated, int row, int n0,
                     const float (&d)[128]) {
  UNROLL for (int s = 0; s < 2; s++) {
    uint32_t g[16], u[16], y[16];
    UNROLL for (int i = 0; i < 16; i++) {
      const int at = s * 32 + 2 * i;
      g[i] = pack_bf16(d[at], d[at + 1]);
      u[i] = pack_bf16(d[64 + at], d[64 + at + 1]);
      y[i] = pack_bf16(swiglu::product(bflo(g[i]), bflo(u[i])), swiglu::product(bfhi(g[i]), bfhi(u[i])));
    }
    store_box(staging, gate, row, n0 + s * 64, g);
    store_box(staging, up, row, n0 + s * 64, u);
    store_box(staging, gated, row, n0 + s * 64, y);
  }
}

}  // namespace linear
#endif
