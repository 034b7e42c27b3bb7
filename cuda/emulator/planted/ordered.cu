// Blocks that add to the same numbers by bulk copies, in the order of numbers that they draw as they begin: each waits
// until the one before has arrived at a counter, and the last takes the sums. Correct in variant 0, with one bug in each
// other.
#include "common/prim.cuh"

struct PlantedOrderedArgs {
  const float* x;      // [blocks][64]
  float* sums;         // [64], scratch
  uint32_t* counters;  // [2], zeros before
  float* y;            // [64]
};
LAYOUT(PlantedOrderedArgs, x, sums, counters, y);

namespace planted_ordered {
enum Bug {
  kNone, kNoWait, kWaitForLess, kNoFence, kNoShortFence, kNoBarrier, kOnlyRead, kNoWaitAtAll, kArriveFirst, kRelaxed,
  kNoArrival, kByIndex, kNoBarrierAfterWait, kUnaligned
};

template <int BUG> DEV void add_up(const PlantedOrderedArgs& a) {
  SHARED(uint32_t, s_number, [1]);
  SHARED(float, s_part, [68]);
  const int t = (int)threadIdx.x;
  if (t == 0) s_number[0] = BUG == kByIndex ? blockIdx.x : atomicAdd(a.counters, 1u);
  __syncthreads();
  const uint32_t number = s_number[0], n = gridDim.x;
  s_part[t] = a.x[number * 64 + t];
  if (number < n - 1) {
    if (BUG != kNoShortFence) fence_proxy_async();
    if (BUG != kNoBarrier) __syncthreads();
    if (t != 0) return;
    if (number > 0) {
      if (BUG != kNoWait) wait_counter(a.counters + 1, BUG == kWaitForLess ? number - 1 : number);
      if (BUG != kNoFence) fence_proxy_async_global();
      bulk_add(a.sums, smem_u32(s_part) + (BUG == kUnaligned ? 8 : 0), 256);
    } else {
      bulk_store(a.sums, smem_u32(s_part), 256);
    }
    if (BUG == kArriveFirst) arrive_counter(a.counters + 1, n);
    bulk_commit();
    if (BUG != kNoWaitAtAll) bulk_wait_read<0>();
    if (BUG != kNoWaitAtAll && BUG != kOnlyRead) bulk_wait<0>();
    if (BUG == kRelaxed) atomicAdd(a.counters + 1, 1u);
    else if (BUG != kNoArrival && BUG != kArriveFirst) arrive_counter(a.counters + 1, n);
  } else {
    if (t == 0) wait_counter(a.counters + 1, number);
    if (BUG != kNoBarrierAfterWait) __syncthreads();
    a.y[t] = a.sums[t] + s_part[t];
  }
}
}  // namespace planted_ordered

using namespace planted_ordered;
#define PLANTED(name, bug) \
  KERNEL(planted_ordered_##name, 64, 1, const __grid_constant__ PlantedOrderedArgs a) { add_up<bug>(a); }
PLANTED(correct, kNone)
PLANTED(no_wait, kNoWait)
PLANTED(wait_for_less, kWaitForLess)
PLANTED(no_fence, kNoFence)
PLANTED(no_short_fence, kNoShortFence)
PLANTED(no_barrier, kNoBarrier)
PLANTED(only_read, kOnlyRead)
PLANTED(no_wait_at_all, kNoWaitAtAll)
PLANTED(arrive_first, kArriveFirst)
PLANTED(relaxed, kRelaxed)
PLANTED(no_arrival, kNoArrival)
PLANTED(by_index, kByIndex)
PLANTED(no_barrier_after_wait, kNoBarrierAfterWait)
PLANTED(unaligned, kUnaligned)
