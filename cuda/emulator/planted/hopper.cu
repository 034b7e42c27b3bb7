// A product on Hopper: a ring of TMA stages, one producing and two multiplying warpgroups, stmatrix and TMA stores at the
// end, tile after tile in one launch; correct in variant 0, with one bug in each other.
//
// c [m, n] bf16 = a [m, k] b [n, k] transposed, tiles of 128 x 128 x 64.
#include "common/prim.cuh"

struct PlantedHopperArgs {
  TensorMap a, b, c;
  int32_t m, n, k;
};
LAYOUT(PlantedHopperArgs, a, b, c, m, n, k);

namespace planted_hopper {
enum Bug {
  kNone,
  kNoWgmmaWait,
  kReleasedEarly,
  kProducerPhase,
  kConsumerPhase,
  kNoFullWait,
  kNoEmptyWait,
  kExpectedBytes,
  kNoBarrierAfterInit,
  kNoFenceAfterInit,
  kNoWgmmaFence,
  kNoProxyFence,
  kNoBarrierBeforeStore,
  kNoStoreWait,
  kNoLastRelease,
  kBoxBetween,
  kBoxBefore,
};
constexpr int kTile = 128, kDepth = 64, kStages = 4, kThreads = 384;
constexpr uint32_t kOperand = kTile * kDepth * 2, kOut = kTile * kTile * 2;

template <int BUG> DEV void produce(const PlantedHopperArgs& p, uint32_t s_a, uint32_t s_b, uint32_t full, uint32_t empty) {
  const int tiles_n = p.n / kTile, tiles = p.m / kTile * tiles_n, steps = p.k / kDepth;
  int stage = 0;
  uint32_t phase = 0;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    for (int k = 0; k < steps; k++) {
      if (BUG != kNoEmptyWait) mbar_wait(empty + 8 * stage, BUG == kProducerPhase ? phase : phase ^ 1);
      mbar_arrive_expect_tx(full + 8 * stage, BUG == kExpectedBytes ? kOperand : 2 * kOperand);
      tma_load_2d(s_a + stage * kOperand, &p.a, full + 8 * stage, k * kDepth + (BUG == kBoxBetween ? 4 : 0),
                  t / tiles_n * kTile);
      tma_load_2d(s_b + stage * kOperand, &p.b, full + 8 * stage, k * kDepth, t % tiles_n * kTile);
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
  }
}

template <int BUG> DEV void store(const PlantedHopperArgs& p, const float (&d)[64], uint32_t s_out, int m0, int n0, int group) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, row = warp * 16 + (lane & 15);
  const bool first = (threadIdx.x & 127) == 0;
  if (BUG != kNoStoreWait) {
    if (first) bulk_wait_read<0>();
    bar_sync_id(1 + group, 128);
  }
  UNROLL for (int j = 0; j < 8; j++) {
    const float* r = &d[j * 8];
    const uint32_t packed[4] = {pack_bf16(r[0], r[1]), pack_bf16(r[2], r[3]), pack_bf16(r[4], r[5]), pack_bf16(r[6], r[7])};
    const int chunk = (j & 3) * 2 + (lane >> 4);
    stmatrix_x4(s_out + (j >> 2) * 8192 + row * 128 + ((chunk ^ (row & 7)) << 4), packed);
  }
  if (BUG != kNoProxyFence) fence_proxy_async();
  if (BUG != kNoBarrierBeforeStore) bar_sync_id(1 + group, 128);
  if (first) {
    tma_store_2d(&p.c, s_out, n0, m0 + group * 64 - (BUG == kBoxBefore ? p.m : 0));
    tma_store_2d(&p.c, s_out + 8192, n0 + 64, m0 + group * 64);
    bulk_commit();
  }
}

template <int BUG>
DEV void multiply(const PlantedHopperArgs& p, uint32_t s_a, uint32_t s_b, uint32_t s_out, uint32_t full, uint32_t empty, int group) {
  const int tiles_n = p.n / kTile, tiles = p.m / kTile * tiles_n, steps = p.k / kDepth;
  const bool first = (threadIdx.x & 127) == 0;
  int stage = 0, before = -1;
  uint32_t phase = 0;
  float d[64];
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    for (int k = 0; k < steps; k++) {
      if (BUG != kNoFullWait) mbar_wait(full + 8 * stage, BUG == kConsumerPhase ? phase ^ 1 : phase);
      if (BUG != kNoWgmmaFence) wgmma_fence();
      UNROLL for (int kk = 0; kk < kDepth / 16; kk++)
        wgmma_m64n128k16<0, 0>(d, wgmma_desc_sw128(s_a + stage * kOperand + group * (kOperand / 2) + kk * 32, 16, 1024),
                               wgmma_desc_sw128(s_b + stage * kOperand + kk * 32, 16, 1024), (k | kk) != 0);
      wgmma_commit();
      if (BUG == kReleasedEarly && first) mbar_arrive(empty + 8 * stage);
      wgmma_wait<1>();
      // The product before this one is done: its stage may be filled again.
      if (BUG != kReleasedEarly && before >= 0 && first) mbar_arrive(empty + 8 * before);
      before = stage;
      if (++stage == kStages) stage = 0, phase ^= 1;
    }
    if (BUG != kNoWgmmaWait) wgmma_wait<0>();
    if (BUG != kReleasedEarly && BUG != kNoLastRelease && first) mbar_arrive(empty + 8 * before);
    before = -1;
    store<BUG>(p, d, s_out + group * (kOut / 2), t / tiles_n * kTile, t % tiles_n * kTile, group);
  }
  if (first) bulk_wait<0>();
}

template <int BUG> DEV void product(const PlantedHopperArgs& p) {
  DYN_SMEM(raw);
  const uint32_t s_a = (smem_u32(raw) + 1023u) & ~1023u, s_b = s_a + kStages * kOperand, s_out = s_b + kStages * kOperand;
  const uint32_t full = s_out + kOut, empty = full + 8 * kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      mbar_init(full + 8 * s, 1);
      mbar_init(empty + 8 * s, 2);
    }
    if (BUG != kNoFenceAfterInit) fence_mbar_init();
  }
  if (BUG != kNoBarrierAfterInit) __syncthreads();
  const int group = (int)(threadIdx.x >> 7);
  if (group == 0) {
    reg_dealloc<40>();
    if (threadIdx.x == 0) produce<BUG>(p, s_a, s_b, full, empty);
  } else {
    reg_alloc<232>();
    multiply<BUG>(p, s_a, s_b, s_out, full, empty, group - 1);
  }
}

// Operands written by ordinary stores, read by wgmma: a [64, 64], b [128, 64], c [64, 128] f32, through the maps' place.
struct Plain {
  const bf16 *a, *b;
  float* c;
};
enum PlainBug { kPlainNone, kPlainNoFence, kPlainNoBarrier, kPlainNoWait };
template <int BUG> DEV void stored_operands(const Plain& p) {
  DYN_SMEM(raw);
  const uint32_t base = (smem_u32(raw) + 1023u) & ~1023u;
  uint8_t* s_operands = raw + (base - smem_u32(raw));
  for (int i = threadIdx.x; i < (64 + 128) * 8; i += 128) {
    const int row = i >> 3, chunk = i & 7;
    const bf16* from = row < 64 ? p.a + row * 64 : p.b + (row - 64) * 64;
    *(V4*)(s_operands + row * 128 + ((chunk ^ (row & 7)) << 4)) = ((const V4*)from)[chunk];
  }
  if (BUG != kPlainNoFence) fence_proxy_async();
  if (BUG != kPlainNoBarrier) __syncthreads();
  float d[64];
  wgmma_fence();
  UNROLL for (int k = 0; k < 4; k++)
    wgmma_m64n128k16<0, 0>(d, wgmma_desc_sw128(base + k * 32, 16, 1024), wgmma_desc_sw128(base + 8192 + k * 32, 16, 1024), k != 0);
  wgmma_commit();
  if (BUG != kPlainNoWait) wgmma_wait<0>();
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int j = 0; j < 16; j++)
    for (int q = 0; q < 4; q++)
      p.c[(warp * 16 + (lane >> 2) + (q >> 1) * 8) * 128 + j * 8 + (lane & 3) * 2 + (q & 1)] = d[j * 4 + q];
  if (BUG == kPlainNoWait) wgmma_wait<0>();
}
}  // namespace planted_hopper

using planted_hopper::Plain;
#define PLANTED(name, bug) \
  KERNEL(planted_hopper_##name, 384, 1, const __grid_constant__ PlantedHopperArgs a) { planted_hopper::product<planted_hopper::bug>(a); }
PLANTED(correct, kNone)
PLANTED(no_wgmma_wait, kNoWgmmaWait)
PLANTED(released_early, kReleasedEarly)
PLANTED(producer_phase, kProducerPhase)
PLANTED(consumer_phase, kConsumerPhase)
PLANTED(no_full_wait, kNoFullWait)
PLANTED(no_empty_wait, kNoEmptyWait)
PLANTED(expected_bytes, kExpectedBytes)
PLANTED(no_barrier_after_init, kNoBarrierAfterInit)
PLANTED(no_fence_after_init, kNoFenceAfterInit)
PLANTED(no_wgmma_fence, kNoWgmmaFence)
PLANTED(no_proxy_fence, kNoProxyFence)
PLANTED(no_barrier_before_store, kNoBarrierBeforeStore)
PLANTED(no_store_wait, kNoStoreWait)
PLANTED(no_last_release, kNoLastRelease)
PLANTED(box_between, kBoxBetween)
PLANTED(box_before, kBoxBefore)
#define PLANTED_PLAIN(name, bug) \
  KERNEL(planted_stored_##name, 128, 1, const __grid_constant__ Plain a) { planted_hopper::stored_operands<planted_hopper::bug>(a); }
PLANTED_PLAIN(correct, kPlainNone)
PLANTED_PLAIN(no_fence, kPlainNoFence)
PLANTED_PLAIN(no_barrier, kPlainNoBarrier)
PLANTED_PLAIN(no_wait, kPlainNoWait)
