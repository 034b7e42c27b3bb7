// What CUDA gives to kernel code without asking, for g++: vector types, built-in variables, warp functions, atomics and
// the intrinsics that the kernels use. Included by common/types.cuh; the functions are always inlined, so that each
// kernel file keeps its own instrumented copy of them.
//
// `__shared__` and `__constant__` stay undefined on purpose: kernels use SHARED and DYN_SMEM.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "instructions.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define EMU_INLINE inline __attribute__((always_inline))

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
EMU_INLINE float2 make_float2(float a, float b) { return {a, b}; }
EMU_INLINE float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
EMU_INLINE uint2 make_uint2(uint32_t a, uint32_t b) { return {a, b}; }
EMU_INLINE uint4 make_uint4(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return {a, b, c, d}; }
EMU_INLINE int2 make_int2(int a, int b) { return {a, b}; }
EMU_INLINE int4 make_int4(int a, int b, int c, int d) { return {a, b, c, d}; }

#define threadIdx (emu::current->thread_index)
#define blockIdx (emu::current->block_index)
#define blockDim (emu::launch_shape.block)
#define gridDim (emu::launch_shape.grid)

EMU_INLINE void __syncthreads() { emu::barrier_sync(0, 0); }
EMU_INLINE void __syncwarp(uint32_t mask = 0xffffffffu) { emu::syncwarp(mask); }
EMU_INLINE void __threadfence() { emu::thread_fence(); }
EMU_INLINE void __threadfence_block() { emu::thread_fence(); }

template <class To, class From> EMU_INLINE To emu_bits(From from) {
  static_assert(sizeof(To) == 4 && sizeof(From) == 4, "the bits of 4-byte values");
  To to;
  memcpy(&to, &from, 4);
  return to;
}
// Values of 4 bytes, or of 8 as two of 4, the lower half first: as CUDA's headers have it.
template <class T> EMU_INLINE T emu_shuffle(uint32_t mask, T value, int lane, emu::Shuffle how, int width) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "values of 4 or 8 bytes");
  uint32_t halves[sizeof(T) / 4];
  memcpy(halves, &value, sizeof(T));
  for (uint32_t& half : halves) half = emu::shuffle(mask, half, (uint32_t)lane, how, (uint32_t)width);
  memcpy(&value, halves, sizeof(T));
  return value;
}
template <class T> EMU_INLINE T __shfl_sync(uint32_t mask, T v, int lane, int width = 32) {
  return emu_shuffle(mask, v, lane, emu::Shuffle::Index, width);
}
template <class T> EMU_INLINE T __shfl_up_sync(uint32_t mask, T v, uint32_t delta, int width = 32) {
  return emu_shuffle(mask, v, (int)delta, emu::Shuffle::Up, width);
}
template <class T> EMU_INLINE T __shfl_down_sync(uint32_t mask, T v, uint32_t delta, int width = 32) {
  return emu_shuffle(mask, v, (int)delta, emu::Shuffle::Down, width);
}
template <class T> EMU_INLINE T __shfl_xor_sync(uint32_t mask, T v, int lanes, int width = 32) {
  return emu_shuffle(mask, v, lanes, emu::Shuffle::Xor, width);
}
EMU_INLINE uint32_t __ballot_sync(uint32_t mask, int p) { return emu::ballot(mask, p != 0); }
EMU_INLINE int __any_sync(uint32_t mask, int p) { return emu::ballot(mask, p != 0) != 0; }
EMU_INLINE int __all_sync(uint32_t mask, int p) { return emu::ballot(mask, p != 0) == mask; }

// Integers only: a float atomic would make a result depend on the order of blocks. Relaxed, as in CUDA: they order nothing;
// arrive_counter of common/prim.cuh does.
EMU_INLINE uint32_t atomicAdd(uint32_t* p, uint32_t v) { return emu::atomic_add(p, v); }
EMU_INLINE int atomicAdd(int* p, int v) { return (int)emu::atomic_add((uint32_t*)p, (uint32_t)v); }
EMU_INLINE uint32_t atomicMax(uint32_t* p, uint32_t v) { return emu::atomic_max(p, v); }
EMU_INLINE uint32_t atomicOr(uint32_t* p, uint32_t v) { return emu::atomic_or(p, v); }
EMU_INLINE uint32_t atomicCAS(uint32_t* p, uint32_t wanted, uint32_t v) { return emu::atomic_cas(p, wanted, v); }

EMU_INLINE float __uint_as_float(uint32_t u) { return emu_bits<float>(u); }
EMU_INLINE uint32_t __float_as_uint(float f) { return emu_bits<uint32_t>(f); }
EMU_INLINE float __int_as_float(int i) { return emu_bits<float>(i); }
EMU_INLINE int __float_as_int(float f) { return emu_bits<int>(f); }
EMU_INLINE float __logf(float x) { return logf(x); }
EMU_INLINE float __fdividef(float a, float b) { return a / b; }
EMU_INLINE float __frcp_rn(float x) { return 1.0f / x; }
EMU_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
// Operations that the compiler may not contract into a fused multiply-add; g++ runs with contraction off.
EMU_INLINE float __fadd_rn(float a, float b) { return a + b; }
EMU_INLINE float __fsub_rn(float a, float b) { return a - b; }
EMU_INLINE float __fmul_rn(float a, float b) { return a * b; }
EMU_INLINE float __fdiv_rn(float a, float b) { return a / b; }
EMU_INLINE double __dadd_rn(double a, double b) { return a + b; }
EMU_INLINE double __dsub_rn(double a, double b) { return a - b; }
EMU_INLINE double __dmul_rn(double a, double b) { return a * b; }
EMU_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE int __popc(uint32_t x) { return __builtin_popcount(x); }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __clz(int x) { return x ? __builtin_clz((uint32_t)x) : 32; }
EMU_INLINE uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
EMU_INLINE uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }
template <class T> EMU_INLINE T __ldg(const T* p) { return *p; }
template <class T> EMU_INLINE T min(T a, T b) { return b < a ? b : a; }
template <class T> EMU_INLINE T max(T a, T b) { return a < b ? b : a; }
