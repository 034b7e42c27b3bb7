// deepstack_add: features of the tower added to the hidden states of their tokens, and the gradient of the features.
//
// Maths: y[rows[u]] = y[rows[u]] + features[u], in place (x has been copied to y where they are apart).
//   dfeatures[u] (+)= dy[rows[u]];  the gradient of x is dy itself
// Source of the semantics: transformers 5.x, Qwen3VLTextModel._deepstack_process.
//
// | tensor              | shape  | dtype | layout                       |
// |---------------------|--------|-------|------------------------------|
// | to                  | [*, D] | bf16  | y forward, dfeatures backward|
// | from                | [*, D] | bf16  | features forward, dy backward|
// | rows                | [U]    | i32   | each token at most once      |
//
// Numerics: f32 sums rounded once. NaN in gives NaN out. Ownership: a thread owns 8 neighbouring columns of a feature row,
// or one where D is no multiple of 8; only the named rows cross device memory. Deterministic: one thread an element.
#include "common/prim.cuh"
#include "common/rows.cuh"

struct DeepstackAddArgs {
  bf16* to;
  const bf16* from;
  const int32_t* rows;
  int64_t u;
  int64_t d;
  int64_t add;
};
LAYOUT(DeepstackAddArgs, to, from, rows, u, d, add);

namespace deepstack {
// GATHER: the row of `from` is looked up; else that of `to`.
template <int N, bool GATHER> DEV void run(const DeepstackAddArgs& a) {
  const int64_t pieces = a.d / N, i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= a.u * pieces) return;
  const int64_t u = i / pieces, c = i % pieces * N, row = a.rows[u];
  bf16* to = a.to + (GATHER ? u : row) * a.d + c;
  float v[N], old[N];
  load<N>(a.from + (GATHER ? row : u) * a.d + c, v);
  if (a.add) {
    load<N>(to, old);
    UNROLL for (int k = 0; k < N; k++) v[k] += old[k];
  }
  store<N>(to, v);
}
}  // namespace deepstack

KERNEL(deepstack_add_fwd_bf16, 256, 1, const __grid_constant__ DeepstackAddArgs a) {
  if (a.d % 8 == 0) deepstack::run<8, false>(a);
  else deepstack::run<1, false>(a);
}

KERNEL(deepstack_add_bwd_bf16, 256, 1, const __grid_constant__ DeepstackAddArgs a) {
  if (a.d % 8 == 0) deepstack::run<8, true>(a);
  else deepstack::run<1, true>(a);
}
