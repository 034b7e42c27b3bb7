// patch_embed: y[p] = round(round(pixels[p] W^T + b) + round(position of p)), a product and interpolated table rows.
//
// Maths: position of p = sum over four corners of share * table[corner]; backward dtable[corner] += share * dy[p]. The
// gradients of W and b are those of linear_backward.cu.
// Source of the semantics: src/host/patch_embed.rs, which follows Qwen3VLVisionPatchEmbed and
// Qwen3VLVisionModel.fast_pos_embed_interpolate of transformers 5.x.
//
// | tensor  | shape      | dtype | layout                              |
// |---------|------------|-------|-------------------------------------|
// | pixels  | [P, K]     | bf16  |                                     |
// | weight  | [C, K]     | bf16  | the convolution's kernel, flattened |
// | table   | [n, C]     | bf16  |                                     |
// | corners | [P, 4]     | i32   | rows of the table                   |
// | shares  | [P, 4]     | f32   |                                     |
// | y, dy   | [P, C]     | bf16  |                                     |
// | dtable  | [n, C]     | f32   | added to                            |
//
// Numerics: f32 sums, rounding where the formula says so. NaN in gives NaN out.
// Ownership: as linear.cu. Backward: a block owns a row of the table and goes through all corners in order, so that no
// two threads add to one element: no atomics, the same bits every time. Corners are read once for each row of the table,
// from L2; that is only done where the table is trained.
// Unmeasured: no GPU was at hand.
#include "linear_product.cuh"

namespace linear {

struct PatchEmbedArgs {
  LinearArgs product;  // one band of one piece, y
  const bf16* table;
  const int32_t* corners;
  const float* shares;
};
LAYOUT(PatchEmbedArgs, product, table, corners, shares);

template <class T, bool VECTOR> DEV void patch_embed(const PatchEmbedArgs& a) {
  DYN_SMEM(smem);
  const Place at = place_of<T>(a.product);
  const float* sums = product<T, true, VECTOR>(a.product, at, smem, Undropped{});
  const LinearBand& band = a.product.bands[0];
  for (int c = threadIdx.x; c < T::BM * T::BN / 8; c += T::THREADS) {
    const int r = c / (T::BN / 8), n = at.n0 + c % (T::BN / 8) * 8, valid = band.width - n;
    const int64_t patch = at.m0 + r;
    if (patch >= a.product.m || valid <= 0) continue;
    float v[8], position[8], from[8];
    read8<VECTOR>(from, band.bias + n, valid);
    UNROLL for (int i = 0; i < 8; i++) {
      v[i] = sums[r * T::STRIDE + (n - at.n0) + i] + from[i];
      position[i] = 0.f;
    }
    UNROLL for (int corner = 0; corner < 4; corner++) {
      const float share = a.shares[patch * 4 + corner];
      read8<VECTOR>(from, a.table + (int64_t)a.corners[patch * 4 + corner] * band.width + n, valid);
      UNROLL for (int i = 0; i < 8; i++) position[i] += share * from[i];
    }
    UNROLL for (int i = 0; i < 8; i++) v[i] = bf2f(f2bf(v[i])) + bf2f(f2bf(position[i]));
    write8<VECTOR>(a.product.y + patch * a.product.stride + n, v, valid);
  }
}

}  // namespace linear

KERNEL(patch_embed_fwd_128x128_bf16, 256, 1, const __grid_constant__ linear::PatchEmbedArgs a) {
  linear::patch_embed<linear::Tile128, true>(a);
}
KERNEL(patch_embed_fwd_64x64_bf16, 128, 2, const __grid_constant__ linear::PatchEmbedArgs a) {
  linear::patch_embed<linear::Tile64, true>(a);
}
KERNEL(patch_embed_fwd_any_bf16, 128, 2, const __grid_constant__ linear::PatchEmbedArgs a) {
  linear::patch_embed<linear::Tile64, false>(a);
}

namespace linear {
struct PatchEmbedTableArgs {
  const int32_t* corners;
  const float* shares;
  const bf16* dy;
  float* dtable;
  int32_t n_corners, width;  // four corners for each patch
};
LAYOUT(PatchEmbedTableArgs, corners, shares, dy, dtable, n_corners, width);
}  // namespace linear

// A block owns table row blockIdx.x; its threads look for the row among 128 corners at a time, then all add, each to
// its own columns, in the order of the corners.
KERNEL(patch_embed_bwd_table_bf16, 128, 1, const __grid_constant__ linear::PatchEmbedTableArgs a) {
  SHARED(uint32_t, s_found, [4]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float* row = a.dtable + (int64_t)blockIdx.x * a.width;
  for (int base = 0; base < a.n_corners; base += 128) {
    const int corner = base + (int)threadIdx.x;
    const uint32_t found = __ballot_sync(~0u, corner < a.n_corners && a.corners[corner] == (int)blockIdx.x);
    if (lane == 0) s_found[warp] = found;
    __syncthreads();
    for (int w = 0; w < 4; w++) {
      for (uint32_t rest = s_found[w]; rest; rest &= rest - 1) {
        const int at = base + w * 32 + __ffs(rest) - 1;
        const float share = a.shares[at];
        const bf16* dy = a.dy + (int64_t)(at / 4) * a.width;
        for (int c = threadIdx.x; c < a.width; c += 128) row[c] += share * bf2f(dy[c]);
      }
    }
    __syncthreads();  // all have read what the next round overwrites
  }
}
