// What the products that compute a loss's logits read and write, on any architecture.
#pragma once
#include "common/reduce.cuh"
#include "linear_product.cuh"

namespace linear {

constexpr float INFINITE = __builtin_inff();

// e^x, which is wanted of differences to a maximum: what is subnormal becomes 0, and no instruction is spent on it.
DEV float weight_of(float x) { return ex2(x * 1.4426950408889634f); }

struct LinearLossArgs {
  LinearArgs product;  // one band of one piece; `wide` takes the logits, or is null
  const int32_t* labels;
  float2* statistics;
  float* label_logits;
};

}  // namespace linear
