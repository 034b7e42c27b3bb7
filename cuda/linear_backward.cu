// linear, backward: gradients of parameters (dW, dA, dB, dbias), dz of an activation, and rows that were gathered.
//
// Maths, with dz [m, N] the gradient of the sum before the activation and ds of linear.cu:
//   dz = round(act'(z) dy)
//   dW += dz^T x,  dB += scale dz^T s,  dA += ds^T (x o keep),  dbias += sum over rows of dz
//   dresidual[rows[i]] = round(dresidual[rows[i]] + dy[i])
// keep is 1 but behind a dropout: see linear_dropout.cuh.
// Source of the semantics: src/host/linear.rs.
//
// | tensor        | shape               | dtype | layout                                                            |
// |---------------|---------------------|-------|-------------------------------------------------------------------|
// | left (dz, ds) | [m, left_stride]    | bf16  | a band's first column is its pointer                              |
// | right (x, s)  | [m, right_stride]   | bf16  | `rows` (i32 [m]) names the rows of x where `gathered`             |
// | noise         | [rows of x, 2]      | u32   | the key of each row of x, where something drops out               |
// | gradient      | [height, width]     | f32   | of one weight                                                     |
// | partial       | [splits, all bands] | f32   | bands one after another, from `partial_at`                        |
//
// Numerics: bf16 operands, f32 sums; gradients of parameters are f32 and always added to. NaN in gives NaN out.
// Ownership: a block owns a tile of a gradient over rows [split, split + 1) split_rows of the batch. Where there is one
// split it adds to the gradient itself; else it stores its part, and linear_bwd_dw_sum, one launch for dA, dB and dW,
// adds the parts in the order of the splits: two stages and no atomics, so the same bits every time.
// Both operands lie with the summed index (rows of the batch) outermost and are read through transposing ldmatrix.
// Limits: 4 bands. On Hopper linear_gradient_sm90.cu has the products where no row is gathered and nothing drops out.
// Unmeasured: no GPU was at hand.
#include "linear_dropout.cuh"
#include "linear_gradient.cuh"

namespace linear {

LAYOUT(LinearGradientBand, left, right, gradient, right_stride, partial_at, dropout, height, width, scale,
       gathered);
LAYOUT(LinearGradientArgs, bands, rows, noise, partial, left_stride, partial_size, m, n_bands, splits, split_rows);

struct LinearGradientSumArgs {
  LinearGradientArgs gradients[GRADIENTS];  // those that were cut; of the others partial_size is 0
};
LAYOUT(LinearGradientSumArgs, gradients);

// The product ds^T x: elements of its right operand drop out.
template <class T> struct DroppedRight : Undropped {
  const LinearGradientArgs& a;
  const LinearGradientBand& band;
  int n0, k, end;
  DroppedOperand<T, T::BK, T::BN> x;

  DEV DroppedRight(const LinearGradientArgs& a, const LinearGradientBand& band, int n0, int k, int end)
      : a(a), band(band), n0(n0), k(k), end(end) {}
  DEV void arrived(uint8_t* stage) {
    const LinearDropout& d = band.dropout;
    if (d.from) {
      x.begin(d.module, a.noise, a.rows, k, end);
      x.leave_out(stage + T::LEFT_BYTES, d.from, n0, k, end);
    }
    k += T::BK;
  }
};

template <class T, bool VECTOR, bool DROPOUT> DEV void gradient(const LinearGradientArgs& a) {
  DYN_SMEM(smem);
  int tile = blockIdx.x, index = 0;
  for (int tiles; tile >= (tiles = ceil_div(a.bands[index].height, T::BM) * ceil_div(a.bands[index].width, T::BN)); index++) {
    tile -= tiles;
  }
  const LinearGradientBand& band = a.bands[index];
  int tile_m, tile_n;
  tile_of(tile, ceil_div(band.height, T::BM), ceil_div(band.width, T::BN), tile_m, tile_n);
  const int m0 = tile_m * T::BM, n0 = tile_n * T::BN;
  const int begin = blockIdx.y * a.split_rows, after = begin + a.split_rows, end = after < a.m ? after : a.m;
  int k = begin;
  const int steps = ceil_div(end - begin, T::BK);
  auto load = [&](uint8_t* stage) {
    load_operand<T, T::BM, false, VECTOR>(stage, band.left, a.left_stride, nullptr, m0, band.height, k, end);
    load_operand<T, T::BN, false, VECTOR>(stage + T::LEFT_BYTES, band.right, band.right_stride,
                                          band.gathered ? a.rows : nullptr, n0, band.width, k, end);
    k += T::BK;
  };
  const float* sums;
  if constexpr (DROPOUT) {
    sums = multiply<T, false, false>(smem, steps, 0, 1.f, load, DroppedRight<T>(a, band, n0, begin, end));
  } else {
    sums = multiply<T, false, false>(smem, steps, 0, 1.f, load, Undropped{});
  }
  // consecutive threads take consecutive columns: widths here are often odd, and each element is read and written once
  for (int c = threadIdx.x; c < T::BM * T::BN; c += T::THREADS) {
    const int r = c / T::BN, n = c % T::BN;
    store_gradient(a, index, blockIdx.y, m0 + r, n0 + n, sums[r * T::STRIDE + n]);
  }
}

}  // namespace linear

KERNEL(linear_bwd_dw_128x128_bf16, 256, 1, const __grid_constant__ linear::LinearGradientArgs a) {
  linear::gradient<linear::Tile128, true, false>(a);
}
KERNEL(linear_bwd_dw_64x64_bf16, 128, 2, const __grid_constant__ linear::LinearGradientArgs a) {
  linear::gradient<linear::Tile64, true, false>(a);
}
KERNEL(linear_bwd_dw_any_bf16, 128, 2, const __grid_constant__ linear::LinearGradientArgs a) {
  linear::gradient<linear::Tile64, false, false>(a);
}
KERNEL(linear_bwd_dw_dropout_64x64_bf16, 128, 2, const __grid_constant__ linear::LinearGradientArgs a) {
  linear::gradient<linear::Tile64, true, true>(a);
}
KERNEL(linear_bwd_dw_dropout_any_bf16, 128, 2, const __grid_constant__ linear::LinearGradientArgs a) {
  linear::gradient<linear::Tile64, false, true>(a);
}

// The second stage: a thread owns an element of all gradients' bands.
KERNEL(linear_bwd_dw_sum_f32, 256, 1, const __grid_constant__ linear::LinearGradientSumArgs all) {
  int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  int g = 0;
  while (i >= all.gradients[g].partial_size) {
    i -= all.gradients[g].partial_size;
    if (++g == linear::GRADIENTS) return;
  }
  const linear::LinearGradientArgs& a = all.gradients[g];
  int index = a.n_bands - 1;
  while (i < a.bands[index].partial_at) index--;
  float sum = 0.f;
  for (int s = 0; s < a.splits; s++) sum += a.partial[s * a.partial_size + i];
  a.bands[index].gradient[i - a.bands[index].partial_at] += a.bands[index].scale * sum;
}

namespace linear {
struct LinearBiasArgs {
  const bf16* dz;  // the segment's first column
  float* dbias;    // [n]
  int64_t stride;  // elements
  int32_t m, n;
};
LAYOUT(LinearBiasArgs, dz, dbias, stride, m, n);
}  // namespace linear

// dbias: a block owns 32 columns, each of its 8 warps every eighth row; the warps' sums are added in order.
KERNEL(linear_bwd_dbias_bf16, 256, 1, const __grid_constant__ linear::LinearBiasArgs a) {
  SHARED(float, s_sums, [8][32]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = blockIdx.x * 32 + lane;
  float sum = 0.f;
  if (n < a.n) {
    for (int m = warp; m < a.m; m += 8) sum += bf2f(a.dz[(int64_t)m * a.stride + n]);
  }
  s_sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && n < a.n) {
    for (int w = 1; w < 8; w++) sum += s_sums[w][lane];
    a.dbias[n] += sum;
  }
}

namespace linear {
struct LinearActivationArgs {
  const bf16* z;
  const bf16* dy;
  bf16* dz;
  int64_t n;
  int32_t activation;
};
LAYOUT(LinearActivationArgs, z, dy, dz, n, activation);
}  // namespace linear

// dz = act'(z) dy: a thread owns eight elements.
KERNEL(linear_bwd_act_bf16, 256, 1, const __grid_constant__ linear::LinearActivationArgs a) {
  const int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 8;
  if (i >= a.n) return;
  const int valid = a.n - i < 8 ? (int)(a.n - i) : 8;
  float z[8], dy[8];
  if (valid == 8) {
    linear::read8<true>(z, a.z + i, 8);
    linear::read8<true>(dy, a.dy + i, 8);
  } else {
    linear::read8<false>(z, a.z + i, valid);
    linear::read8<false>(dy, a.dy + i, valid);
  }
  UNROLL for (int j = 0; j < 8; j++) dy[j] *= linear::activation_slope(a.activation, z[j]);
  if (valid == 8) {
    linear::write8<true>(a.dz + i, dy, 8);
  } else {
    linear::write8<false>(a.dz + i, dy, valid);
  }
}

namespace linear {
struct LinearRowsArgs {
  const bf16* from;      // [m, width]
  const int32_t* rows;   // [m]
  bf16* to;              // [.., width]
  int32_t m, width;
};
LAYOUT(LinearRowsArgs, from, rows, to, m, width);
}  // namespace linear

// to[rows[i]] += from[i]: a thread owns an element of `from`; a row is named at most once.
KERNEL(linear_bwd_rows_bf16, 256, 1, const __grid_constant__ linear::LinearRowsArgs a) {
  const int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= (int64_t)a.m * a.width) return;
  bf16* to = a.to + (int64_t)a.rows[i / a.width] * a.width + i % a.width;
  *to = f2bf(bf2f(*to) + bf2f(a.from[i]));
}
