// cast: f32 numbers rounded to bf16.
//
// Maths: y = round(x), to nearest, ties to even. x [n] f32, y [n] bf16, both 256-byte aligned where they come from an
// arena; a part of one may begin anywhere at its own alignment. NaN in gives NaN out.
// Ownership: a thread owns 4 numbers, then those a grid further. Every number crosses device memory once.
// Deterministic; element by element. There is no backward: what is cast is a master, whose gradient is f32.
#include "common/prim.cuh"

struct CastArgs {
  const float* x;
  bf16* y;
  int64_t n;
};
LAYOUT(CastArgs, x, y, n);

KERNEL(cast_fwd_bf16, 256, 1, const __grid_constant__ CastArgs a) {
  const int64_t step = (int64_t)gridDim.x * 256 * 4;
  for (int64_t i = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 4; i < a.n; i += step) {
    if (i + 4 <= a.n && ((uint64_t)(a.x + i) & 15) == 0 && ((uint64_t)(a.y + i) & 7) == 0) {
      const float4 v = *(const float4*)(a.x + i);
      *(uint2*)(a.y + i) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    } else {
      for (int64_t k = i; k < i + 4 && k < a.n; k++) a.y[k] = f2bf(a.x[k]);
    }
  }
}
