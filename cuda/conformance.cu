// Conformance: one kernel for each primitive of common/prim.cuh, with patterned inputs and raw outputs, so that the GPU's
// answer can be laid beside the emulator's, and the emulator's beside the formulas of the PTX ISA.
#include "common/prim.cuh"

// x and y of one 8 x 8 matrix row per thread, or whatever the kernel says.
struct ConformanceArgs {
  const uint8_t* x;
  uint8_t* y;
  int32_t n;
  int32_t option;
};
LAYOUT(ConformanceArgs, x, y, n, option);

// y[i] = {bf16 pair of x[2 i], x[2 i + 1]}: rounding, ties, infinities, NaN. n pairs.
KERNEL(conformance_pack_bf16, 256, 1, const __grid_constant__ ConformanceArgs a) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= a.n) return;
  const float* x = (const float*)a.x;
  ((uint32_t*)a.y)[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}
