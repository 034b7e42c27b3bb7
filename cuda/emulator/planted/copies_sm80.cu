// A product with a ring of cp.async stages, and block reductions: correct in variant 0, with one bug in each other.
//
// c [m, n] = a [m, k] b [n, k] transposed, f32, tiles of 64 x 64 x 32, four warps.
#include "common/prim.cuh"

struct PlantedCopiesArgs {
  const bf16 *a, *b;
  float* c;
  int32_t m, n, k;
};
LAYOUT(PlantedCopiesArgs, a, b, c, m, n, k);

namespace planted_copies {
enum Bug { kNone, kNoWait, kNoBarrierBeforeRead, kNoBarrierBeforeRefill, kRowPastTheEnd, kReadPastTheEnd, kEarlyReturn };
constexpr int kTile = 64, kDepth = 32, kThreads = 128;

// Rows of 64 bytes; the four chunks of a row are turned so that eight rows have different banks.
DEV uint32_t place(int row, int chunk) { return (uint32_t)(row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4)); }

template <int BUG> DEV void load_tile(uint32_t to, const bf16* from, int row0, int rows, int k0, int k) {
  for (int i = 0; i < 2; i++) {
    const int c = (int)threadIdx.x + i * kThreads, row = c >> 2, chunk = c & 3;
    const bool inside = (BUG == kReadPastTheEnd ? row0 + row <= rows : row0 + row < rows) && k0 + chunk * 8 < k;
    cp_async16(to + place(row, chunk), inside ? from + (int64_t)(row0 + row) * k + k0 + chunk * 8 : from, inside);
  }
}

template <int BUG> DEV void product(const PlantedCopiesArgs& p) {
  SHARED(bf16, s_tiles, [2][2][kTile * kDepth]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warp_m = (warp >> 1) * 32, warp_n = (warp & 1) * 32;
  const int m0 = blockIdx.y * kTile, n0 = blockIdx.x * kTile;
  if (BUG == kEarlyReturn && m0 + warp_m >= p.m) return;
  const uint32_t s_a = smem_u32(s_tiles[0][0]), s_b = smem_u32(s_tiles[0][1]), stage = 2 * kTile * kDepth * 2;
  float sums[2][4][4] = {};
  const int steps = (p.k + kDepth - 1) / kDepth;
  load_tile<BUG>(s_a, p.a, m0, p.m, 0, p.k);
  load_tile<BUG>(s_b, p.b, n0, p.n, 0, p.k);
  cp_async_commit();
  for (int t = 0; t < steps; t++) {
    const uint32_t now = (t & 1) * stage, next = stage - now;
    if (t + 1 < steps) {
      load_tile<BUG>(s_a + next, p.a, m0, p.m, (t + 1) * kDepth, p.k);
      load_tile<BUG>(s_b + next, p.b, n0, p.n, (t + 1) * kDepth, p.k);
    }
    cp_async_commit();
    if (BUG != kNoWait) cp_async_wait<1>();
    if (BUG != kNoBarrierBeforeRead) __syncthreads();
    for (int step = 0; step < 2; step++) {
      uint32_t a[2][4], b[4][2];
      for (int i = 0; i < 2; i++) ldmatrix_x4(a[i], s_a + now + place(warp_m + i * 16 + (lane & 15), step * 2 + (lane >> 4)));
      for (int j = 0; j < 2; j++) {
        uint32_t r[4];
        ldmatrix_x4(r, s_b + now + place(warp_n + j * 16 + (lane & 7) + ((lane >> 4) << 3), step * 2 + ((lane >> 3) & 1)));
        b[j * 2][0] = r[0], b[j * 2][1] = r[1], b[j * 2 + 1][0] = r[2], b[j * 2 + 1][1] = r[3];
      }
      mma_16816_tile<2, 4>(sums, a, b);
    }
    if (BUG != kNoBarrierBeforeRefill) __syncthreads();
  }
  cp_async_wait<0>();
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int q = 0; q < 4; q++) {
        const int row = m0 + warp_m + i * 16 + (lane >> 2) + (q >> 1) * 8, column = n0 + warp_n + j * 8 + (lane & 3) * 2 + (q & 1);
        if ((BUG == kRowPastTheEnd ? row <= p.m : row < p.m) && column < p.n) p.c[(int64_t)row * p.n + column] = sums[i][j][q];
      }
}
}  // namespace planted_copies

#define PLANTED(name, bug) \
  KERNEL(name, 128, 2, const __grid_constant__ PlantedCopiesArgs a) { planted_copies::product<planted_copies::bug>(a); }
PLANTED(planted_copies_correct, kNone)
PLANTED(planted_copies_no_wait, kNoWait)
PLANTED(planted_copies_no_barrier_before_read, kNoBarrierBeforeRead)
PLANTED(planted_copies_no_barrier_before_refill, kNoBarrierBeforeRefill)
PLANTED(planted_copies_row_past_the_end, kRowPastTheEnd)
PLANTED(planted_copies_read_past_the_end, kReadPastTheEnd)
PLANTED(planted_copies_early_return, kEarlyReturn)
