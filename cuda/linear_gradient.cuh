// What the gradients of parameters are told and how their sums are stored: shared by linear_backward.cu and
// linear_gradient_sm90.cu.
#pragma once
#include "linear_product.cuh"

namespace linear {

// Gradients whose parts one launch adds up: dA, dB and dW.
constexpr int GRADIENTS = 3;

// Rows of a gradient that come from one weight.
struct LinearGradientBand {
  const bf16* left;
  const bf16* right;
  float* gradient;
  int64_t right_stride;  // elements
  int64_t partial_at;    // elements
  LinearDropout dropout;  // of right
  int32_t height, width;
  float scale;
  int32_t gathered;
};

struct LinearGradientArgs {
  LinearGradientBand bands[BANDS];
  const int32_t* rows;
  const RandomKey* noise;  // of every row of x; or null
  float* partial;        // null where there is one split
  int64_t left_stride;   // elements
  int64_t partial_size;  // elements of one split
  int32_t m, n_bands, splits, split_rows;
};

// One sum: a part of the gradient where there are several, else added to the gradient. Nothing outside it.
DEV void store_gradient(const LinearGradientArgs& a, int index, int split, int row, int column, float sum) {
  const LinearGradientBand& band = a.bands[index];
  if (row >= band.height || column >= band.width) return;
  const int64_t at = (int64_t)row * band.width + column;
  if (a.partial) {
    a.partial[split * a.partial_size + band.partial_at + at] = sum;
  } else {
    band.gradient[at] += band.scale * sum;
  }
}

// Eight neighbouring sums of a row, likewise, where heights, widths and pointers are what linear_gradient_sm90.cu wants.
DEV void store_gradient8(const LinearGradientArgs& a, int index, int split, int row, int column, float (&v)[8]) {
  const LinearGradientBand& band = a.bands[index];
  if (row >= band.height || column >= band.width) return;
  const int64_t at = (int64_t)row * band.width + column;
  if (a.partial) {
    write8<true>(a.partial + split * a.partial_size + band.partial_at + at, v, 8);
  } else {
    float sum[8];
    read8<true>(sum, band.gradient + at, 8);
    UNROLL for (int i = 0; i < 8; i++) sum[i] += band.scale * v[i];
    write8<true>(band.gradient + at, sum, 8);
  }
}

}  // namespace linear
