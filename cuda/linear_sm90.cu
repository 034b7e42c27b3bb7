// linear on Hopper: the products of linear.cu through TMA and wgmma (linear_sm90.cuh).
//
// Maths, tensors, numerics and rounding: as in that file; the scale of an adapter multiplies the f32 sum of s B^T
// here too, before x W^T is added to it. Where sums of dx drop out they are built 64 columns at a time in registers of
// their own and join the others when these are complete, so pieces with a dropout come last; where x drops out, which
// TMA brings past all threads, the kernels of linear.cu run. What a launch needs besides their arguments is a tensor map
// for each operand: k contiguous in boxes of 64 x 128 (left) or 64 x BN (right), else boxes of 64 x 64, bf16, 128-byte
// swizzle, whose sizes are those of the piece, so that what belongs to a neighbouring segment reads as zero; and one for
// each band of y, in boxes of 64 x 16.
//
// Forward with at most 128 rows: linear_few_sm90.cu. With more, gate and up of an MLP may have their SwiGLU done with them
// (`gated`): a tile then has 128 columns of either, so that a thread has both numbers of a product in its registers. What
// adapters multiply, x A^T, is one product of 8 to 256 columns (`narrow`): a tile has them all, the rows of each A below
// those of the one before in a stage, so that x is read once. Columns past the last are products with what lies there, and
// nobody reads them. k is cut, and the sums of the splits are added by linear_sum.
//
// Limits: operands begin at multiples of 16 bytes, their rows too; no gathered rows (`rows` may name rows of the
// residual and of dx). Deterministic: a block owns a tile (of a split) and sums in one order. Unmeasured: no GPU was at
// hand.
#include "linear_tiles_sm90.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
namespace linear {

struct LinearSm90Args {
  LinearArgs product;
  TensorMap left[PIECES], right[PIECES];
  TensorMap y[BANDS];   // where y goes out by TMA
};
LAYOUT(LinearSm90Args, product, left, right, y);

template <int BN, bool DROPOUT = false> struct ProductWork : ProductTiles<BN, false, DROPOUT> {
  static constexpr bool STAGED = true;
  static constexpr int STAGES = 4;
  const LinearSm90Args& a;

  DEV explicit ProductWork(const LinearSm90Args& a) : ProductTiles<BN, false, DROPOUT>{{}, a.product, a.left, a.right}, a(a) {}
  DEV const LinearDropout& dropout(const HopperTile& t, int step) const {
    const LinearBand& band = a.product.bands[t.band];
    const int begin = t.split * a.product.split_depth;
    int piece = first_of(band, t.split);
    for (int n; step >= (n = ceil_div(depth_of(a.product, band, piece, begin) - begin, HOPPER_K)); piece++) step -= n;
    return a.product.pieces[piece].dropout;
  }
  DEV RandomKey key(const LinearDropout& dropout, int m) const { return key_of(a.product, dropout.module, m); }
  DEV void store(const HopperTile& t, int m, int n, float (&v)[8]) const {
    store8<true>(a.product, t.band, t.split, m, n, v);
  }
  DEV bool staged() const { return a.product.y && !a.product.scattered && !a.product.partial; }
  DEV void store_tile(Staging& staging, const HopperTile& t, int row, float (&d)[BN / 2]) const {
    finish_tile<BN>(a.product, a.product.bands[t.band], row, t.n0, d);
    linear::store_tile<BN>(staging, &a.y[t.band], row, t.n0, d);
  }
};

struct LinearNarrowArgs {
  LinearSm90Args product;  // of one band, and one piece
  int32_t widths[BANDS];   // rows of each right operand, in all those of the band
};
LAYOUT(LinearNarrowArgs, product, widths);

// x A^T of adapters that share x: a tile has the columns of all.
template <int BN> struct NarrowWork : ProductWork<BN> {
  static constexpr bool SEVERAL = true;
  const LinearNarrowArgs& narrow;

  DEV explicit NarrowWork(const LinearNarrowArgs& a) : ProductWork<BN>(a.product), narrow(a) {}
  DEV uint32_t right_bytes() const { return narrow.product.product.bands[0].width * HOPPER_K * 2; }
  DEV void load_right(uint32_t to, const TensorMap* first, uint32_t full, int, int k) const {
    const int rows = narrow.product.product.bands[0].width;
    for (int b = 0, row = 0; row < rows; row += narrow.widths[b++]) {
      tma_load_2d(to + row * HOPPER_K * 2, first + b, full, k, 0);
    }
  }
};

struct LinearGatedArgs {
  LinearSm90Args product;
  TensorMap swiglu;  // [m, width of either band], in boxes as those of y
};
LAYOUT(LinearGatedArgs, product, swiglu);

// Gate and up, the two bands of a product, 128 columns of each in a tile: y, and SwiGLU of it, in one go.
struct GatedWork : AnyWork {
  static constexpr bool STAGED = true, SLICED = false, SEVERAL = true;
  static constexpr int STAGES = 4, BN = 256;
  const LinearGatedArgs& a;

  DEV int tiles_m() const { return ceil_div(a.product.product.m, HOPPER_M); }
  DEV int tiles_n() const { return ceil_div(a.product.product.bands[0].width, BN / 2); }
  DEV int tiles() const { return tiles_m() * tiles_n(); }
  DEV HopperTile tile(int index) const {
    int tile_m, tile_n;
    tile_of(index, tiles_m(), tiles_n(), tile_m, tile_n);
    const int steps = ceil_div(a.product.product.pieces[0].depth, HOPPER_K);
    return {index, 0, 0, tile_m * HOPPER_M, tile_n * (BN / 2), steps, 0, 0, 1.f};
  }
  template <class Load> DEV void each_step(const HopperTile& t, Load&& load) const {
    for (int i = 0; i < t.steps; i++) load(&a.product.left[0], &a.product.right[0], i * HOPPER_K);
  }
  DEV uint32_t right_bytes() const { return BN * HOPPER_K * 2; }
  DEV void load_right(uint32_t to, const TensorMap* gate, uint32_t full, int n0, int k) const {
    load_boxes<BN / 2, true>(to, gate, full, n0, k);
    load_boxes<BN / 2, true>(to + BN / 2 * HOPPER_K * 2, gate + 1, full, n0, k);
  }
  DEV void store_tile(Staging& staging, const HopperTile& t, int row, float (&d)[BN / 2]) const {
    store_gated(staging, &a.product.y[0], &a.product.y[1], &a.swiglu, row, t.n0, d);
  }
};

}  // namespace linear

KERNEL(linear_fwd_128x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<128, true, true>(linear::ProductWork<128>{a});
}
KERNEL(linear_fwd_128x176_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<176, true, true>(linear::ProductWork<176>{a});
}
KERNEL(linear_fwd_128x192_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<192, true, true>(linear::ProductWork<192>{a});
}
KERNEL(linear_fwd_128x256_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<256, true, true>(linear::ProductWork<256>{a});
}
KERNEL(linear_fwd_narrow_128x64_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearNarrowArgs a) {
  linear::run_sm90<64, true, true>(linear::NarrowWork<64>{a});
}
KERNEL(linear_fwd_narrow_128x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearNarrowArgs a) {
  linear::run_sm90<128, true, true>(linear::NarrowWork<128>{a});
}
KERNEL(linear_fwd_narrow_128x192_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearNarrowArgs a) {
  linear::run_sm90<192, true, true>(linear::NarrowWork<192>{a});
}
KERNEL(linear_fwd_narrow_128x256_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearNarrowArgs a) {
  linear::run_sm90<256, true, true>(linear::NarrowWork<256>{a});
}
KERNEL(linear_fwd_gated_128x256_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGatedArgs a) {
  linear::run_sm90<256, true, true>(linear::GatedWork{{}, a});
}
KERNEL(linear_bwd_dx_128x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<128, true, false>(linear::ProductWork<128>{a});
}
KERNEL(linear_bwd_dx_128x176_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<176, true, false>(linear::ProductWork<176>{a});
}
KERNEL(linear_bwd_dx_128x192_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<192, true, false>(linear::ProductWork<192>{a});
}
KERNEL(linear_bwd_dx_128x256_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<256, true, false>(linear::ProductWork<256>{a});
}
KERNEL(linear_bwd_dx_dropout_128x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<128, true, false>(linear::ProductWork<128, true>{a});
}
KERNEL(linear_bwd_dx_dropout_128x256_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearSm90Args a) {
  linear::run_sm90<256, true, false>(linear::ProductWork<256, true>{a});
}
#endif
