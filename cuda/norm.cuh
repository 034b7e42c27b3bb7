// A row's norm, which a warp computes: of norm.cu, and of kernels that have just completed a row.
#pragma once
#include "common/prim.cuh"
#include "common/rows.cuh"

namespace row_norm {

struct NormArgs {
  const bf16* x;
  const int32_t* rows;
  const bf16* weight;
  const bf16* bias;
  bf16* y;
  int64_t n_rows;
  int32_t d;
  float eps;
};

// Mean (0 for RMS) and reciprocal deviation of one row, the same in every lane.
template <int N> DEV void statistics(const bf16* x, int d, bool layer, float eps, float& mean, float& r) {
  const int lane = threadIdx.x & 31;
  float v[N];
  mean = 0.0f;
  if (layer) {
    float sum = 0.0f;
    for (int c = lane * N; c < d; c += 32 * N) {
      load<N>(x + c, v);
      UNROLL for (int i = 0; i < N; i++) sum += v[i];
    }
    mean = warp_sum(sum) / (float)d;
  }
  float squares = 0.0f;
  for (int c = lane * N; c < d; c += 32 * N) {
    load<N>(x + c, v);
    UNROLL for (int i = 0; i < N; i++) squares += (v[i] - mean) * (v[i] - mean);
  }
  r = 1.0f / sqrtf(warp_sum(squares) / (float)d + eps);
}

// Row `row` of y, by a warp.
template <int N> DEV void normalise(const NormArgs& a, int64_t row) {
  const int lane = threadIdx.x & 31;
  const bf16* x = a.x + (a.rows ? (int64_t)a.rows[row] : row) * a.d;
  bf16* y = a.y + row * a.d;
  const bool layer = a.bias != nullptr;
  float mean, r, v[N], w[N], b[N];
  statistics<N>(x, a.d, layer, a.eps, mean, r);
  for (int c = lane * N; c < a.d; c += 32 * N) {
    load<N>(x + c, v);
    load<N>(a.weight + c, w);
    if (layer) {
      load<N>(a.bias + c, b);
      UNROLL for (int i = 0; i < N; i++) v[i] = (v[i] - mean) * r * w[i] + b[i];
    } else {
      UNROLL for (int i = 0; i < N; i++) v[i] = round_bf16(v[i] * r) * w[i];
    }
    store<N>(y + c, v);
  }
}

}  // namespace row_norm
