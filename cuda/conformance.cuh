// The argument of all conformance kernels.
#pragma once
#include "common/prim.cuh"

struct ConformanceArgs {
  TensorMap map;
  const uint8_t* x;
  uint8_t* y;
  int32_t n;
  int32_t option[5];  // numbers that the kernel names
};
LAYOUT(ConformanceArgs, map, x, y, n, option);

namespace conformance {
// The first multiple of 1024 in dynamic shared memory.
DEV uint8_t* aligned_shared(uint8_t* raw) { return raw + ((1024u - (smem_u32(raw) & 1023u)) & 1023u); }
}  // namespace conformance
