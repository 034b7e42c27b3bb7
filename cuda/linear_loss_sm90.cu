// linear_loss on Hopper: the logits of many rows through TMA and wgmma (linear_sm90.cuh), with the statistics of each tile.
//
// Maths, tensors, numerics: as in linear_loss.cu, with tiles of 128 rows and 256 columns; linear_loss_fwd_rows and
// linear_loss_bwd_dlogits go on from there. dx and dW are products of linear_sm90.cu and linear_gradient_sm90.cu.
//
// A thread has 64 logits of a row in registers, as wgmma leaves them, and four neighbouring lanes the 256 of a tile: the
// largest and the sum take two exchanges each, and no logit is read back for them. The logits leave first, 32 columns of
// a warp's 16 rows at a time, by TMA (linear_store_sm90.cuh has the places), so that device memory takes them while the
// statistics are computed. Columns beyond the vocabulary are zero sums: they are left out of the statistics here and of
// the logits by the map.
//
// What crosses device memory: the head once for each eight tiles of rows, and m V f32 where gradients are wanted.
// Unmeasured: no GPU was at hand.
//
// Limits: as linear_sm90.cu's; V is a multiple of 8. Shared memory: 226 KiB. Deterministic.
#include "linear_loss.cuh"
#include "linear_tiles_sm90.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
namespace linear {

struct LinearLossSm90Args {
  LinearLossArgs loss;
  TensorMap left, right;
  TensorMap logits;  // f32, in boxes of 32 x 16; where `wide` is given
};
LAYOUT(LinearLossSm90Args, loss, left, right, logits);

// Two by two: of numbers that are added to the largest's 1 one by one, each would lose its own last digits.
DEV float sum_of(const float (&v)[8]) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }

struct LogitsWork : ProductTiles<256, false> {
  static constexpr bool STAGED = true, SLICED = false;
  static constexpr int STAGES = 4, BN = 256, BOX = 32;
  const LinearLossSm90Args& a;

  DEV explicit LogitsWork(const LinearLossSm90Args& a) : ProductTiles<256, false>{{}, a.loss.product, &a.left, &a.right}, a(a) {}
  DEV void store_tile(Staging& staging, const HopperTile& t, int row, const float (&d)[BN / 2]) const {
    if (a.loss.product.wide) store_logits(staging, row, t.n0, d);
    const int lane = threadIdx.x & 31, n = t.n0 + (lane & 3) * 2, width = product.bands[0].width;
    UNROLL for (int h = 0; h < 2; h++) {
      float most = -INFINITE;
      UNROLL for (int j = 0; j < BN / 8; j++) {
        if (n + j * 8 < width) most = fmaxf(most, fmaxf(d[j * 4 + h * 2], d[j * 4 + h * 2 + 1]));
      }
      most = quad_max(most);
      float sums[8];
      UNROLL for (int i = 0; i < 8; i++) {
        float e[8];
        UNROLL for (int k = 0; k < 8; k++) {
          const int j = i * 4 + k / 2;
          e[k] = n + j * 8 < width ? exp_ftz(d[j * 4 + h * 2 + k % 2] - most) : 0.f;
        }
        sums[i] = sum_of(e);
      }
      const float sum = quad_sum(sum_of(sums));
      const int64_t m = row + h * 8 + (lane >> 2);
      if (m >= product.m) continue;
      if ((lane & 3) == 0) a.loss.statistics[m * tiles_n() + t.n0 / BN] = make_float2(most, sum);
      const int label = a.loss.labels[m] - n;
      if (label < 0 || label >= BN) continue;
      UNROLL for (int j = 0; j < BN / 8; j++) UNROLL for (int c = 0; c < 2; c++) {
        if (label == j * 8 + c) a.loss.label_logits[m] = d[j * 4 + h * 2 + c];
      }
    }
  }
  // A warp's 16 rows from `row` and 256 columns from `n0`.
  DEV void store_logits(Staging& staging, int row, int n0, const float (&d)[BN / 2]) const {
    DYN_SMEM(raw);
    const int lane = threadIdx.x & 31, chunk = (lane & 3) >> 1, within = (lane & 1) * 8;
    UNROLL for (int s = 0; s < BN / BOX; s++) {
      const uint32_t to = staging.next();
      UNROLL for (int j = 0; j < BOX / 8; j++) UNROLL for (int h = 0; h < 2; h++) {
        const int r = h * 8 + (lane >> 2), i = (s * (BOX / 8) + j) * 4 + h * 2;
        float* pair = (float*)(raw + (to - smem_u32(raw)) + r * 128 + (((j * 2 + chunk) ^ (r & 7)) << 4) + within);
        *(float2*)pair = make_float2(d[i], d[i + 1]);
      }
      staging.store(&a.logits, to, n0 + s * BOX, row);
    }
  }
};

}  // namespace linear

KERNEL(linear_loss_fwd_128x256_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearLossSm90Args a) {
  linear::run_sm90<256, true, true>(linear::LogitsWork{a});
}
#endif
