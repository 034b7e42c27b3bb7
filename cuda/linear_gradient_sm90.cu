// linear on Hopper, backward: gradients of weights (dW, dA, dB) through TMA and wgmma (linear_sm90.cuh).
//
// Maths, tensors and numerics: as in linear_backward.cu.
//   dw:  dW += dz^T x,  dB += scale dz^T s    each band by itself: tiles of 128 of its rows and BN columns
//   da:  dA += ds^T x                         all bands as one, their rows below each other: tiles of BN rows, 128 columns
//
// Both operands lie with the summed index, the rows of the batch, outermost. They come in boxes of 64 rows and 64 columns,
// bf16, 128-byte swizzle, by one tensor map each, and wgmma transposes both.
//
// What an adapter has to learn is a product of something wide, x or dy, with something narrow, ds or s, and takes as long
// as these two are read. So the wide one is the left operand, whose columns each belong to one tile, and the plan takes a
// BN that has all of the narrow one's columns beside them (src/ops/linear/plan_gradient.rs). Adapters that share x have
// their columns of ds side by side: to `da` they are one operand, and x is read for all of them at once. Its sums are
// transposed on their way through shared memory.
//
// What crosses device memory: x and dy once, ds and s once and from L2 for each tile; the parts of gradients twice, mostly
// within L2. Unmeasured: no GPU was at hand.
//
// Ownership: a block owns tiles of a split of the batch rows, as many as the plan found to read and to add up fastest. The
// parts of all gradients are added in the order of the splits by one launch of linear_bwd_dw_sum_f32: two stages and no
// atomics, so the same bits every time.
//
// Limits: heights and widths of gradients and strides of operands are multiples of 8, all pointers of 16 bytes. Where x
// drops out, which each adapter does in its own way and TMA brings past all threads, and where rows are gathered, the
// kernels of linear_backward.cu run.
#include "linear_gradient.cuh"
#include "linear_sm90.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
namespace linear {

struct LinearGradientSm90Args {
  LinearGradientArgs gradients;
  TensorMap left[BANDS], right[BANDS];  // of each band; `da`: of the first, for all
};
LAYOUT(LinearGradientSm90Args, gradients, left, right);

template <int BN, bool ACROSS_> struct GradientWork : AnyWork {
  static constexpr bool ACROSS = ACROSS_;
  static constexpr int STAGES = 4;
  const LinearGradientSm90Args& a;

  // What is tiled: each band, or all as one.
  DEV int products() const { return ACROSS ? 1 : a.gradients.n_bands; }
  DEV int left_columns(int product) const {
    const LinearGradientBand& band = a.gradients.bands[product];
    return ACROSS ? band.width : band.height;
  }
  DEV int right_columns(int product) const {
    if (!ACROSS) return a.gradients.bands[product].width;
    int n = 0;
    for (int b = 0; b < a.gradients.n_bands; b++) n += a.gradients.bands[b].height;
    return n;
  }
  DEV int tiles_of(int product) const {
    return ceil_div(left_columns(product), HOPPER_M) * ceil_div(right_columns(product), BN);
  }
  DEV int of_split() const {
    int n = 0;
    for (int p = 0; p < products(); p++) n += tiles_of(p);
    return n;
  }
  DEV int tiles() const { return of_split() * a.gradients.splits; }
  DEV HopperTile tile(int index) const {
    HopperTile t;
    t.split = index / of_split();
    index %= of_split();
    t.place = index;
    t.band = 0;
    for (int n; index >= (n = tiles_of(t.band)); t.band++) index -= n;
    int tile_m, tile_n;
    tile_of(index, ceil_div(left_columns(t.band), HOPPER_M), ceil_div(right_columns(t.band), BN), tile_m, tile_n);
    t.m0 = tile_m * HOPPER_M;
    t.n0 = tile_n * BN;
    const int rest = a.gradients.m - t.split * a.gradients.split_rows;
    t.steps = ceil_div(rest < a.gradients.split_rows ? rest : a.gradients.split_rows, HOPPER_K);
    t.scaled = t.dropped = 0;
    t.scale = 1.f;
    return t;
  }
  template <class Load> DEV void each_step(const HopperTile& t, Load&& load) const {
    const int begin = t.split * a.gradients.split_rows;
    for (int i = 0; i < t.steps; i++) load(&a.left[t.band], &a.right[t.band], begin + i * HOPPER_K);
  }
  DEV void store(const HopperTile& t, int m, int n, float (&v)[8]) const {
    if constexpr (ACROSS) {
      int b = 0;
      for (; b < a.gradients.n_bands && n >= a.gradients.bands[b].height; b++) n -= a.gradients.bands[b].height;
      if (b < a.gradients.n_bands) store_gradient8(a.gradients, b, t.split, n, m, v);
    } else {
      store_gradient8(a.gradients, t.band, t.split, m, n, v);
    }
  }
};

}  // namespace linear

KERNEL(linear_bwd_dw_128x64_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGradientSm90Args a) {
  linear::run_sm90<64, false, false>(linear::GradientWork<64, false>{{}, a});
}
KERNEL(linear_bwd_dw_128x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGradientSm90Args a) {
  linear::run_sm90<128, false, false>(linear::GradientWork<128, false>{{}, a});
}
KERNEL(linear_bwd_dw_128x256_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGradientSm90Args a) {
  linear::run_sm90<256, false, false>(linear::GradientWork<256, false>{{}, a});
}
KERNEL(linear_bwd_da_64x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGradientSm90Args a) {
  linear::run_sm90<64, false, false>(linear::GradientWork<64, true>{{}, a});
}
KERNEL(linear_bwd_da_128x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGradientSm90Args a) {
  linear::run_sm90<128, false, false>(linear::GradientWork<128, true>{{}, a});
}
KERNEL(linear_bwd_da_192x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGradientSm90Args a) {
  linear::run_sm90<192, false, false>(linear::GradientWork<192, true>{{}, a});
}
KERNEL(linear_bwd_da_256x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearGradientSm90Args a) {
  linear::run_sm90<256, false, false>(linear::GradientWork<256, true>{{}, a});
}
#endif
