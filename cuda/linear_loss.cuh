// What the products that compute a loss's logits read and write, on any architecture.
#pragma once
#include "common/reduce.cuh"
#include "linear_product.cuh"

namespace linear {

constexpr float INFINITE = __builtin_inff();

struct LinearLossArgs {
  LinearArgs product;  // one band of one piece; `wide` takes the logits, or is null
  const int32_t* labels;
  float2* statistics;
  float* label_logits;
};

}  // namespace linear
