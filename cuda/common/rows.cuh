// Pieces of bf16 rows as f32: 8 numbers by one 16-byte access, or single numbers where a width is no multiple of 8.
#pragma once
#include "types.cuh"

template <int N> DEV void load(const bf16* p, float (&v)[N]) {
  static_assert(N == 8 || N == 1, "a 16-byte access, or a single number");
  if constexpr (N == 8) {
    const V4 q = *(const V4*)p;
    const uint32_t u[4] = {q.x, q.y, q.z, q.w};
    UNROLL for (int i = 0; i < 4; i++) v[2 * i] = bflo(u[i]), v[2 * i + 1] = bfhi(u[i]);
  } else {
    v[0] = bf2f(p[0]);
  }
}

template <int N> DEV void store(bf16* p, const float (&v)[N]) {
  static_assert(N == 8 || N == 1, "a 16-byte access, or a single number");
  if constexpr (N == 8) {
    *(V4*)p = V4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
  } else {
    p[0] = f2bf(v[0]);
  }
}
