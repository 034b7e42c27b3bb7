// Norm of query and key heads (text), their rotation, and where asked keys and values into the cache.
//
// Maths for one head x: n = x r, r = 1 / sqrt(mean(x^2) + eps), u = n w (without a norm u = x); y_j = u_j cos_j -
// u_{j+E/2} sin_j and y_{j+E/2} = u_{j+E/2} cos_j + u_j sin_j. Backward: du is dy turned back; with g = du w:
// dx = r (g - n mean(g n)), dw = sum of du n. Semantics: apply_rotary_pos_emb and Qwen3VLTextRMSNorm of transformers 5.17,
// modeling_qwen3_vl.py; M-RoPE and the tower's 2-D rotary differ in the table of angles only. Specification:
// src/host/qk_rope.rs.
//
//   tensor         shape             dtype  layout
//   qkv, dqkv      [T, (H + 2 G) E]  bf16   contiguous
//   angles         [T, E]            f32    cos of E / 2 angles, then sin
//   q/k_weight     [E]               bf16   both or neither
//   q, dq; k, dk   [T, H E]; [T, G E]  bf16
//   slots          [T]               i32    row of each token in the pools, all different
//   keys, values   [rows, G E]       bf16   both or neither
//   partial        [2, chunks, E]    f32    scratch; dq/dk_weight [E] f32, added to
//
// Numerics: f32. Rounding points: n, u (both only with a norm), y; dqkv. In backward nothing else is rounded.
//
// A few lanes share a head (8 at E = 128), each with 8, 4 or 1 numbers of either half at a time, whatever divides E / 2;
// the heads of a token are neighbours, so that its angles come from L1. Device memory: everything once; the second look
// at x after the norm's sum hits L1. The gradient of the norms' weights (trained only with all weights) has two kernels
// of its own: sums of 64 tokens, then the sum of those in order.
//
// Limits: E even; trained norms at most 256 wide. Deterministic. A slot outside the pools is not followed.
#include "qk_rope.cuh"

LAYOUT(QkRopeArgs, qkv, angles, q_weight, k_weight, q, k, slots, keys, values, tokens, heads, key_heads, width, lanes,
       pool_rows, eps);

struct QkRopeBackwardArgs {
  const bf16* qkv;
  const float* angles;
  const bf16* q_weight;
  const bf16* k_weight;
  const bf16* dq;
  const bf16* dk;
  bf16* dqkv;
  float* partial;
  float* dq_weight;
  float* dk_weight;
  int32_t tokens;
  int32_t heads;
  int32_t key_heads;
  int32_t width;
  int32_t lanes;
  int32_t add;
  int32_t chunks;
  float eps;
};
LAYOUT(QkRopeBackwardArgs, qkv, angles, q_weight, k_weight, dq, dk, dqkv, partial, dq_weight, dk_weight, tokens, heads,
       key_heads, width, lanes, add, chunks, eps);

namespace qk_rope {

constexpr int kThreads = 256;

// One head of one token: which, and where it begins in qkv. Heads are counted over queries, keys, values.
struct Head { int64_t token; int head, lane; bool valid; };
DEV Head find_head(int n_heads, int tokens, int lanes) {
  const int64_t item = ((int64_t)blockIdx.x * kThreads + threadIdx.x) / lanes;
  const int64_t token = item / n_heads;
  return {token, (int)(item - token * n_heads), (int)threadIdx.x % lanes, token < tokens};
}

template <int V> DEV void forward(const QkRopeArgs& a) {
  const int rotated = a.heads + a.key_heads, half = a.width / 2;
  const Head at = find_head(a.keys ? rotated + a.key_heads : rotated, a.tokens, a.lanes);
  const bf16* x = a.qkv + (at.token * (rotated + a.key_heads) + at.head) * a.width;
  float sum = 0.f;
  if (a.q_weight && at.valid && at.head < rotated) {
    for (int i = at.lane * V; i < a.width; i += a.lanes * V) {
      float v[V];
      load<V>(x + i, v);
      sum = add_squares<V>(v, sum);
    }
  }
  const float r = a.q_weight ? head_norm(a, sum, a.lanes) : 1.f;
  if (!at.valid) return;
  const Place to = place_of(a, at.token, at.head);
  for (int i = at.lane * V; i < half; i += a.lanes * V) {
    float low[V], high[V];
    load<V>(x + i, low);
    load<V>(x + half + i, high);
    finish<V>(a, to, i, r, low, high);
  }
}

// dy turned back: the gradient of the head before its rotation.
template <int V> DEV void turn_back(float (&low)[V], float (&high)[V], const bf16* dy, const float* angles, int half, int i) {
  float cos[V], sin[V];
  load<V>(dy + i, low);
  load<V>(dy + half + i, high);
  load<V>(angles + i, cos);
  load<V>(angles + half + i, sin);
  UNROLL for (int c = 0; c < V; c++) {
    const float turned = low[c] * cos[c] + high[c] * sin[c];
    high[c] = high[c] * cos[c] - low[c] * sin[c];
    low[c] = turned;
  }
}

template <int V> DEV void backward(const QkRopeBackwardArgs& a) {
  const int rotated = a.heads + a.key_heads, half = a.width / 2;
  // where dqkv is overwritten, the values' part is cleared
  const Head at = find_head(a.add ? rotated : rotated + a.key_heads, a.tokens, a.lanes);
  const int64_t place = (at.token * (rotated + a.key_heads) + at.head) * a.width;
  const bf16* x = a.qkv + place;
  const bool rotates = at.valid && at.head < rotated, is_key = at.head >= a.heads;
  const int64_t head = is_key ? at.token * a.key_heads + at.head - a.heads : at.token * a.heads + at.head;
  const bf16* dy = (is_key ? a.dk : a.dq) + head * a.width;
  const bf16* weight = is_key ? a.k_weight : a.q_weight;
  const float* angles = a.angles + at.token * a.width;
  // with n = x r and g = dn w: dx = r (g - n mean(g n))
  float r = 1.f, mean = 0.f;
  if (a.q_weight) {
    float squares = 0.f, product = 0.f;
    for (int i = at.lane * V; rotates && i < half; i += a.lanes * V) {
      float low[V], high[V], x_low[V], x_high[V], w_low[V], w_high[V];
      turn_back<V>(low, high, dy, angles, half, i);
      load<V>(x + i, x_low);
      load<V>(x + half + i, x_high);
      load<V>(weight + i, w_low);
      load<V>(weight + half + i, w_high);
      UNROLL for (int c = 0; c < V; c++) {
        squares = fmaf(x_low[c], x_low[c], fmaf(x_high[c], x_high[c], squares));
        product = fmaf(low[c] * w_low[c], x_low[c], fmaf(high[c] * w_high[c], x_high[c], product));
      }
    }
    r = 1.f / sqrtf(head_sum(squares, a.lanes) / (float)a.width + a.eps);
    mean = head_sum(product, a.lanes) * r / (float)a.width;
  }
  if (!at.valid) return;
  for (int i = at.lane * V; i < half; i += a.lanes * V) {
    float low[V], high[V];
    bf16 *to_low = a.dqkv + place + i, *to_high = to_low + half;
    if (rotates) {
      turn_back<V>(low, high, dy, angles, half, i);
    } else {
      UNROLL for (int c = 0; c < V; c++) low[c] = high[c] = 0.f;
    }
    if (rotates && weight) {
      float x_low[V], x_high[V], w_low[V], w_high[V];
      load<V>(x + i, x_low);
      load<V>(x + half + i, x_high);
      load<V>(weight + i, w_low);
      load<V>(weight + half + i, w_high);
      UNROLL for (int c = 0; c < V; c++) {
        low[c] = r * (low[c] * w_low[c] - x_low[c] * r * mean);
        high[c] = r * (high[c] * w_high[c] - x_high[c] * r * mean);
      }
    }
    if (a.add) {
      float before[V];
      load<V>(to_low, before);
      UNROLL for (int c = 0; c < V; c++) low[c] += before[c];
      load<V>(to_high, before);
      UNROLL for (int c = 0; c < V; c++) high[c] += before[c];
    }
    store<V>(to_low, low);
    store<V>(to_high, high);
  }
}

}  // namespace qk_rope

KERNEL(qk_rope_fwd_v8_bf16, 256, 4, const __grid_constant__ QkRopeArgs a) { qk_rope::forward<8>(a); }
KERNEL(qk_rope_fwd_v4_bf16, 256, 4, const __grid_constant__ QkRopeArgs a) { qk_rope::forward<4>(a); }
KERNEL(qk_rope_fwd_v1_bf16, 256, 4, const __grid_constant__ QkRopeArgs a) { qk_rope::forward<1>(a); }
KERNEL(qk_rope_bwd_v8_bf16, 256, 2, const __grid_constant__ QkRopeBackwardArgs a) { qk_rope::backward<8>(a); }
KERNEL(qk_rope_bwd_v4_bf16, 256, 4, const __grid_constant__ QkRopeBackwardArgs a) { qk_rope::backward<4>(a); }
KERNEL(qk_rope_bwd_v1_bf16, 256, 4, const __grid_constant__ QkRopeBackwardArgs a) { qk_rope::backward<1>(a); }

namespace qk_rope {
constexpr int kChunk = 64;       // tokens of a block in the gradient of the norms' weights
constexpr int kMost = 4;         // pairs of a lane: heads up to 256 wide
}

// The gradient of the norms' weights, dw = sum dn n, in two steps of fixed order. Block (c, side) sums the heads of chunk
// c of the tokens, queries on side 0, keys on side 1: a warp takes every eighth head, and the warps add up in order.
KERNEL(qk_rope_bwd_dweight_bf16, 256, 2, const __grid_constant__ QkRopeBackwardArgs a) {
  using namespace qk_rope;
  SHARED(float, s_sums, [kThreads / 32][2 * 32 * kMost]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, side = blockIdx.y, half = a.width / 2;
  const int heads = side ? a.key_heads : a.heads, first = side ? a.heads : 0;
  const int64_t begin = (int64_t)blockIdx.x * kChunk, stride = (int64_t)(a.heads + 2 * a.key_heads) * a.width;
  const int items = min((int64_t)kChunk, a.tokens - begin) * heads;
  float sums[2][kMost] = {};
  for (int item = warp; item < items; item += kThreads / 32) {
    const int64_t token = begin + item / heads;
    const int head = item % heads;
    const bf16* x = a.qkv + token * stride + (first + head) * a.width;
    const bf16* dy = (side ? a.dk : a.dq) + (token * heads + head) * a.width;
    float squares = 0.f;
    for (int i = lane; i < a.width; i += 32) squares = fmaf(bf2f(x[i]), bf2f(x[i]), squares);
    const float r = 1.f / sqrtf(warp_sum(squares) / (float)a.width + a.eps);
    UNROLL for (int c = 0; c < kMost; c++) {
      const int i = lane + c * 32;
      if (i >= half) continue;
      float low[1], high[1];
      turn_back<1>(low, high, dy, a.angles + token * a.width, half, i);
      sums[0][c] = fmaf(low[0], bf2f(x[i]) * r, sums[0][c]);
      sums[1][c] = fmaf(high[0], bf2f(x[half + i]) * r, sums[1][c]);
    }
  }
  UNROLL for (int c = 0; c < kMost; c++) {
    const int i = lane + c * 32;
    if (i < half) s_sums[warp][i] = sums[0][c], s_sums[warp][half + i] = sums[1][c];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < a.width; i += kThreads) {
    float sum = 0.f;
    UNROLL for (int w = 0; w < kThreads / 32; w++) sum += s_sums[w][i];
    a.partial[((int64_t)side * a.chunks + blockIdx.x) * a.width + i] = sum;
  }
}

// Adds the chunks' sums in order to the gradients that are wanted: block 0 the queries', block 1 the keys'.
KERNEL(qk_rope_bwd_dweight_sum_f32, 256, 1, const __grid_constant__ QkRopeBackwardArgs a) {
  float* to = blockIdx.x ? a.dk_weight : a.dq_weight;
  const int i = threadIdx.x;
  if (!to || i >= a.width) return;
  const float* from = a.partial + (int64_t)blockIdx.x * a.chunks * a.width + i;
  float sum = 0.f;
  for (int c = 0; c < a.chunks; c++) sum += from[(int64_t)c * a.width];
  to[i] += sum;
}
