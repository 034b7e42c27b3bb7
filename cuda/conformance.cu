// Conformance: a kernel for each primitive of common/prim.cuh, with patterned inputs and raw outputs, so that a GPU's
// answer can be laid beside the emulator's, and the emulator's beside the formulas of the PTX ISA.
// `src/device/conformance.rs` has the cases; conformance_sm90.cu the primitives of Hopper.
#include "conformance.cuh"

using namespace conformance;
#define CONFORMANCE(name, threads) KERNEL(conformance_##name, threads, 1, const __grid_constant__ ConformanceArgs a)

// y[i] = {x[2 i], x[2 i + 1]} rounded to a bf16 pair.
CONFORMANCE(pack_bf16, 256) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  const float* x = (const float*)a.x;
  if (i < a.n) ((uint32_t*)a.y)[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}

// The approximations: y[i] = 2^x[i], y[n + i] = tanh x[i], y[2 n + i] = 1 / sqrt x[i], then exp, log.
CONFORMANCE(approximations, 256) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= a.n) return;
  const float x = ((const float*)a.x)[i];
  float* y = (float*)a.y;
  y[i] = ex2(x);
  y[a.n + i] = tanh_approx(x);
  y[2 * a.n + i] = rsqrtf(x);
  y[3 * a.n + i] = exp_ftz(x);
  y[4 * a.n + i] = __logf(x);
}

// y[4 i + w] = word w of Philox block i under the key (x[0], x[1]); then y[4 n + i] = the uniform number of word 0.
CONFORMANCE(random, 256) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= a.n) return;
  const uint32_t* key = (const uint32_t*)a.x;
  const Random4 r = random_block(RandomKey{{key[0], key[1]}}, (uint64_t)i);
  for (int w = 0; w < 4; w++) ((uint32_t*)a.y)[4 * i + w] = r.word[w];
  ((float*)a.y)[4 * a.n + i] = random_uniform(r.word[0]);
}

// Of the stream of (x[0], x[1]) and the id whose halves are x[2] and x[3]: y[0], y[1] its key; then y[2 + i] = which of
// block i a dropout keeps that drops what is below x[4].
CONFORMANCE(dropout, 256) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= a.n) return;
  const uint32_t* x = (const uint32_t*)a.x;
  uint32_t* y = (uint32_t*)a.y;
  const RandomKey key = random_key(RandomKey{{x[0], x[1]}}, (uint64_t)x[3] << 32 | x[2]);
  if (i < 2) y[i] = key.word[i];
  y[2 + i] = random_kept(key, (uint64_t)i, x[4]);
}

// y = warp sum, warp maximum and block sum of every thread, and the block sum of twice x in f64 at once after it, as the
// scratch must allow: [4][256].
CONFORMANCE(reductions, 256) {
  const int i = (int)threadIdx.x;
  const float x = ((const float*)a.x)[i];
  float* y = (float*)a.y;
  y[i] = warp_sum(x);
  y[256 + i] = warp_max(x);
  y[512 + i] = block_sum(x);
  const double again = block_sum((double)x);
  y[768 + i] = (float)(block_sum((double)x + (double)x) + 0.0 * again);
}

// Shuffles and votes of lane l: up 3, down 5, xor 6, from lane 2 of its eight, ballot of odd values, any, all: [7][32].
CONFORMANCE(shuffles, 32) {
  const int l = (int)threadIdx.x;
  const uint32_t x = ((const uint32_t*)a.x)[l], all = 0xffffffffu;
  uint32_t* y = (uint32_t*)a.y;
  y[l] = __shfl_up_sync(all, x, 3);
  y[32 + l] = __shfl_down_sync(all, x, 5);
  y[64 + l] = __shfl_xor_sync(all, x, 6);
  y[96 + l] = __shfl_sync(all, x, 2, 8);
  y[128 + l] = __ballot_sync(all, (int)(x & 1));
  y[160 + l] = (uint32_t)(__any_sync(all, (int)(x == 7)) != 0);
  y[192 + l] = (uint32_t)(__all_sync(all, (int)(x < 1000)) != 0);
}

// x is 32 rows of 16 bytes in shared memory; y[l][r] register r of lane l. Row l of the 32 is lane l's address.
template <int FORM> DEV void load_matrices(const ConformanceArgs& a) {
  SHARED(uint8_t, s_rows, [512]);
  const int l = (int)threadIdx.x;
  ((V4*)s_rows)[l] = ((const V4*)a.x)[l];
  __syncwarp();
  uint32_t four[4], two[2];
  uint32_t* y = (uint32_t*)a.y;
  if (FORM == 0) ldmatrix_x4(four, smem_u32(s_rows) + l * 16);
  if (FORM == 1) ldmatrix_x4_trans(four, smem_u32(s_rows) + l * 16);
  if (FORM == 2) ldmatrix_x2(two, smem_u32(s_rows) + l * 16);
  if (FORM == 3) ldmatrix_x2_trans(two, smem_u32(s_rows) + l * 16);
  for (int r = 0; r < (FORM < 2 ? 4 : 2); r++) y[l * 4 + r] = FORM < 2 ? four[r] : two[r & 1];
}
CONFORMANCE(ldmatrix_x4, 32) { load_matrices<0>(a); }
CONFORMANCE(ldmatrix_x4_trans, 32) { load_matrices<1>(a); }
CONFORMANCE(ldmatrix_x2, 32) { load_matrices<2>(a); }
CONFORMANCE(ldmatrix_x2_trans, 32) { load_matrices<3>(a); }

// x: A registers [32][4], B registers [32][2], D before [32][4]; y: D after.
CONFORMANCE(mma_16816, 32) {
  const int l = (int)threadIdx.x;
  const uint32_t *x = (const uint32_t*)a.x, *b = x + 128;
  const float* before = (const float*)(x + 192);
  const uint32_t r_a[4] = {x[l * 4], x[l * 4 + 1], x[l * 4 + 2], x[l * 4 + 3]}, r_b[2] = {b[l * 2], b[l * 2 + 1]};
  float d[4] = {before[l * 4], before[l * 4 + 1], before[l * 4 + 2], before[l * 4 + 3]};
  mma_16816(d, r_a, r_b);
  for (int r = 0; r < 4; r++) ((float*)a.y)[l * 4 + r] = d[r];
}

// Two groups: 16 bytes a thread, those of odd threads left out; then 4 bytes a thread, every third left out. y: the first
// 512 bytes as seen after the first group is in, then all 640.
CONFORMANCE(cp_async, 32) {
  SHARED(uint8_t, s_bytes, [640]);
  const int l = (int)threadIdx.x;
  cp_async16(smem_u32(s_bytes) + l * 16, a.x + l * 16, l % 2 == 0);
  cp_async_commit();
  cp_async4(smem_u32(s_bytes) + 512 + l * 4, a.x + 512 + l * 4, l % 3 != 0);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  ((V4*)a.y)[l] = ((const V4*)s_bytes)[l];
  cp_async_wait<0>();
  __syncthreads();
  for (int i = l; i < 160; i += 32) ((uint32_t*)a.y)[128 + i] = ((const uint32_t*)s_bytes)[i];
}

// Warp w hands a number to warp w + 1 through barrier w + 1: y[w] = 1 + 2 + .. in the order of warps.
CONFORMANCE(named_barriers, 128) {
  SHARED(uint32_t, s_sum, [1]);
  const int warp = (int)(threadIdx.x >> 5), lane = (int)(threadIdx.x & 31);
  if (warp > 0) bar_sync_id(warp, 64);
  if (lane == 0) {
    s_sum[0] = warp == 0 ? 1u : s_sum[0] * 10u + (uint32_t)warp + 1u;
    ((uint32_t*)a.y)[warp] = s_sum[0];
  }
  if (warp < 3) bar_arrive_id(warp + 1, 64);
}

// y[0] += every thread's x by atomics, y[1] = their maximum, y[2] |= them; the caller zeroed y.
CONFORMANCE(atomics, 256) {
  const uint32_t x = ((const uint32_t*)a.x)[blockIdx.x * blockDim.x + threadIdx.x];
  uint32_t* y = (uint32_t*)a.y;
  atomicAdd(&y[0], x);
  atomicMax(&y[1], x);
  atomicOr(&y[2], x);
}

// A thread of each of n + 1 blocks arrives at y[0], whose first value is beyond n, so that it starts over: y[1 + k] += how
// many saw k before, y[1 + n] += how many saw more. Then y has each thread's 3 x + 1 [blocks][threads], as written before the
// arrival, and their sums over blocks [threads], as read by the block that came last.
CONFORMANCE(counter, 128) {
  SHARED(uint32_t, s_last, [1]);
  const uint32_t t = threadIdx.x, n = (uint32_t)a.n, i = blockIdx.x * blockDim.x + t;
  uint32_t *y = (uint32_t*)a.y, *parts = y + 2 + n, *sums = parts + gridDim.x * blockDim.x;
  parts[i] = ((const uint32_t*)a.x)[i] * 3u + 1u;
  __syncthreads();
  if (t == 0) {
    const uint32_t before = arrive_counter(y, n);
    atomicAdd(&y[1 + (before < n ? before : n)], 1u);
    s_last[0] = before == n - 1;
  }
  __syncthreads();
  if (!s_last[0]) return;
  uint32_t sum = 0;
  for (uint32_t b = 0; b < gridDim.x; b++) sum += parts[b * blockDim.x + blockDim.x - 1 - t];
  sums[blockDim.x - 1 - t] = sum;
}
