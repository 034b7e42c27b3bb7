// The tiles of a product on Hopper, and the steps of each, as run_sm90 asks for them.
#pragma once
#include "linear_sm90.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
namespace linear {

// With FEW the weight is the left operand, so that BN counts rows of the result.
template <int BN, bool FEW_, bool DROPOUT_ = false> struct ProductTiles : AnyWork {
  static constexpr bool FEW = FEW_, ACROSS = FEW, DROPOUT = DROPOUT_;
  static constexpr int ROWS = FEW ? BN : HOPPER_M, COLUMNS = FEW ? HOPPER_M : BN;  // of the result, in a tile
  const LinearArgs& product;
  const TensorMap *left, *right;  // of each piece

  DEV int tiles_n() const {
    int n = 0;
    for (int b = 0; b < product.n_bands; b++) n += ceil_div(product.bands[b].width, COLUMNS);
    return n;
  }
  DEV int tiles_m() const { return ceil_div(product.m, ROWS); }
  DEV int tiles() const { return tiles_m() * tiles_n() * product.splits; }
  DEV HopperTile tile(int index) const {
    const int of_split = tiles_m() * tiles_n();
    HopperTile t;
    int tile_m, tile_n;
    t.split = index / of_split;
    t.place = index % of_split;
    tile_of(t.place, tiles_m(), tiles_n(), tile_m, tile_n);
    t.band = 0;
    for (int n; tile_n >= (n = ceil_div(product.bands[t.band].width, COLUMNS)); t.band++) tile_n -= n;
    t.m0 = (FEW ? tile_n : tile_m) * HOPPER_M;
    t.n0 = (FEW ? tile_m : tile_n) * BN;
    const LinearBand& band = product.bands[t.band];
    const int begin = t.split * product.split_depth;
    t.steps = t.scaled = t.dropped = 0;
    t.scale = band.scale;
    for (int p = first_of(band, t.split); p < band.end; p++) {
      // the last piece of a band may be shorter than those of others, and have fewer splits
      const int steps = max(ceil_div(depth_of(product, band, p, begin) - begin, HOPPER_K), 0);
      t.steps += steps;
      if (p + 1 == band.first + band.scaled) t.scaled = t.steps;
      if (DROPOUT && product.pieces[p].dropout.from) t.dropped += steps;
    }
    return t;
  }
  template <class Load> DEV void each_step(const HopperTile& t, Load&& load) const {
    const LinearBand& band = product.bands[t.band];
    const int begin = t.split * product.split_depth;
    for (int p = first_of(band, t.split); p < band.end; p++) {
      const int end = depth_of(product, band, p, begin);
      for (int k = begin; k < end; k += HOPPER_K) load(left + p, right + p, k);
    }
  }
};

}  // namespace linear
#endif
