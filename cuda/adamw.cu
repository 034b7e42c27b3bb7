// adamw: one step of the optimiser over one flat buffer, and the bf16 shadow that the products read.
//
// Maths, with g the gradient times the clipping coefficient min(1, max_norm / (norm + 1e-6)):
//   p = p keep;  m += rest1 (g - m);  v = beta2 v + rest2 g g;  p -= rate m / (sqrt(v) / root + eps)
//   keep = 1 - lr decay, rest = 1 - beta, rate = lr / (1 - beta1^t), root = sqrt(1 - beta2^t): the host computes them
// Source of the semantics: torch.optim.AdamW and torch.nn.utils.clip_grad_norm_.
//
// | tensor        | shape | dtype | layout                                            |
// |---------------|-------|-------|---------------------------------------------------|
// | value, first, second | [N] | f32 | updated in place; 16-byte aligned               |
// | gradient      | [N]   | f32   |                                                   |
// | norm          | [1]   | f32   | of all gradients; read where max_norm is 0 or more|
// | shadow        | [N]   | bf16  | value, rounded; absent where nothing reads one    |
//
// Numerics: f32, the clipping coefficient in f64 once. A NaN in the norm gives NaN everywhere.
// Ownership: a thread owns an element, then those a grid further. 28 bytes an element cross device memory, 30 with the
// shadow: each number once. Deterministic: element by element.
#include "common/prim.cuh"

struct AdamWArgs {
  float* value;
  const float* gradient;
  float* first;
  float* second;
  const float* norm;
  bf16* shadow;
  int64_t n;
  double max_norm;  // negative: no clipping
  float keep;
  float rest1;
  float beta2;
  float rest2;
  float rate;
  float root;
  float eps;
  float gradient_scale;
};
LAYOUT(AdamWArgs, value, gradient, first, second, norm, shadow, n, max_norm, keep, rest1, beta2, rest2, rate, root, eps, gradient_scale);

KERNEL(adamw_fwd_f32, 256, 1, const __grid_constant__ AdamWArgs a) {
  float scale = a.gradient_scale;
  if (a.max_norm >= 0.0) {
    const double coefficient = a.max_norm / ((double)*a.norm + 1e-6);
    scale = coefficient > 1.0 ? 1.0f : (float)coefficient;
  }
  for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < a.n; i += (int64_t)gridDim.x * 256) {
    const float g = a.gradient[i] * scale;
    const float m = a.first[i] + a.rest1 * (g - a.first[i]);
    const float v = a.beta2 * a.second[i] + a.rest2 * g * g;
    const float p = a.value[i] * a.keep - a.rate * (m / (sqrtf(v) / a.root + a.eps));
    a.first[i] = m;
    a.second[i] = v;
    a.value[i] = p;
    if (a.shadow) a.shadow[i] = f2bf(p);
  }
}
