// Sums and maxima over a warp and over four lanes, and sums over a block, always in the same order.
#pragma once
#include "types.cuh"

// Every lane of a full warp gets the result: a tree over lane distances 16, 8, 4, 2, 1.
template <class T> DEV T warp_sum(T v) {
  UNROLL for (int distance = 16; distance; distance >>= 1) v += __shfl_xor_sync(0xffffffffu, v, distance);
  return v;
}
// fmaxf drops a NaN: where one must survive, add it back with a sum.
DEV float warp_max(float v) {
  UNROLL for (int distance = 16; distance; distance >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, distance));
  return v;
}

// Every thread of the block gets the result. The block is a whole number of warps in x; all its threads must call. The
// first barrier makes it safe to call again at once.
template <class T> DEV T block_sum(T v) {
  SHARED(T, s_partial, [32]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
  v = warp_sum(v);
  __syncthreads();
  if (lane == 0) s_partial[warp] = v;
  __syncthreads();
  return warp_sum(lane < n_warps ? s_partial[lane] : T(0));
}

// Each of four neighbouring lanes, which hold a row of mma's or wgmma's sums, gets theirs together.
DEV float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
DEV float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
