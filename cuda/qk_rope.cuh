// A head's norm and rotation, and its way into the cache: of qk_rope.cu, and of kernels that have a head in registers.
#pragma once
#include "common/prim.cuh"
#include "common/rows.cuh"

struct QkRopeArgs {
  const bf16* qkv;
  const float* angles;
  const bf16* q_weight;
  const bf16* k_weight;
  bf16* q;
  bf16* k;
  const int32_t* slots;
  bf16* keys;
  bf16* values;
  int32_t tokens;
  int32_t heads;
  int32_t key_heads;
  int32_t width;
  int32_t lanes;
  int32_t pool_rows;
  float eps;
};

namespace qk_rope {

// The sum over the `lanes` lanes that share a head: a power of two, so that they lie in one warp.
DEV float head_sum(float v, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) v += __shfl_xor_sync(~0u, v, distance);
  return v;
}

template <int V> DEV float add_squares(const float (&x)[V], float sum) {
  UNROLL for (int c = 0; c < V; c++) sum = fmaf(x[c], x[c], sum);
  return sum;
}
// What a head's norm multiplies it by, of the sums of squares that its lanes have.
DEV float head_norm(const QkRopeArgs& a, float sum, int lanes) {
  return 1.f / sqrtf(head_sum(sum, lanes) / (float)a.width + a.eps);
}

// Where a head goes; null where it does not. A slot outside of the pools is never followed.
struct Place {
  bf16 *y, *cached;
  const bf16* weight;
  const float* angles;  // null: a head of values, which is only moved
};
// Heads are counted over queries, keys, values.
DEV Place place_of(const QkRopeArgs& a, int64_t token, int head) {
  const float* angles = a.angles + token * a.width;
  if (head < a.heads) return {a.q + (token * a.heads + head) * a.width, nullptr, a.q_weight, angles};
  const bool is_key = head < a.heads + a.key_heads;
  const int slot = a.keys ? (int)a.slots[token] : -1;
  const bool append = slot >= 0 && slot < a.pool_rows;
  const int64_t row = (int64_t)a.key_heads * a.width;
  const int64_t column = (int64_t)(head - a.heads - (is_key ? 0 : a.key_heads)) * a.width;
  if (is_key) return {a.k + token * row + column, append ? a.keys + slot * row + column : nullptr, a.k_weight, angles};
  return {nullptr, append ? a.values + slot * row + column : nullptr, nullptr, nullptr};
}

// V numbers from i on of the lower half of a head, and those of the upper half that turn with them, to where they go.
template <int V> DEV void finish(const QkRopeArgs& a, const Place& to, int i, float r, float (&low)[V], float (&high)[V]) {
  const int half = a.width / 2;
  if (to.weight) {
    float w_low[V], w_high[V];
    load<V>(to.weight + i, w_low);
    load<V>(to.weight + half + i, w_high);
    UNROLL for (int c = 0; c < V; c++) {
      low[c] = round_bf16(round_bf16(low[c] * r) * w_low[c]);
      high[c] = round_bf16(round_bf16(high[c] * r) * w_high[c]);
    }
  }
  if (to.angles) {
    float cos[V], sin[V];
    load<V>(to.angles + i, cos);
    load<V>(to.angles + half + i, sin);
    UNROLL for (int c = 0; c < V; c++) {
      // each product rounded, so that all kernels have the same bits
      const float turned = __fsub_rn(__fmul_rn(low[c], cos[c]), __fmul_rn(high[c], sin[c]));
      high[c] = __fadd_rn(__fmul_rn(high[c], cos[c]), __fmul_rn(low[c], sin[c]));
      low[c] = turned;
    }
  }
  UNROLL for (int p = 0; p < 2; p++) {
    bf16* y = p ? to.cached : to.y;
    if (!y) continue;
    store<V>(y + i, low);
    store<V>(y + half + i, high);
  }
}

}  // namespace qk_rope
