// Row reductions and plain loads and stores, each with one bug.
#include "common/prim.cuh"

struct PlantedRowsArgs {
  const float* x;
  float* y;
  int32_t n;
};
LAYOUT(PlantedRowsArgs, x, y, n);

namespace planted_rows {
enum Bug {
  kNone, kSharedScratch, kBlocksOverlap, kUnordered, kAtomicUnordered, kAfterRead, kAfterWrite, kBeforeRead, kAfterReadAndAtomic
};

template <bool BARRIER> DEV float sum_in(float (&s_partial)[32], float v) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
  v = warp_sum(v);
  if (BARRIER) __syncthreads();
  if (lane == 0) s_partial[warp] = v;
  __syncthreads();
  return warp_sum(lane < n_warps ? s_partial[lane] : 0.0f);
}

// y[row] = sum of x, y[rows + row] = sum of its squares, through the same scratch.
template <int BUG> DEV void two_sums(const PlantedRowsArgs& a) {
  SHARED(float, s_scratch, [32]);
  const float* x = a.x + (int64_t)blockIdx.x * a.n;
  float sum = 0, squares = 0;
  for (int i = threadIdx.x; i < a.n; i += blockDim.x) sum += x[i], squares += x[i] * x[i];
  sum = sum_in<true>(s_scratch, sum);
  squares = sum_in<BUG != kSharedScratch>(s_scratch, squares);
  if (threadIdx.x == 0) {
    a.y[BUG == kBlocksOverlap ? 0 : blockIdx.x] = sum;
    a.y[gridDim.x + blockIdx.x] = squares;
  }
}

// y = x reversed within a row, through y itself.
template <int BUG> DEV void reverse(const PlantedRowsArgs& a) {
  const float* x = a.x + (int64_t)blockIdx.x * a.n;
  float* y = a.y + (int64_t)blockIdx.x * a.n;
  const int i = (int)threadIdx.x;
  if (i < a.n) y[i] = x[i];
  if (BUG != kUnordered) __syncthreads();
  const float other = i < a.n ? y[a.n - 1 - i] : 0.0f;
  __syncthreads();
  if (i < a.n) y[i] = other;
}

// The same, where y gets its bits by atomics.
template <int BUG> DEV void reverse_by_atomics(const PlantedRowsArgs& a) {
  const float* x = a.x + (int64_t)blockIdx.x * a.n;
  float* y = a.y + (int64_t)blockIdx.x * a.n;
  const int i = (int)threadIdx.x;
  if (i < a.n) y[i] = 0.0f;
  __syncthreads();
  if (i < a.n) atomicOr((uint32_t*)&y[a.n - 1 - i], __float_as_uint(x[a.n - 1 - i]));
  if (BUG != kAtomicUnordered) __syncthreads();
  const float other = i < a.n / 2 ? y[a.n - 1 - i] : 0.0f, own = i < a.n / 2 ? y[i] : 0.0f;
  if (i < a.n / 2) y[i] = other, y[a.n - 1 - i] = own;
}

// An atomic beside a plain access by another lane. The shuffle makes their order, which counts for nothing; an atomic of
// the lane's own takes nothing of its read back.
template <int BUG, bool IN_SHARED> DEV void atomic_beside(const PlantedRowsArgs& a) {
  SHARED(uint32_t, s_word, [1]);
  if (threadIdx.x >= 32) return;
  const uint32_t all = 0xffffffffu, lane = threadIdx.x;
  uint32_t* word = IN_SHARED ? s_word : (uint32_t*)a.y + blockIdx.x;
  if (lane == 0) *word = 0;
  __syncwarp();
  uint32_t seen = 0;
  if (lane == 1 && (BUG == kAfterRead || BUG == kAfterReadAndAtomic)) seen = *word;
  if (lane == 1 && BUG == kAfterWrite) *word = 3;
  if (lane == 1 && BUG == kBeforeRead) atomicAdd(word, 1u);
  if (lane == 1 && BUG == kAfterReadAndAtomic) atomicAdd(word, 1u);
  seen = __shfl_sync(all, seen, 1);
  if (lane == 2 && BUG == kBeforeRead) seen = *word;
  if (lane == 2 && BUG != kBeforeRead) atomicAdd(word, seen + 1);
  if (__any_sync(all, seen == 7)) device_trap("nothing wrote 7");
}
}  // namespace planted_rows

using namespace planted_rows;
#define PLANTED(name, body) KERNEL(name, 256, 1, const __grid_constant__ PlantedRowsArgs a) { body; }
PLANTED(planted_rows_correct, two_sums<kNone>(a))
PLANTED(planted_rows_shared_scratch, two_sums<kSharedScratch>(a))
PLANTED(planted_rows_blocks_overlap, two_sums<kBlocksOverlap>(a))
PLANTED(planted_rows_reverse_correct, reverse<kNone>(a))
PLANTED(planted_rows_reverse_unordered, reverse<kUnordered>(a))
PLANTED(planted_rows_reverse_by_atomics_correct, reverse_by_atomics<kNone>(a))
PLANTED(planted_rows_reverse_by_atomics_unordered, reverse_by_atomics<kAtomicUnordered>(a))
PLANTED(planted_rows_shared_atomic_after_read, (atomic_beside<kAfterRead, true>(a)))
PLANTED(planted_rows_shared_atomic_after_write, (atomic_beside<kAfterWrite, true>(a)))
PLANTED(planted_rows_shared_atomic_before_read, (atomic_beside<kBeforeRead, true>(a)))
PLANTED(planted_rows_shared_atomic_after_read_and_atomic, (atomic_beside<kAfterReadAndAtomic, true>(a)))
PLANTED(planted_rows_atomic_after_read, (atomic_beside<kAfterRead, false>(a)))
PLANTED(planted_rows_atomic_after_write, (atomic_beside<kAfterWrite, false>(a)))
PLANTED(planted_rows_atomic_before_read, (atomic_beside<kBeforeRead, false>(a)))
PLANTED(planted_rows_atomic_after_read_and_atomic, (atomic_beside<kAfterReadAndAtomic, false>(a)))

// Single faults.
// So far that nothing can have been mapped there.
PLANTED(planted_fault_write_far, if (threadIdx.x == 5) a.y[-((int64_t)a.n << 36)] = 1.0f)
PLANTED(planted_fault_write_one_past, if (threadIdx.x == 5) a.y[a.n] = 1.0f)
PLANTED(planted_fault_write_one_before, if (threadIdx.x == 5) a.y[-1] = 1.0f)
PLANTED(planted_fault_read_one_past, if (threadIdx.x == 5) a.y[0] = a.x[a.n])
PLANTED(planted_fault_uninitialised_shared, SHARED(float, s_x, [32]); a.y[threadIdx.x & 31] = s_x[threadIdx.x & 31])
PLANTED(planted_fault_shared_past_the_end, SHARED(float, s_x, [32]); float* p = s_x; p[a.n + (int)(threadIdx.x & 3)] = 1.0f)
PLANTED(planted_fault_misaligned, a.y[0] = ((const float4*)(a.x + 1))->x)
PLANTED(planted_fault_register_index, float r[4] = {}; r[a.n & 7] = 1.0f; a.y[0] = r[0])
PLANTED(planted_fault_shift, a.y[0] = (float)(1 << a.n))
PLANTED(planted_fault_overflow, a.y[0] = (float)(a.n * 0x7fffffff))
PLANTED(planted_fault_divide, a.y[0] = (float)(7 / (a.n / 1000)))
PLANTED(planted_fault_float_to_int, a.y[0] = (float)(int)(a.x[0] * 1e30f))
PLANTED(planted_fault_trap, if (a.n == 1) device_trap("n must not be 1"))
PLANTED(planted_fault_divergent_shuffle, if (threadIdx.x & 1) a.y[0] = warp_sum(1.0f))
PLANTED(planted_fault_unequal_barriers, if ((int)threadIdx.x < a.n) __syncthreads())
PLANTED(planted_fault_lane_outside_mask, if (threadIdx.x < 16) a.y[0] = __shfl_sync(0xffffu, 1.0f, 20))
PLANTED(planted_fault_stack, volatile float big[65536]; big[a.n] = 1.0f; a.y[0] = big[0])
