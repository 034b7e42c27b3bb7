// The arithmetic of mma.sync and wgmma, f32 sums in the order of k. Built twice, for any x86-64 and for AVX2 with FMA left
// out, so that both give the same bits; products() is the one that this machine runs.
#pragma once
#include <cstdint>

namespace emu {
struct MmaLane {
  float* d;             // [m_tiles][n_tiles][4]
  const uint32_t* a;    // [m_tiles][4]
  const uint32_t* b;    // [n_tiles][2]
};
struct Products {
  // The whole warp's m_tiles x n_tiles products.
  void (*mma)(const MmaLane* lanes, int m_tiles, int n_tiles);
  // d [64][n] += a [16][64] transposed x b [16][n].
  void (*wgmma)(float* d, const float* a, const float* b, int n);
};
const Products& products();
constexpr int kMaxTiles = 16;  // of one call of mma_16816_tile, in either direction
}  // namespace emu
