// swiglu: y = silu(gate) up, and its gradients.
//
// Maths, with s = 1 / (1 + exp(-gate)):
//   y = gate s up
//   dgate (+)= dy up s (1 + gate (1 - s)),  dup (+)= dy gate s
// Source of the semantics: transformers 5.x, Qwen3VLTextMLP (modeling_qwen3_vl.py).
//
// | tensor            | shape   | dtype | layout                          |
// |-------------------|---------|-------|---------------------------------|
// | gate_up, dgate_up | [T, 2F] | bf16  | gate first; 16-byte aligned     |
// | y, dy             | [T, F]  | bf16  |                                 |
//
// Numerics: f32, rounded once where stored. 1 - s is s exp(-gate), where nothing cancels; for gate below -88 exp(-gate)
// is capped, as the host caps it, so that s is tiny and no infinity meets a zero. NaN in gives NaN out. Approximate: exp
// through ex2.approx, 2 units of f32.
//
// Ownership: a thread owns 8 neighbouring columns of a row, or one where F is no multiple of 8. Every number crosses
// device memory once. Element by element, so deterministic; backward reads gate_up again and keeps nothing.
#include "common/rows.cuh"
#include "swiglu.cuh"

namespace swiglu {
struct SwigluArgs {
  const bf16* gate_up;
  bf16* y;
  int64_t t;
  int64_t f;
};
LAYOUT(SwigluArgs, gate_up, y, t, f);

struct SwigluBackwardArgs {
  const bf16* gate_up;
  const bf16* dy;
  bf16* dgate_up;
  int64_t t;
  int64_t f;
  int64_t add;
};
LAYOUT(SwigluBackwardArgs, gate_up, dy, dgate_up, t, f, add);

template <int N> DEV void forward(const SwigluArgs& a) {
  const int64_t pieces = a.f / N, i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= a.t * pieces) return;
  const int64_t row = i / pieces, c = i % pieces * N;
  float gate[N], up[N];
  load<N>(a.gate_up + row * 2 * a.f + c, gate);
  load<N>(a.gate_up + row * 2 * a.f + a.f + c, up);
  UNROLL for (int k = 0; k < N; k++) gate[k] = product(gate[k], up[k]);
  store<N>(a.y + row * a.f + c, gate);
}

template <int N> DEV void backward(const SwigluBackwardArgs& a) {
  const int64_t pieces = a.f / N, i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= a.t * pieces) return;
  const int64_t row = i / pieces, c = i % pieces * N;
  bf16* to_gate = a.dgate_up + row * 2 * a.f + c;
  bf16* to_up = to_gate + a.f;
  float gate[N], up[N], dy[N], dgate[N], dup[N];
  load<N>(a.gate_up + row * 2 * a.f + c, gate);
  load<N>(a.gate_up + row * 2 * a.f + a.f + c, up);
  load<N>(a.dy + row * a.f + c, dy);
  UNROLL for (int k = 0; k < N; k++) dgate[k] = dup[k] = 0.0f;
  if (a.add) {
    load<N>(to_gate, dgate);
    load<N>(to_up, dup);
  }
  UNROLL for (int k = 0; k < N; k++) {
    const float e = exp_minus(gate[k]), s = 1.0f / (1.0f + e);
    dgate[k] += dy[k] * up[k] * s * (1.0f + gate[k] * (s * e));
    dup[k] += dy[k] * gate[k] * s;
  }
  store<N>(to_gate, dgate);
  store<N>(to_up, dup);
}
}  // namespace swiglu

KERNEL(swiglu_fwd_bf16, 256, 1, const __grid_constant__ swiglu::SwigluArgs a) {
  if (a.f % 8 == 0) swiglu::forward<8>(a);
  else swiglu::forward<1>(a);
}

KERNEL(swiglu_bwd_bf16, 256, 1, const __grid_constant__ swiglu::SwigluBackwardArgs a) {
  if (a.f % 8 == 0) swiglu::backward<8>(a);
  else swiglu::backward<1>(a);
}
