// linear on Hopper of at most 128 rows, as decoding has them, and what the next word does with the result.
//
// Maths, numerics and rounding: as in linear.cu, and of what follows as in swiglu.cu, qk_rope.cu and norm.cu, bit for bit.
//
// A product of so few rows is as fast as its weights are read, so the weight is the left operand and x the right one: a
// block owns 128 columns of all rows of y, of one split of k. The weight crosses device memory once; x once, and comes
// from L2 again for each tile; the sums of several splits twice, mostly within L2.
//
// A launch takes more time than most of what follows a product of one row. So nothing is left to a second one: where sums
// have several parts, or belong to others', each warpgroup leaves its own in `partial` and arrives at a counter of those
// that are finished together; the last to arrive adds the splits up in their order and finishes them, whoever that is.
// What an adapter adds belongs to the first split.
//
//   multiply;  parts -> partial;  arrive;  last:  y = finish(sum over splits)
//     SwiGLU   of the same 64 columns of gate and up:  silu(gate) up
//     heads    of a tile, which is a head of 128:      norm, rotation, and where asked into the cache
//     rows     of all tiles, once their y is stored:   RMS norm of every row
//
// | tensor    | shape                        | dtype | layout                                                            |
// |-----------|------------------------------|-------|-------------------------------------------------------------------|
// | partial   | [splits, m, N]               | f32   | workspace                                                         |
// | counters  | [2 tiles of N + 1]           | u32   | 0 before and after a launch                                       |
// | swiglu    | [m, N / 2]                   | bf16  |                                                                   |
// | the rest  | linear.cu, qk_rope.cu, norm.cu |     |                                                                   |
//
// Limits: as in linear_sm90.cu. SwiGLU of two bands as wide as each other; heads 128 wide, in bands that are whole heads.
// Deterministic: who comes last decides nothing but who does the work. A row's bits are the same whatever the number of
// rows. Unmeasured: no GPU was at hand.
#include "linear_tiles_sm90.cuh"
#include "norm.cuh"
#include "qk_rope.cuh"
#include "swiglu.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
namespace linear {

enum Following { NOTHING, SWIGLU, HEADS, ROWS_NORM };

struct LinearFewArgs {
  LinearArgs product;
  TensorMap left[PIECES], right[PIECES];
  QkRopeArgs heads;
  row_norm::NormArgs rows;
  bf16* swiglu;
  uint32_t* counters;
  int64_t following;
};
LAYOUT(LinearFewArgs, product, left, right, heads, rows, swiglu, counters, following);

// Whether a consumer warpgroup is the last of n to arrive, once all of its threads have.
DEV bool last_to_arrive(uint32_t* counter, int n, int consumer) {
  SHARED(uint32_t, s_before, [2]);
  consumer_sync(consumer);
  if ((threadIdx.x & 127) == 0) s_before[consumer] = arrive_counter(counter, n);
  consumer_sync(consumer);
  return s_before[consumer] == (uint32_t)n - 1;
}

// What one row is left to: a warp would take longer for it than some products do.
struct Warpgroup {
  static constexpr int THREADS = 128;
  int consumer;
  static DEV int rank() { return threadIdx.x & 127; }
  DEV float total(const float (&of)[1]) const {
    SHARED(float, s_sums, [2 * 4]);
    float* sums = s_sums + consumer * 4;
    const float sum = warp_sum(of[0]);
    consumer_sync(consumer);               // all have read those of the row before
    if ((threadIdx.x & 31) == 0) sums[rank() >> 5] = sum;
    consumer_sync(consumer);
    return sums[0] + sums[1] + sums[2] + sums[3];
  }
};

template <int BN> struct FewWork : ProductTiles<BN, true> {
  static constexpr bool ARRIVES = true;
  static constexpr int STAGES = BN == 128 ? 6 : 8;
  const LinearFewArgs& a;

  DEV explicit FewWork(const LinearFewArgs& a) : ProductTiles<BN, true>{{}, a.product, a.left, a.right}, a(a) {}
  DEV void store(const HopperTile& t, int m, int n, float (&v)[8]) const {
    store8<true>(a.product, t.band, t.split, n, m, v);
  }

  // Eight neighbouring columns of a row, which the band has: the sums of all splits, then y, stored and, for what follows, as
  // it is stored. Who needs two such asks for the sums of both first, and waits for device memory once.
  DEV void add8(const LinearBand& band, int m, int n, float (&v)[8]) const {
    add_splits8<true>(a.product, band, a.product.splits, m, n, band.width - n, v);
  }
  DEV void complete8(const LinearBand& band, int m, int n, float (&v)[8]) const {
    finish8<true>(a.product, band, m, n, band.width - n, v);
    UNROLL for (int i = 0; i < 8; i++) v[i] = round_bf16(v[i]);
  }

  // y of 64 columns from `n0` of a band.
  DEV void columns(const LinearBand& band, int n0) const {
    UNROLL1 for (int c = threadIdx.x & 127; c < a.product.m * 8; c += 128) {
      const int n = n0 + c % 8 * 8;
      float v[8];
      if (n >= band.width) continue;
      add8(band, c / 8, n, v);
      complete8(band, c / 8, n, v);
    }
  }
  // Of both bands, and their SwiGLU.
  DEV void gated(int n0) const {
    const LinearBand &gate = a.product.bands[0], &up = a.product.bands[1];
    UNROLL1 for (int c = threadIdx.x & 127; c < a.product.m * 8; c += 128) {
      const int m = c / 8, n = n0 + c % 8 * 8;
      if (n >= gate.width) continue;
      float g[8], u[8];
      add8(gate, m, n, g), add8(up, m, n, u);
      complete8(gate, m, n, g), complete8(up, m, n, u);
      UNROLL for (int i = 0; i < 8; i++) g[i] = swiglu::product(g[i], u[i]);
      write8<true>(a.swiglu + (int64_t)m * gate.width + n, g, 8);
    }
  }
  // A head of 128 columns from n0 of a band: eight lanes a token, each with eight numbers of either half.
  DEV void head(const LinearBand& band, int n0) const {
    constexpr int LANES = 8;
    const int i = (int)threadIdx.x % LANES * 8;
    UNROLL1 for (int first = 0; first < a.product.m; first += 128 / LANES) {
      const int m = first + ((int)threadIdx.x & 127) / LANES;
      const bool valid = m < a.product.m;
      float low[8], high[8], sum = 0.f;
      if (valid) {
        add8(band, m, n0 + i, low), add8(band, m, n0 + 64 + i, high);
        complete8(band, m, n0 + i, low), complete8(band, m, n0 + 64 + i, high);
        sum = qk_rope::add_squares<8>(high, qk_rope::add_squares<8>(low, sum));
      }
      const float r = qk_rope::head_norm(a.heads, sum, LANES);
      if (valid) qk_rope::finish<8>(a.heads, qk_rope::place_of(a.heads, m, (band.column + n0) / 128), i, r, low, high);
    }
  }

  // A warpgroup has stored its half of a tile: what is left to do, if it is the last of those that are finished together.
  DEV void finish(const HopperTile& t, int consumer) const {
    const LinearBand& band = a.product.bands[t.band];
    const int following = (int)a.following, n0 = t.m0 + consumer * 64;
    if (a.product.partial) {
      // whose sums are finished together: these columns', the same of both bands, or all of the tile
      const int own = 2 * t.place + consumer;
      const int counter = following == SWIGLU ? n0 / 64 : following == HEADS ? 2 * t.place : own;
      const int together = following == SWIGLU || following == HEADS ? 2 : 1;
      if (!last_to_arrive(a.counters + counter, together * a.product.splits, consumer)) return;
      if (following == SWIGLU) {
        gated(n0);
      } else if (following == HEADS) {
        head(band, t.m0);
      } else {
        columns(band, n0);
      }
    }
    if (following != ROWS_NORM) return;
    const int halves = 2 * this->tiles_n();
    if (!last_to_arrive(a.counters + halves, halves, consumer)) return;
    for (int m = 0; m < a.product.m; m++) row_norm::normalise<8>(Warpgroup{consumer}, a.rows, m);
  }
};

}  // namespace linear

KERNEL(linear_fwd_few_16x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearFewArgs a) {
  linear::run_sm90<16, true, true>(linear::FewWork<16>{a});
}
KERNEL(linear_fwd_few_32x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearFewArgs a) {
  linear::run_sm90<32, true, true>(linear::FewWork<32>{a});
}
KERNEL(linear_fwd_few_64x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearFewArgs a) {
  linear::run_sm90<64, true, true>(linear::FewWork<64>{a});
}
KERNEL(linear_fwd_few_128x128_sm90_bf16, 384, 1, const __grid_constant__ linear::LinearFewArgs a) {
  linear::run_sm90<128, true, true>(linear::FewWork<128>{a});
}
#endif
