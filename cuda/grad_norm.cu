// grad_norm: the length of all gradients together.
//
// Maths: norm = sqrt(sum of g^2). Source of the semantics: torch.nn.utils.clip_grad_norm_.
//
// | tensor    | shape    | dtype | layout                        |
// |-----------|----------|-------|-------------------------------|
// | gradients | [N]      | f32   |                               |
// | partial   | [chunks] | f64   | sums of CHUNK squares         |
// | norm      | [1]      | f32   |                               |
//
// Numerics: squares and sums in f64, rounded to f32 at the end: the square of any f32 is exact in f64 and never overflows.
// NaN in gives NaN out.
// Ownership: a block owns CHUNK neighbouring gradients, which cross device memory once; one block sums the parts.
// The simple algorithm: add all squares. Deviation: two launches in place of an atomic, so that the order is fixed: each
// thread its own elements in order, then a tree over the threads, then the same over the chunks.
// Deterministic: CHUNK is fixed, whatever the device.
#include "common/prim.cuh"

namespace grad_norm {
constexpr int CHUNK = 1 << 14;
constexpr int THREADS = 256;

struct GradNormArgs {
  const float* gradients;
  double* partial;
  float* norm;
  int64_t n;
  int64_t n_chunks;
};
LAYOUT(GradNormArgs, gradients, partial, norm, n, n_chunks);
}  // namespace grad_norm

KERNEL(grad_norm_fwd_f32, 256, 1, const __grid_constant__ grad_norm::GradNormArgs a) {
  const int64_t first = (int64_t)blockIdx.x * grad_norm::CHUNK;
  const int64_t end = first + grad_norm::CHUNK < a.n ? first + grad_norm::CHUNK : a.n;
  double sum = 0.0;
  for (int64_t i = first + threadIdx.x; i < end; i += grad_norm::THREADS) {
    const double g = a.gradients[i];
    sum += g * g;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) a.partial[blockIdx.x] = sum;
}

KERNEL(grad_norm_fwd_sum_f32, 256, 1, const __grid_constant__ grad_norm::GradNormArgs a) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < a.n_chunks; i += grad_norm::THREADS) sum += a.partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *a.norm = (float)sqrt(sum);
}
