// wgmma of sm_90a: D [64, N] (+)= A [64, 16] B [16, N], bf16 in, f32 out, by the 128 threads of a warpgroup.
//
// Thread t of the warpgroup, with w = t / 32, g = t % 32 / 4 and c = t % 4, holds d[4 j + i]: row 16 w + g + 8 (i / 2),
// column 8 j + 2 c + i % 2. An A in registers has the fragments of mma_16816 per warp.
#pragma once
#include "types.cuh"

// Needed before the first wgmma after registers of D or A were written, and after each commit.
DEV void wgmma_fence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emu::wgmma_fence();
#endif
}
// Keeps the compiler from moving what writes an accumulator past the fence that follows, or what reads it before the wait
// that came before. Without it ptxas adds fences of its own (its note C7519).
template <int REGISTERS> DEV void wgmma_fence_operand(float (&d)[REGISTERS]) {
#ifdef __CUDACC__
  UNROLL for (int i = 0; i < REGISTERS; i++) asm volatile("" : "+f"(d[i])::"memory");
#else
  (void)d;
#endif
}
DEV void wgmma_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emu::wgmma_commit();
#endif
}
// Until at most N groups are under way. Before that D may not be touched, nor the operands overwritten.
template <int N> DEV void wgmma_wait() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#else
  emu::wgmma_wait(N);
#endif
}

// Matrix descriptors (PTX ISA, "Shared Memory Matrix Layout"): byte offsets between the 8-row groups of an operand.
// K-major (K contiguous): rows are 128, 64 or 32 bytes, `sbo` is the step between groups of 8 rows, `lbo` is not used and
// one unit of it by convention: kAlongK.
// MN-major: a row is one k with 64, 32 or 16 elements, `lbo` steps over those columns, `sbo` over 8 values of k.
// Without swizzle an operand is made of 8 x 16-byte matrices: `lbo` steps along K, `sbo` along M or N, in both majors.
DEV uint64_t wgmma_desc(uint32_t addr, uint32_t lbo, uint32_t sbo, uint32_t swizzle_bits) {
  return (uint64_t)((addr & 0x3ffffu) >> 4) | (uint64_t)(lbo >> 4) << 16 | (uint64_t)(sbo >> 4) << 32 |
         (uint64_t)swizzle_bits << 62;
}
constexpr uint32_t kAlongK = 16;
DEV uint64_t wgmma_desc_sw128(uint32_t addr, uint32_t lbo, uint32_t sbo) { return wgmma_desc(addr, lbo, sbo, 1); }
// The same operand so many bytes further on: cheaper than another descriptor.
DEV uint64_t wgmma_desc_along(uint64_t desc, uint32_t bytes) { return desc + (bytes >> 4); }
DEV uint64_t wgmma_desc_sw64(uint32_t addr, uint32_t lbo, uint32_t sbo) { return wgmma_desc(addr, lbo, sbo, 2); }
DEV uint64_t wgmma_desc_sw32(uint32_t addr, uint32_t lbo, uint32_t sbo) { return wgmma_desc(addr, lbo, sbo, 3); }
DEV uint64_t wgmma_desc_none(uint32_t addr, uint32_t lbo, uint32_t sbo) { return wgmma_desc(addr, lbo, sbo, 0); }

// wgmma_m64n<N>k16<TA, TB>(d, a descriptor, b descriptor, scale_d) reads both operands from shared memory; TA and TB are 1
// for an MN-major operand. wgmma_m64n<N>k16_rs<TB>(d, a, b descriptor, scale_d) has A in registers. scale_d 0: D = A B.
#ifdef __CUDACC__
#define WGMMA_F8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_F32(i) WGMMA_F8(i), WGMMA_F8(i + 8), WGMMA_F8(i + 16), WGMMA_F8(i + 24)
#define WGMMA_ASM(N, LIST, DESC_A, DESC_B, SCALE, TA, TB, ...)                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " SCALE ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                   \
               "k16.f32.bf16.bf16 {" LIST "}, " DESC_A ", " DESC_B ", p, 1, 1" TA TB ";\n}"                             \
               : __VA_ARGS__)
#define WGMMA_R32(a, b, c, d) a b c d
#define WGMMA_N16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WGMMA_L0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_L1 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_L2 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_L3 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_L4 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define WGMMA_H5 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define WGMMA_L5 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_L6 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define WGMMA_L7 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_N32 WGMMA_L0
#define WGMMA_N64 WGMMA_N32 WGMMA_L1
#define WGMMA_N80 WGMMA_N64 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define WGMMA_N96 WGMMA_N64 WGMMA_L2
#define WGMMA_N128 WGMMA_N96 WGMMA_L3
#define WGMMA_N160 WGMMA_N128 WGMMA_L4
#define WGMMA_N176 WGMMA_N160 WGMMA_H5
#define WGMMA_N192 WGMMA_N160 WGMMA_L5
#define WGMMA_N256 WGMMA_N192 WGMMA_L6 WGMMA_L7
#define WGMMA_F_N16 WGMMA_F8(0)
#define WGMMA_F_N32 WGMMA_F8(0), WGMMA_F8(8)
#define WGMMA_F_N64 WGMMA_F32(0)
#define WGMMA_F_N80 WGMMA_F32(0), WGMMA_F8(32)
#define WGMMA_F_N96 WGMMA_F32(0), WGMMA_F8(32), WGMMA_F8(40)
#define WGMMA_F_N128 WGMMA_F32(0), WGMMA_F32(32)
#define WGMMA_F_N160 WGMMA_F_N128, WGMMA_F8(64), WGMMA_F8(72)
#define WGMMA_F_N176 WGMMA_F_N160, WGMMA_F8(80)
#define WGMMA_F_N192 WGMMA_F_N128, WGMMA_F32(64)
#define WGMMA_F_N256 WGMMA_F_N128, WGMMA_F32(64), WGMMA_F32(96)
// P0.. are the operand numbers after the N / 2 accumulators.
#define WGMMA(N, P0, P1, P2, P3, P4, P5, P6)                                                                            \
  template <int TA, int TB> DEV void wgmma_m64n##N##k16(float (&d)[N / 2], uint64_t da, uint64_t db, int scale_d) {     \
    WGMMA_ASM(N, WGMMA_N##N, "%" #P0, "%" #P1, "%" #P2, ", %" #P3, ", %" #P4,                                           \
              WGMMA_F_N##N : "l"(da), "l"(db), "r"(scale_d), "n"(TA), "n"(TB));                                         \
  }                                                                                                                     \
  template <int TB>                                                                                                     \
  DEV void wgmma_m64n##N##k16_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, int scale_d) {                 \
    WGMMA_ASM(N, WGMMA_N##N, "{%" #P0 ",%" #P1 ",%" #P2 ",%" #P3 "}", "%" #P4, "%" #P5, "", ", %" #P6,                  \
              WGMMA_F_N##N : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db), "r"(scale_d), "n"(TB));               \
  }
#else
#define WGMMA(N, ...)                                                                                               \
  template <int TA, int TB> DEV void wgmma_m64n##N##k16(float (&d)[N / 2], uint64_t da, uint64_t db, int scale_d) { \
    emu::wgmma_issue(d, N, da, db, nullptr, scale_d != 0, TA, TB);                                                  \
  }                                                                                                                 \
  template <int TB>                                                                                                 \
  DEV void wgmma_m64n##N##k16_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t db, int scale_d) {             \
    emu::wgmma_issue(d, N, 0, db, a, scale_d != 0, false, TB);                                                      \
  }
#endif

WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
WGMMA(256, 128, 129, 130, 131, 132, 133, 134)
