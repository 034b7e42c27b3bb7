// Neighbouring numbers of a row through registers: N of them by one access, 16 or 8 bytes, or one.
#pragma once
#include "types.cuh"

template <int N> DEV void load(const bf16* p, float (&v)[N]) {
  static_assert(N == 8 || N == 4 || N == 1, "16 or 8 bytes, or a single number");
  if constexpr (N == 8) {
    const V4 q = *(const V4*)p;
    const uint32_t u[4] = {q.x, q.y, q.z, q.w};
    UNROLL for (int i = 0; i < 4; i++) v[2 * i] = bflo(u[i]), v[2 * i + 1] = bfhi(u[i]);
  } else if constexpr (N == 4) {
    const uint2 q = *(const uint2*)p;
    v[0] = bflo(q.x), v[1] = bfhi(q.x), v[2] = bflo(q.y), v[3] = bfhi(q.y);
  } else {
    v[0] = bf2f(p[0]);
  }
}

// 16 bytes at a time.
template <int N> DEV void load(const float* p, float (&v)[N]) {
  static_assert(N == 8 || N == 4 || N == 1, "whole accesses of 16 bytes, or a single number");
  if constexpr (N == 1) {
    v[0] = p[0];
  } else {
    UNROLL for (int i = 0; i < N; i += 4) {
      const float4 q = *(const float4*)(p + i);
      v[i] = q.x, v[i + 1] = q.y, v[i + 2] = q.z, v[i + 3] = q.w;
    }
  }
}

template <int N> DEV void store(bf16* p, const float (&v)[N]) {
  static_assert(N == 8 || N == 4 || N == 1, "16 or 8 bytes, or a single number");
  if constexpr (N == 8) {
    *(V4*)p = V4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
  } else if constexpr (N == 4) {
    *(uint2*)p = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
  } else {
    p[0] = f2bf(v[0]);
  }
}
