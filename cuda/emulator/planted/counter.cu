// Blocks that arrive at a counter, the last of which adds up what all of them wrote, each with one bug.
#include "common/prim.cuh"

struct PlantedCounterArgs {
  const float* x;      // [blocks][threads]
  float* parts;        // the same, 3 x
  uint32_t* counters;  // [1 + blocks], zeros before and after
  uint32_t* most;      // zero before; only the kernels `maximum` use it
  float* y;            // [threads + 1], sums over blocks, from the first to the last; then the maximum of x
};
LAYOUT(PlantedCounterArgs, x, parts, counters, most, y);

namespace planted_counter {
enum Bug {
  kNone, kNoBarrierBefore, kNoBarrierAfter, kNoArrival, kRelaxed, kNotLast, kNoReturn, kPeek, kLate, kReadLate, kMaximum, kMaximumEarly,
  kOtherGroup, kLeftArrival, kNoSyncwarp, kTreeOfFirsts
};

DEV void write_part(const PlantedCounterArgs& a) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  a.parts[i] = a.x[i] * 3.0f;
}
DEV void add_parts(const PlantedCounterArgs& a, uint32_t column) {
  float sum = 0;
  for (uint32_t b = 0; b < gridDim.x; b++) sum += a.parts[b * blockDim.x + column];
  a.y[column] = sum;
}
DEV void write_maximum(const PlantedCounterArgs& a) {
  if (threadIdx.x == 0) a.y[blockDim.x] = __uint_as_float(a.most[0]);
}

// A thread arrives for its block and tells it whether it came last.
template <int BUG> DEV void last_block(const PlantedCounterArgs& a) {
  SHARED(uint32_t, s_last, [1]);
  const uint32_t t = threadIdx.x, n = gridDim.x;
  if (BUG != kLate || t != 0) write_part(a);
  if (BUG == kMaximum || BUG == kMaximumEarly) atomicMax(a.most, __float_as_uint(a.x[blockIdx.x * blockDim.x + t]));
  if (BUG != kNoBarrierBefore) __syncthreads();
  if (BUG == kMaximumEarly) write_maximum(a);
  if (t == 0) {
    uint32_t before = BUG == kPeek ? a.counters[0] : blockIdx.x;
    if (BUG == kRelaxed) {
      before = atomicAdd(a.counters, 1u);
      atomicCAS(a.counters, n, 0u);
    } else if (BUG != kNoArrival) {
      const uint32_t arrived = arrive_counter(a.counters, BUG == kNoReturn ? 2 * n : n);
      if (BUG != kPeek) before = arrived;
    }
    if (BUG == kLate) write_part(a);
    s_last[0] = BUG == kNotLast || before == n - 1;
  }
  if (BUG != kNoBarrierAfter) __syncthreads();
  if (BUG == kReadLate && !s_last[0] && a.parts[blockIdx.x * blockDim.x + t] < 0) device_trap("no part is below zero");
  if (!s_last[0]) return;
  add_parts(a, blockDim.x - 1 - t);
  for (uint32_t b = 0; BUG == kReadLate && b < n; b++) a.parts[b * blockDim.x + blockDim.x - 1 - t] = 0;
  if (BUG == kMaximum) write_maximum(a);
}

// Each warpgroup has a counter and a barrier of its own.
template <int BUG> DEV void last_group(const PlantedCounterArgs& a) {
  SHARED(uint32_t, s_last, [2]);
  const int t = (int)threadIdx.x, group = t >> 7;
  write_part(a);
  bar_sync_id(1 + group, 128);
  if ((t & 127) == 0) s_last[group] = arrive_counter(a.counters + group, gridDim.x) == gridDim.x - 1;
  bar_sync_id(1 + group, 128);
  if (BUG == kLeftArrival && t < 32) bar_arrive_id(1 + group, 128);
  if (s_last[group]) add_parts(a, (uint32_t)(BUG == kOtherGroup ? 255 - t : t ^ 127));
}

// Only the first warp goes on; its lane 0 tells the others by a shuffle, which orders nothing.
template <int BUG> DEV void last_warp(const PlantedCounterArgs& a) {
  write_part(a);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  uint32_t last = threadIdx.x == 0 && arrive_counter(a.counters, gridDim.x) == gridDim.x - 1;
  last = __shfl_sync(0xffffffffu, last, 0);
  if (BUG != kNoSyncwarp) __syncwarp();
  for (uint32_t i = threadIdx.x; last && i < blockDim.x; i += 32) add_parts(a, i);
}

// Every thread arrives for itself, and the last does everything.
DEV void last_thread(const PlantedCounterArgs& a) {
  write_part(a);
  const uint32_t n = gridDim.x * blockDim.x;
  if (arrive_counter(a.counters, n) != n - 1) return;
  for (uint32_t i = 0; i < blockDim.x; i++) add_parts(a, i);
}

// The bug of the same: the threads of a block count themselves by an atomic, which orders nothing either.
DEV void last_thread_by_atomics(const PlantedCounterArgs& a) {
  SHARED(uint32_t, s_written, [1]);
  if (threadIdx.x == 0) s_written[0] = 0;
  __syncthreads();
  write_part(a);
  if (atomicAdd(s_written, 1u) != blockDim.x - 1) return;
  if (arrive_counter(a.counters, gridDim.x) != gridDim.x - 1) return;
  for (uint32_t i = 0; i < blockDim.x; i++) add_parts(a, i);
}

// The last of each two blocks arrives for both at the first counter: what it knows of the other goes on from there.
template <int BUG> DEV void tree(const PlantedCounterArgs& a) {
  SHARED(uint32_t, s_last, [2]);
  const uint32_t t = threadIdx.x, n_pairs = gridDim.x / 2;
  write_part(a);
  __syncthreads();
  if (t == 0) s_last[0] = arrive_counter(a.counters + 1 + blockIdx.x / 2, 2) == (BUG == kTreeOfFirsts ? 0 : 1);
  __syncthreads();
  if (!s_last[0]) return;
  if (t == 0) s_last[1] = arrive_counter(a.counters, n_pairs) == n_pairs - 1;
  __syncthreads();
  if (s_last[1]) add_parts(a, blockDim.x - 1 - t);
}
}  // namespace planted_counter

using namespace planted_counter;
#define PLANTED(name, body) KERNEL(name, 256, 1, const __grid_constant__ PlantedCounterArgs a) { body; }
PLANTED(planted_counter_correct, last_block<kNone>(a))
PLANTED(planted_counter_no_barrier_before, last_block<kNoBarrierBefore>(a))
PLANTED(planted_counter_no_barrier_after, last_block<kNoBarrierAfter>(a))
PLANTED(planted_counter_no_arrival, last_block<kNoArrival>(a))
PLANTED(planted_counter_relaxed, last_block<kRelaxed>(a))
PLANTED(planted_counter_not_last, last_block<kNotLast>(a))
PLANTED(planted_counter_no_return, last_block<kNoReturn>(a))
PLANTED(planted_counter_peek, last_block<kPeek>(a))
PLANTED(planted_counter_late, last_block<kLate>(a))
PLANTED(planted_counter_read_late, last_block<kReadLate>(a))
PLANTED(planted_counter_maximum_correct, last_block<kMaximum>(a))
PLANTED(planted_counter_maximum_early, last_block<kMaximumEarly>(a))
PLANTED(planted_counter_group_correct, last_group<kNone>(a))
PLANTED(planted_counter_group_other, last_group<kOtherGroup>(a))
PLANTED(planted_counter_left_arrival, last_group<kLeftArrival>(a))
PLANTED(planted_counter_warp_correct, last_warp<kNone>(a))
PLANTED(planted_counter_warp_no_syncwarp, last_warp<kNoSyncwarp>(a))
PLANTED(planted_counter_thread_correct, last_thread(a))
PLANTED(planted_counter_thread_by_atomics, last_thread_by_atomics(a))
PLANTED(planted_counter_tree_correct, tree<kNone>(a))
PLANTED(planted_counter_tree_of_firsts, tree<kTreeOfFirsts>(a))

// Single faults.
PLANTED(planted_fault_counter_in_shared, SHARED(uint32_t, s_counter, [1]); a.counters[0] = arrive_counter(s_counter, 1))
PLANTED(planted_fault_counter_of_none, a.counters[0] = arrive_counter(a.counters, 0))
