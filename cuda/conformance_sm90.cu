// Conformance of Hopper's primitives; see conformance.cu.
#include "conformance.cuh"

using namespace conformance;
#define CONFORMANCE(name, threads) KERNEL(conformance_##name, threads, 1, const __grid_constant__ ConformanceArgs a)

// x: registers [32][4]; y: the 32 rows of 16 bytes that they make.
template <bool TRANS> DEV void store_matrices(const ConformanceArgs& a) {
  SHARED(uint8_t, s_rows, [512]);
  const int l = (int)threadIdx.x;
  const uint32_t* x = (const uint32_t*)a.x + l * 4;
  const uint32_t r[4] = {x[0], x[1], x[2], x[3]};
  if (TRANS) stmatrix_x4_trans(smem_u32(s_rows) + l * 16, r);
  else stmatrix_x4(smem_u32(s_rows) + l * 16, r);
  __syncwarp();
  ((V4*)a.y)[l] = ((const V4*)s_rows)[l];
}
CONFORMANCE(stmatrix_x4, 32) { store_matrices<false>(a); }
CONFORMANCE(stmatrix_x4_trans, 32) { store_matrices<true>(a); }

// One thread takes a barrier of count 2 through its phases; y: mbar_test of parity 0 and of parity 1 after init, after one
// arrival, after two, after one more, after the fourth.
CONFORMANCE(mbarrier_phases, 32) {
  SHARED(uint64_t, s_barrier, [1]);
  if (threadIdx.x != 0) return;
  const uint32_t bar = smem_u32(s_barrier);
  uint32_t* y = (uint32_t*)a.y;
  mbar_init(bar, 2);
  for (int arrivals = 0; arrivals <= 4; arrivals++) {
    if (arrivals > 0) mbar_arrive(bar);
    y[arrivals * 2] = mbar_test(bar, 0) ? 1u : 0u;
    y[arrivals * 2 + 1] = mbar_test(bar, 1) ? 1u : 0u;
  }
  mbar_invalidate(bar);
}

// y: the n bytes of shared memory after a box of `map` at (option[0], option[1], option[2]) has come in, option[3] bytes behind
// a multiple of 1024. What was there before is 0xab, so that a zero is one that was written.
template <int RANK> DEV void load_box(const ConformanceArgs& a) {
  DYN_SMEM(raw);
  SHARED(uint64_t, s_barrier, [1]);
  uint8_t* s_box = aligned_shared(raw) + a.option[3];
  const uint32_t bar = smem_u32(s_barrier);
  for (int i = (int)threadIdx.x; i < a.n / 4; i += 32) ((uint32_t*)s_box)[i] = 0xababababu;
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    fence_mbar_init();
    mbar_arrive_expect_tx(bar, (uint32_t)a.n);
    if (RANK == 2) tma_load_2d(smem_u32(s_box), &a.map, bar, a.option[0], a.option[1]);
    else tma_load_3d(smem_u32(s_box), &a.map, bar, a.option[0], a.option[1], a.option[2]);
  }
  __syncthreads();
  mbar_wait(bar, 0);
  for (int i = (int)threadIdx.x; i < a.n / 4; i += 32) ((uint32_t*)a.y)[i] = ((const uint32_t*)s_box)[i];
}
CONFORMANCE(tma_load_2d, 32) { load_box<2>(a); }
CONFORMANCE(tma_load_3d, 32) { load_box<3>(a); }

// The n bytes of x, as shared memory, stored as a box of `map` (over y) at (option[0], option[1], option[2]).
template <int RANK> DEV void store_box(const ConformanceArgs& a) {
  DYN_SMEM(raw);
  uint8_t* s_box = aligned_shared(raw);
  for (int i = (int)threadIdx.x; i < a.n / 4; i += 32) ((uint32_t*)s_box)[i] = ((const uint32_t*)a.x)[i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (RANK == 2) tma_store_2d(&a.map, smem_u32(s_box), a.option[0], a.option[1]);
    else tma_store_3d(&a.map, smem_u32(s_box), a.option[0], a.option[1], a.option[2]);
    bulk_commit();
    bulk_wait<0>();
  }
}
CONFORMANCE(tma_store_2d, 32) { store_box<2>(a); }
CONFORMANCE(tma_store_3d, 32) { store_box<3>(a); }

// x: [blocks][n] f32, then two counters that are 0. y: [2][n], the sums of all blocks but the last, added in the order of
// the numbers that blocks draw, and of all.
CONFORMANCE(ordered_sums, 64) {
  DYN_SMEM(raw);
  SHARED(uint32_t, s_number, [1]);
  float *s_part = (float*)aligned_shared(raw), *y = (float*)a.y;
  const float* x = (const float*)a.x;
  uint32_t* counters = (uint32_t*)(x + (int)gridDim.x * a.n);
  if (threadIdx.x == 0) s_number[0] = atomicAdd(counters, 1u);
  __syncthreads();
  const uint32_t number = s_number[0], last = gridDim.x - 1;
  for (int i = (int)threadIdx.x; i < a.n; i += 64) s_part[i] = x[number * a.n + i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0 && number > 0) wait_counter(counters + 1, number);
  if (threadIdx.x == 0 && number < last) {
    fence_proxy_async_global();
    if (number == 0) bulk_store(y, smem_u32(s_part), (uint32_t)a.n * 4);
    else bulk_add(y, smem_u32(s_part), (uint32_t)a.n * 4);
    bulk_commit();
    bulk_wait_read<0>();
    bulk_wait<0>();
    arrive_counter(counters + 1, last + 1);
  }
  __syncthreads();
  for (int i = (int)threadIdx.x; i < a.n && number == last; i += 64) y[a.n + i] = y[i] + s_part[i];
}

// x: n bytes of shared memory. Descriptors of A (at byte 0) and B (at byte option[4]): leading and stride byte offsets
// option[0..1] and option[2..3]. y: the D registers [128][N / 2] of one wgmma onto D = 1.
template <int N> DEV void finish_wgmma(const ConformanceArgs& a, float (&d)[N / 2]) {
  wgmma_commit();
  wgmma_wait<0>();
  for (int r = 0; r < N / 2; r++) ((float*)a.y)[threadIdx.x * (N / 2) + r] = d[r];
}
DEV uint32_t fill_operands(const ConformanceArgs& a, uint8_t* raw) {
  uint8_t* s_operands = aligned_shared(raw);
  for (int i = (int)threadIdx.x; i < a.n / 4; i += 128) ((uint32_t*)s_operands)[i] = ((const uint32_t*)a.x)[i];
  fence_proxy_async();
  __syncthreads();
  return smem_u32(s_operands);
}
#define CONFORMANCE_WGMMA(name, n, ta, tb, descriptor)                                                \
  CONFORMANCE(wgmma_##name, 128) {                                                                    \
    DYN_SMEM(raw);                                                                                    \
    const uint32_t base = fill_operands(a, raw);                                                      \
    float d[n / 2];                                                                                   \
    UNROLL for (int r = 0; r < n / 2; r++) d[r] = 1.0f;                                               \
    wgmma_fence_operand(d);                                                                           \
    wgmma_fence();                                                                                    \
    wgmma_m64n##n##k16<ta, tb>(d, descriptor(base, (uint32_t)a.option[0], (uint32_t)a.option[1]),     \
                               descriptor(base + (uint32_t)a.option[4], (uint32_t)a.option[2], (uint32_t)a.option[3]), 1); \
    finish_wgmma<n>(a, d);                                                                            \
  }
CONFORMANCE_WGMMA(n64_kk_sw128, 64, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n64_mk_sw128, 64, 1, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n64_kn_sw128, 64, 0, 1, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n64_mn_sw128, 64, 1, 1, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n64_kk_sw64, 64, 0, 0, wgmma_desc_sw64)
CONFORMANCE_WGMMA(n64_mn_sw64, 64, 1, 1, wgmma_desc_sw64)
CONFORMANCE_WGMMA(n64_kk_sw32, 64, 0, 0, wgmma_desc_sw32)
CONFORMANCE_WGMMA(n64_mn_sw32, 64, 1, 1, wgmma_desc_sw32)
CONFORMANCE_WGMMA(n64_kk_none, 64, 0, 0, wgmma_desc_none)
CONFORMANCE_WGMMA(n64_mn_none, 64, 1, 1, wgmma_desc_none)
CONFORMANCE_WGMMA(n16_kk_sw128, 16, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n16_mn_sw128, 16, 1, 1, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n32_kk_sw128, 32, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n80_kk_sw128, 80, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n80_mn_sw128, 80, 1, 1, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n96_kk_sw128, 96, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n128_kk_sw128, 128, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n128_mn_sw128, 128, 1, 1, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n160_kk_sw128, 160, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n176_kk_sw128, 176, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n176_kn_sw128, 176, 0, 1, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n192_kk_sw128, 192, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n192_kn_sw128, 192, 0, 1, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n256_kk_sw128, 256, 0, 0, wgmma_desc_sw128)
CONFORMANCE_WGMMA(n256_kn_sw128, 256, 0, 1, wgmma_desc_sw128)

// As above, eight operations along k in one group: each has both operands 16 rows, 2048 bytes, further on in tiles of 128 rows
// of k, as attention's dq has them.
#define CONFORMANCE_WGMMA_K128(n)                                                                                        \
  CONFORMANCE(wgmma_n##n##_mn_sw128_k128, 128) {                                                                         \
    DYN_SMEM(raw);                                                                                                       \
    const uint32_t base = fill_operands(a, raw);                                                                         \
    float d[n / 2];                                                                                                      \
    UNROLL for (int r = 0; r < n / 2; r++) d[r] = 1.0f;                                                                  \
    const uint64_t left = wgmma_desc_sw128(base, (uint32_t)a.option[0], (uint32_t)a.option[1]);                          \
    const uint64_t right = wgmma_desc_sw128(base + (uint32_t)a.option[4], (uint32_t)a.option[2], (uint32_t)a.option[3]); \
    wgmma_fence_operand(d);                                                                                              \
    wgmma_fence();                                                                                                       \
    UNROLL for (int k = 0; k < 8; k++)                                                                                   \
      wgmma_m64n##n##k16<1, 1>(d, wgmma_desc_along(left, k * 2048), wgmma_desc_along(right, k * 2048), 1);               \
    finish_wgmma<n>(a, d);                                                                                               \
  }
CONFORMANCE_WGMMA_K128(64)
CONFORMANCE_WGMMA_K128(16)

// A from registers: x begins with [128][4] of them, the n bytes of shared memory follow. y as above, with D not added to.
template <int N, int TB> DEV void wgmma_from_registers(const ConformanceArgs& a) {
  DYN_SMEM(raw);
  const uint32_t* registers = (const uint32_t*)a.x + threadIdx.x * 4;
  const uint32_t r_a[4] = {registers[0], registers[1], registers[2], registers[3]};
  ConformanceArgs b = a;
  b.x = a.x + 2048;
  const uint32_t base = fill_operands(b, raw);
  float d[N / 2];
  const uint64_t rows = wgmma_desc_sw128(base + (uint32_t)a.option[4], (uint32_t)a.option[2], (uint32_t)a.option[3]);
  wgmma_fence();
  if constexpr (N == 64) wgmma_m64n64k16_rs<TB>(d, r_a, rows, 0);
  if constexpr (N == 80) wgmma_m64n80k16_rs<TB>(d, r_a, rows, 0);
  if constexpr (N == 128) wgmma_m64n128k16_rs<TB>(d, r_a, rows, 0);
  finish_wgmma<N>(a, d);
}
CONFORMANCE(wgmma_rs64_k_sw128, 128) { wgmma_from_registers<64, 0>(a); }
CONFORMANCE(wgmma_rs64_n_sw128, 128) { wgmma_from_registers<64, 1>(a); }
CONFORMANCE(wgmma_rs80_n_sw128, 128) { wgmma_from_registers<80, 1>(a); }
CONFORMANCE(wgmma_rs128_n_sw128, 128) { wgmma_from_registers<128, 1>(a); }

// Two products under way at once, as attention's scores and its weighted values, each of eight operations along k. x: the
// registers of the second one's left operand, [8][128][4], then n bytes of shared memory: a left tile of 64 rows by 128
// columns, a right one of 128 rows by 128, both in halves of 64 columns, and the second one's right one, as large, with k down
// its rows. y: D of the first, [128][64], once at most one group is under way; D of the second, onto 1, once none is.
CONFORMANCE(wgmma_two_groups, 128) {
  constexpr int kSteps = 8, kSums = 64;
  constexpr uint32_t kLeftHalf = 64 * 128, kRightHalf = 128 * 128;
  DYN_SMEM(raw);
  uint32_t weights[kSteps][4];
  UNROLL for (int k = 0; k < kSteps; k++) UNROLL for (int i = 0; i < 4; i++) {
    weights[k][i] = ((const uint32_t*)a.x)[(k * 128 + threadIdx.x) * 4 + i];
  }
  ConformanceArgs b = a;
  b.x = a.x + sizeof(weights) * 128;
  const uint32_t base = fill_operands(b, raw);
  const uint64_t left = wgmma_desc_sw128(base, kAlongK, 1024);
  const uint64_t right = wgmma_desc_sw128(base + 2 * kLeftHalf, kAlongK, 1024);
  const uint64_t values = wgmma_desc_sw128(base + 2 * kLeftHalf + 2 * kRightHalf, kRightHalf, 1024);
  float first[kSums], second[kSums];
  UNROLL for (int i = 0; i < kSums; i++) second[i] = 1.0f;
  wgmma_fence_operand(second);
  wgmma_fence();
  UNROLL for (int k = 0; k < kSteps; k++) {
    wgmma_m64n128k16<0, 0>(first, wgmma_desc_along(left, k / 4 * kLeftHalf + k % 4 * 32),
                           wgmma_desc_along(right, k / 4 * kRightHalf + k % 4 * 32), k > 0);
  }
  wgmma_commit();
  wgmma_fence();
  UNROLL for (int k = 0; k < kSteps; k++) {
    wgmma_m64n128k16_rs<1>(second, weights[k], wgmma_desc_along(values, k * 2048), 1);
  }
  wgmma_commit();
  float* y = (float*)a.y + threadIdx.x * kSums;
  wgmma_wait<1>();
  UNROLL for (int i = 0; i < kSums; i++) y[i] = first[i];
  wgmma_wait<0>();
  UNROLL for (int i = 0; i < kSums; i++) y[128 * kSums + i] = second[i];
}

// The roles of the kernels on Hopper: the first warpgroup gives registers away, and the others wait for them. y[t] = x[t] + 1
// in the first; in the others the sum, modulo 2^32, of NUMBERS numbers that all live at once, more than the kernel is launched
// with: number i is x[(t + i) % 384] at first, and n times over all of them, from the first to the last, are added to by the
// one before, the first by the last.
template <int FEWER, int MORE, int NUMBERS> DEV void share_registers(const ConformanceArgs& a) {
  const uint32_t* x = (const uint32_t*)a.x;
  uint32_t sum = 0;
  if (threadIdx.x < 128) {
    reg_dealloc<FEWER>();
    sum = x[threadIdx.x] + 1u;
  } else {
    reg_alloc<MORE>();
    uint32_t v[NUMBERS];
    UNROLL for (int i = 0; i < NUMBERS; i++) v[i] = x[(threadIdx.x + i) % 384u];
    UNROLL1 for (int round = 0; round < a.n; round++) {
      UNROLL for (int i = 0; i < NUMBERS; i++) v[i] += v[i > 0 ? i - 1 : NUMBERS - 1];
    }
    UNROLL for (int i = 0; i < NUMBERS; i++) sum += v[i];
  }
  ((uint32_t*)a.y)[threadIdx.x] = sum;
}
CONFORMANCE(setmaxnreg_40_232, 384) { share_registers<40, 232, 208>(a); }
CONFORMANCE(setmaxnreg_24_240, 384) { share_registers<24, 240, 216>(a); }
