// The formula of swiglu.cu, for whoever has a gate and its up in registers.
#pragma once
#include "common/prim.cuh"

namespace swiglu {

// exp(-gate); a NaN passes through both comparisons.
DEV float exp_minus(float gate) {
  float x = -gate;
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.3f ? -87.3f : x;
  return exp_ftz(x);
}

// silu(gate) up.
DEV float product(float gate, float up) { return gate * (1.0f / (1.0f + exp_minus(gate))) * up; }

}  // namespace swiglu
