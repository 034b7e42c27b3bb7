// Declarations of kernels and shared memory, and the number types.
#pragma once
#ifdef __CUDACC__
#include <stdint.h>

#define DEV __device__ __forceinline__
// KERNEL(name, max threads of a block, min blocks of a multiprocessor, const __grid_constant__ Args a) { body }
#define KERNEL(name, max_threads, min_blocks, ...) \
  extern "C" __global__ void __launch_bounds__(max_threads, min_blocks) name(__VA_ARGS__)
// SHARED(float, s_sums, [4][32]); inside a function.
#define SHARED(T, name, ...) __shared__ __align__(16) T name __VA_ARGS__
// DYN_SMEM(raw); the bytes that the launch asked for, as uint8_t*. Only 16-byte alignment may be relied on.
#define DYN_SMEM(name) uint8_t* const name = dynamic_shared()
DEV uint8_t* dynamic_shared() {
  extern __shared__ __align__(1024) uint8_t s_dynamic[];
  return s_dynamic;
}
#define UNROLL _Pragma("unroll")
#define UNROLL1 _Pragma("unroll 1")
#define UNROLL4 _Pragma("unroll 4")
// LAYOUT(Args, every, field, in, order); after an argument struct: a test compares it with the Rust side's.
#define LAYOUT(...)
#define ALIGNED(n) __align__(n)
#else
#include "emulator/builtins.h"
#include "emulator/registry.h"

#define DEV inline __attribute__((always_inline))
#define KERNEL(name, max_threads, min_blocks, ...)                                                    \
  extern "C" void name(__VA_ARGS__);                                                                  \
  static emu::Registration emu_kernel_##name(#name, &emu::Invoke<&name>::run, emu::Invoke<&name>::bytes, max_threads); \
  extern "C" void name(__VA_ARGS__)
#define SHARED(T, name, ...)                    \
  static const char emu_tag_##name = 0;         \
  using emu_type_##name = T __VA_ARGS__;        \
  emu_type_##name& name = *(emu_type_##name*)emu::static_shared(&emu_tag_##name, #name, sizeof(emu_type_##name), alignof(T) < 16 ? 16 : alignof(T))
#define DYN_SMEM(name) uint8_t* const name = (uint8_t*)emu::dynamic_shared()
#define UNROLL
#define UNROLL1
#define UNROLL4
#define LAYOUT(...) EMU_LAYOUT(__VA_ARGS__)
#define ALIGNED(n) alignas(n)
#endif

// bfloat16: the upper half of an f32.
struct bf16 { uint16_t b; };
// 16 bytes that one instruction moves.
struct ALIGNED(16) V4 { uint32_t x, y, z, w; };
// Bit for bit CUtensorMap, aligned as CUDA 13 has it; earlier ones asked for 64.
struct ALIGNED(128) TensorMap { uint64_t opaque[16]; };

DEV float bf2f(bf16 v) { return __uint_as_float((uint32_t)v.b << 16); }
// The two numbers of a packed pair.
DEV float bflo(uint32_t pair) { return __uint_as_float(pair << 16); }
DEV float bfhi(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two numbers rounded to nearest, ties to even; any NaN becomes 0x7fff.
DEV uint32_t pack_bf16(float lo, float hi) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
  return pair;
#else
  uint32_t halves[2] = {__float_as_uint(lo), __float_as_uint(hi)};
  for (uint32_t& u : halves) {
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    u = nan ? 0x7fffu : (uint32_t)(((uint64_t)u + 0x7fffu + (u >> 16 & 1u)) >> 16);
  }
  return halves[0] | halves[1] << 16;
#endif
}
DEV bf16 f2bf(float f) { return bf16{(uint16_t)(pack_bf16(f, 0.0f) & 0xffffu)}; }
// The value after a round trip through bf16: an explicit rounding point.
DEV float round_bf16(float f) { return bflo(pack_bf16(f, 0.0f)); }

// 2^x by the special function unit: 2 ulp, subnormal results become 0.
DEV float ex2(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
// e^x, likewise; of its relative error about 2^-24 for each unit of |x| is the product's.
DEV float exp_ftz(float x) { return ex2(x * 1.4426950408889634f); }
// tanh by the special function unit: relative error 2^-11.
DEV float tanh_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return tanhf(x);
#endif
}

// The 32-bit shared address of a pointer into shared memory.
DEV uint32_t smem_u32(const void* p) {
#ifdef __CUDACC__
  return (uint32_t)__cvta_generic_to_shared(p);
#else
  return (uint32_t)((const uint8_t*)p - emu::current->shared) + emu::kSharedBase;
#endif
}

// Stops the kernel: a broken invariant, not a way to return.
DEV void device_trap(const char* why) {
#ifdef __CUDACC__
  (void)why;
  asm volatile("trap;");
#else
  emu::trap(why);
#endif
}
