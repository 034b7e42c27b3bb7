// The activations of linear and their derivatives, in f32.
#pragma once
#include "common/prim.cuh"

namespace linear {

constexpr int NONE = 0, GELU_TANH = 1, GELU_ERF = 2;
constexpr float TWICE_SQRT_2_OVER_PI = 1.5957691216057308f, SQRT_HALF = 0.70710678118654752f;
constexpr float DENSITY_AT_0 = 0.39894228040143268f;  // of the normal distribution

// exp(-2 u) of the tanh form, u = sqrt(2/pi) (z + 0.044715 z^3); finite for every finite z, so that it may be multiplied
// by 0. fminf would lose a NaN, which z itself brings back into each result below.
DEV float exp_minus_2u(float z) {
  return exp_ftz(fminf(-TWICE_SQRT_2_OVER_PI * z * (1.f + 0.044715f * z * z), 80.f));
}

// 0.5 z (1 + tanh u) is z / (1 + exp(-2 u)), where nothing cancels.
DEV float activate(int activation, float z) {
  if (activation == GELU_TANH) return z / (1.f + exp_minus_2u(z));
  if (activation == GELU_ERF) return 0.5f * z * (1.f + erff(z * SQRT_HALF));
  return z;
}

// With e = exp(-2 u) and s = 1 / (1 + e): tanh u = 2 s - 1 and 1 - tanh^2 u = 4 s^2 e.
DEV float activation_slope(int activation, float z) {
  if (activation == GELU_TANH) {
    const float square = 0.044715f * z * z, e = exp_minus_2u(z), s = 1.f / (1.f + e);
    return s * (1.f + TWICE_SQRT_2_OVER_PI * z * (s * e) * (1.f + 3.f * square));
  }
  if (activation == GELU_ERF) {
    return 0.5f * (1.f + erff(z * SQRT_HALF)) + z * exp_ftz(-0.5f * z * z) * DENSITY_AT_0;
  }
  return 1.f;
}

}  // namespace linear
