// The matrix product that linear, linear_loss and patch_embed stand on, for sm_80 and newer.
//
// acc[m, n] = sum over k of left[m, k] right[k, n], bf16 operands, f32 sums. Either operand may lie with k contiguous
// (weights as right of x W^T) or with its other index contiguous (weights as right of dz W, both operands of dz^T x), so
// that nothing is ever transposed in memory.
//
// A block owns BM x BN sums and walks along k in steps of BK. Each step's operands come by cp.async into a ring of
// STAGES buffers of shared memory, in chunks of 16 bytes whose place is XORed with the row, so that ldmatrix (plain or
// transposed) finds its eight rows in eight different bank groups. Each warp owns WM x WN sums, as mma.m16n8k16.
// Every sum is built in ascending steps of 16 along k whatever the tile, so a row's result does not depend on how many
// rows there are.
//
// VECTOR says that all rows begin at multiples of 16 bytes and all widths are multiples of 8 elements. Without it the
// elements are read one by one and stored to the same places: for odd widths, slower.
//
// Shared memory: at most 96 KiB, so that sm_86 and sm_89 run every tile.
#pragma once
#include "common/random.cuh"
#include "linear_activation.cuh"

namespace linear {

template <int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_> struct Tile {
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_, STAGES = STAGES_;
  static constexpr int MI = WM / 16, NB = WN / 8;
  static constexpr int THREADS = 32 * (BM / WM) * (BN / WN);
  static constexpr int LEFT_BYTES = BM * BK * 2, STAGE_BYTES = (BM + BN) * BK * 2;
  // Row stride, in floats, of the sums in shared memory: eight more, so that rows do not share banks.
  static constexpr int STRIDE = BN + 8;
};
using Tile128 = Tile<128, 128, 64, 64, 32, 3>;
using Tile64 = Tile<64, 64, 64, 32, 32, 3>;
using Tile16 = Tile<16, 32, 128, 16, 16, 4>;

template <class T> using Sums = float[T::MI][T::NB][4];

DEV int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Byte offset of a 16-byte chunk in a tile whose rows have CHUNKS of them.
template <int CHUNKS> DEV int swizzled(int row, int chunk) {
  static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "rows of 64 bytes or of whole 128 bytes");
  int place = CHUNKS == 4 ? chunk ^ ((row >> 1) & 3) : chunk ^ (row & 7);
  return (row * CHUNKS + place) * 16;
}

// Eight elements into shared memory, of which the first `valid` exist (none where it is 0 or less); zero for the rest.
template <bool VECTOR> DEV void load_chunk(uint8_t* to, const bf16* from, int valid) {
  if constexpr (VECTOR) {
    cp_async16(smem_u32(to), from, valid > 0);
  } else {
    uint32_t words[4];
    UNROLL for (int i = 0; i < 4; i++) {
      uint32_t low = 2 * i < valid ? from[2 * i].b : 0u, high = 2 * i + 1 < valid ? from[2 * i + 1].b : 0u;
      words[i] = low | (high << 16);
    }
    *(V4*)to = V4{words[0], words[1], words[2], words[3]};
  }
}

// Eight neighbouring elements in f32, of which the first `valid` exist; zero for the rest.
template <bool VECTOR> DEV void read8(float (&to)[8], const bf16* from, int valid) {
  if constexpr (VECTOR) {
    const V4 v = *(const V4*)from;
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    UNROLL for (int i = 0; i < 4; i++) {
      to[2 * i] = bflo(words[i]);
      to[2 * i + 1] = bfhi(words[i]);
    }
  } else {
    UNROLL for (int i = 0; i < 8; i++) to[i] = i < valid ? bf2f(from[i]) : 0.f;
  }
}

template <bool VECTOR> DEV void read8(float (&to)[8], const float* from, int valid) {
  if constexpr (VECTOR) {
    const float4 low = *(const float4*)from, high = *(const float4*)(from + 4);
    const float eight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    UNROLL for (int i = 0; i < 8; i++) to[i] = eight[i];
  } else {
    UNROLL for (int i = 0; i < 8; i++) to[i] = i < valid ? from[i] : 0.f;
  }
}

// The first `valid` of eight neighbouring elements, rounded to the nearest bf16.
template <bool VECTOR> DEV void write8(bf16* to, const float (&from)[8], int valid) {
  if constexpr (VECTOR) {
    *(V4*)to = V4{pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
                  pack_bf16(from[6], from[7])};
  } else {
    UNROLL for (int i = 0; i < 8; i++) {
      if (i < valid) to[i] = f2bf(from[i]);
    }
  }
}

template <bool VECTOR> DEV void write8(float* to, const float (&from)[8], int valid) {
  if constexpr (VECTOR) {
    *(float4*)to = make_float4(from[0], from[1], from[2], from[3]);
    *(float4*)(to + 4) = make_float4(from[4], from[5], from[6], from[7]);
  } else {
    UNROLL for (int i = 0; i < 8; i++) {
      if (i < valid) to[i] = from[i];
    }
  }
}

// One operand's part of a step: OUTER x BK elements from (outer0, k0), of which those below outer_n and k_n exist.
// ALONG_K: stored [outer, k], else [k, outer]. `rows`, where not null, names the stored row to read for each.
template <class T, int OUTER, bool ALONG_K, bool VECTOR>
DEV void load_operand(uint8_t* to, const bf16* base, int64_t stride, const int32_t* rows, int outer0, int outer_n,
                      int k0, int k_n) {
  constexpr int ROWS = ALONG_K ? OUTER : T::BK, CHUNKS = (ALONG_K ? T::BK : OUTER) / 8;
  static_assert(ROWS * CHUNKS % T::THREADS == 0, "every thread loads equally many chunks");
  const int row0 = ALONG_K ? outer0 : k0, rows_n = ALONG_K ? outer_n : k_n;
  const int column0 = ALONG_K ? k0 : outer0, columns_n = ALONG_K ? k_n : outer_n;
  UNROLL for (int i = 0; i < ROWS * CHUNKS / T::THREADS; i++) {
    const int c = (int)threadIdx.x + i * T::THREADS, r = c / CHUNKS, chunk = c % CHUNKS;
    const int row = row0 + r, column = column0 + chunk * 8;
    const int valid = row < rows_n ? columns_n - column : 0;
    int64_t at = 0;
    if (valid > 0) at = (int64_t)(rows ? rows[row] : row) * stride + column;
    load_chunk<VECTOR>(to + swizzled<CHUNKS>(r, chunk), base + at, valid);
  }
}

// The sums of one warp grow by one step. `left` and `right` are shared addresses of the step's tiles.
template <class T, bool LEFT_ALONG_K, bool RIGHT_ALONG_K>
DEV void multiply_step(Sums<T>& acc, uint32_t left, uint32_t right, int warp_m, int warp_n, int lane) {
  UNROLL for (int kk = 0; kk < T::BK / 16; kk++) {
    uint32_t a[T::MI][4], b[T::NB][2];
    UNROLL for (int i = 0; i < T::MI; i++) {
      const int m = warp_m + i * 16;
      if constexpr (LEFT_ALONG_K) {
        ldmatrix_x4(a[i], left + swizzled<T::BK / 8>(m + (lane & 15), kk * 2 + (lane >> 4)));
      } else {
        const int k = kk * 16 + (lane & 7) + (lane >> 4) * 8;
        ldmatrix_x4_trans(a[i], left + swizzled<T::BM / 8>(k, m / 8 + ((lane >> 3) & 1)));
      }
    }
    UNROLL for (int j = 0; j < T::NB / 2; j++) {
      const int n = warp_n + j * 16;
      uint32_t r[4];
      if constexpr (RIGHT_ALONG_K) {
        ldmatrix_x4(r, right + swizzled<T::BK / 8>(n + (lane & 7) + (lane >> 4) * 8, kk * 2 + ((lane >> 3) & 1)));
      } else {
        ldmatrix_x4_trans(r, right + swizzled<T::BN / 8>(kk * 16 + (lane & 15), n / 8 + (lane >> 4)));
      }
      b[2 * j][0] = r[0];
      b[2 * j][1] = r[1];
      b[2 * j + 1][0] = r[2];
      b[2 * j + 1][1] = r[3];
    }
    mma_16816_tile<T::MI, T::NB>(acc, a, b);
  }
}

// A product from which nothing drops out; linear_dropout.cuh has those from which something does.
struct Undropped {
  // A step's operands that this thread loaded have arrived; nobody reads them yet.
  DEV void arrived(uint8_t*) {}
  // The sums of one warp grow by the step.
  template <class T, bool LEFT_ALONG_K, bool RIGHT_ALONG_K>
  DEV void add(Sums<T>& acc, uint32_t left, uint32_t right, int warp_m, int warp_n, int lane) {
    multiply_step<T, LEFT_ALONG_K, RIGHT_ALONG_K>(acc, left, right, warp_m, warp_n, lane);
  }
};

// Walks over `steps` steps; load(stage) starts the copies of the next step into a stage, and is called once for each, in
// order, as are what `dropout` does with a step. After `scaled` of the steps the sums are multiplied by `scale`. The sums
// end in shared memory, [BM][STRIDE], visible to the whole block.
template <class T, bool LEFT_ALONG_K, bool RIGHT_ALONG_K, class Load, class Dropout>
DEV float* multiply(uint8_t* smem, int steps, int scaled, float scale, Load&& load, Dropout&& dropout) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int warp_m = warp / (T::BN / T::WN) * T::WM, warp_n = warp % (T::BN / T::WN) * T::WN;
  Sums<T> acc;
  UNROLL for (int i = 0; i < T::MI; i++) UNROLL for (int j = 0; j < T::NB; j++) UNROLL for (int q = 0; q < 4; q++) {
    acc[i][j][q] = 0.f;
  }
  UNROLL for (int s = 0; s < T::STAGES - 1; s++) {
    if (s < steps) load(smem + s * T::STAGE_BYTES);
    cp_async_commit();
  }
  const uint32_t base = smem_u32(smem);
  int stage = 0, next = T::STAGES - 1;
  for (int step = 0; step < steps; step++) {
    if (step == scaled) {
      UNROLL for (int i = 0; i < T::MI; i++) UNROLL for (int j = 0; j < T::NB; j++) UNROLL for (int q = 0; q < 4; q++) {
        acc[i][j][q] *= scale;
      }
    }
    cp_async_wait<T::STAGES - 2>();
    dropout.arrived(smem + stage * T::STAGE_BYTES);
    __syncthreads();  // this step has arrived for all, and all have read the step before, whose stage is filled next
    if (step + T::STAGES - 1 < steps) load(smem + next * T::STAGE_BYTES);
    cp_async_commit();
    const uint32_t left = base + stage * T::STAGE_BYTES;
    dropout.template add<T, LEFT_ALONG_K, RIGHT_ALONG_K>(acc, left, left + T::LEFT_BYTES, warp_m, warp_n, lane);
    stage = stage + 1 == T::STAGES ? 0 : stage + 1;
    next = next + 1 == T::STAGES ? 0 : next + 1;
  }
  cp_async_wait<0>();
  __syncthreads();  // the last stage has been read: its bytes become the sums'
  const float last = scaled == steps ? scale : 1.f;
  float* sums = (float*)smem;
  UNROLL for (int i = 0; i < T::MI; i++) UNROLL for (int j = 0; j < T::NB; j++) UNROLL for (int h = 0; h < 2; h++) {
    const int row = warp_m + i * 16 + h * 8 + (lane >> 2), column = warp_n + j * 8 + (lane & 3) * 2;
    *(float2*)(sums + row * T::STRIDE + column) = make_float2(acc[i][j][2 * h] * last, acc[i][j][2 * h + 1] * last);
  }
  __syncthreads();
  return sums;
}

// Which tile a block owns: groups of eight rows of tiles, column by column within a group, so that the blocks that run
// together share operands in the L2 cache.
DEV void tile_of(int block, int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
  constexpr int GROUP = 8;
  const int group = block / (GROUP * tiles_n), rest = block % (GROUP * tiles_n), first = group * GROUP;
  const int height = tiles_m - first < GROUP ? tiles_m - first : GROUP;
  tile_m = first + rest % height;
  tile_n = rest / height;
}

constexpr int PIECES = 8, BANDS = 4;

// Which elements of x an adapter does not read: those whose word in the stream of (row, module) is below `from`; at 0 it
// reads all. What is kept is multiplied by `kept`.
struct LinearDropout {
  uint64_t module;
  uint32_t from;
  float kept;
};

// A term of the sum: left [m, depth] times right, which is [width, depth] (x W^T) or [depth, width] (dz W).
struct LinearPiece {
  const bf16* left;
  const bf16* right;
  int64_t left_stride, right_stride;  // elements
  LinearDropout dropout;
  int32_t depth;
  int32_t gathered;  // 1: `rows` names the row of left for each row of the result
};

// Columns of the result that have their terms, pieces[first..end], in common.
struct LinearBand {
  const bf16* bias;  // [width], or null
  int32_t column, width;
  int32_t first, end;
  int32_t scaled;  // after so many of its pieces the sum is multiplied by `scale`
  float scale;
};

struct LinearArgs {
  LinearPiece pieces[PIECES];
  LinearBand bands[BANDS];
  const int32_t* rows;   // [m], or null
  const RandomKey* noise;  // of every row of x; or null
  const bf16* added;     // what is added after the activation, rows as `rows` says; or null
  bf16* y;               // [m, stride], rows as `rows` says where `scattered`; or null
  bf16* z;               // [m, stride]: the sum before the activation; or null
  float* wide;           // [m, stride]: the sum in f32, instead of y; or null
  float* partial;        // [splits, m, stride]: what each split sums, to be added up; null where nothing is left to add
  int64_t stride;        // of added, y, z, wide and partial
  int32_t m, n_bands;
  int32_t activation;    // 0 none, 1 GELU by tanh, 2 GELU by erf
  int32_t scattered;
  int32_t splits;        // split s sums k in [s, s + 1) split_depth of each band's last piece; the first also the rest
  int32_t split_depth;
};

// Eight neighbouring sums of a row, of which the first `valid` exist, with what follows them, to where the result goes.
template <bool VECTOR>
DEV void finish8(const LinearArgs& a, const LinearBand& band, int m, int n, int valid, float (&v)[8]) {
  float from[8];
  if (band.bias) {
    read8<VECTOR>(from, band.bias + n, valid);
    UNROLL for (int i = 0; i < 8; i++) v[i] += from[i];
  }
  const int64_t row = a.rows ? a.rows[m] : m, column = band.column + n;
  const int64_t plain = (int64_t)m * a.stride + column, named = row * a.stride + column;
  if (a.z) write8<VECTOR>(a.z + plain, v, valid);
  if (a.activation != NONE) {
    UNROLL for (int i = 0; i < 8; i++) v[i] = activate(a.activation, v[i]);
  }
  if (a.added) {
    read8<VECTOR>(from, a.added + named, valid);
    UNROLL for (int i = 0; i < 8; i++) v[i] += from[i];
  }
  if (a.y) write8<VECTOR>(a.y + (a.scattered ? named : plain), v, valid);
  if (a.wide) write8<VECTOR>(a.wide + plain, v, valid);
}

// Eight neighbouring sums of a row: the results, or one split's part of them. Nothing outside the result.
template <bool VECTOR>
DEV void store8(const LinearArgs& a, int band_index, int split, int m, int n, float (&v)[8]) {
  const LinearBand& band = a.bands[band_index];
  const int valid = band.width - n;
  if (m >= a.m || valid <= 0) return;
  if (!a.partial) {
    finish8<VECTOR>(a, band, m, n, valid, v);
  } else {
    write8<VECTOR>(a.partial + ((int64_t)split * a.m + m) * a.stride + band.column + n, v, valid);
  }
}

// Eight neighbouring sums of a row: what so many splits left, in their order.
template <bool VECTOR>
DEV void add_splits8(const LinearArgs& a, const LinearBand& band, int splits, int m, int n, int valid, float (&sum)[8]) {
  const int64_t split = (int64_t)a.m * a.stride;
  const float* parts = a.partial + m * a.stride + band.column + n;
  float part[8];
  read8<VECTOR>(sum, parts, valid);
  UNROLL4 for (int s = 1; s < splits; s++) {
    read8<VECTOR>(part, parts + s * split, valid);
    UNROLL for (int i = 0; i < 8; i++) sum[i] += part[i];
  }
}

// Into how many splits a band's sums are cut: fewer than others where its last piece is shorter.
DEV int splits_of(const LinearArgs& a, const LinearBand& band) {
  return a.splits == 1 ? 1 : max(ceil_div(a.pieces[band.end - 1].depth, a.split_depth), 1);
}

// The piece that a split begins with.
DEV int first_of(const LinearBand& band, int split) { return split == 0 ? band.first : band.end - 1; }

// Where a piece's part of a split that begins at `begin` ends.
DEV int depth_of(const LinearArgs& a, const LinearBand& band, int piece, int begin) {
  const int depth = a.pieces[piece].depth, end = begin + a.split_depth;
  return a.splits > 1 && piece + 1 == band.end && end < depth ? end : depth;
}

// A block's place in the result.
struct Place {
  int band, m0, n0;
};

template <class T> DEV Place place_of(const LinearArgs& a) {
  int tiles_n = 0;
  for (int b = 0; b < a.n_bands; b++) tiles_n += ceil_div(a.bands[b].width, T::BN);
  int tile_m, tile_n, band = 0;
  tile_of(blockIdx.x, ceil_div(a.m, T::BM), tiles_n, tile_m, tile_n);
  for (int tiles; tile_n >= (tiles = ceil_div(a.bands[band].width, T::BN)); band++) tile_n -= tiles;
  return Place{band, tile_m * T::BM, tile_n * T::BN};
}

// A block's way through the pieces of its band.
struct Walk {
  const LinearArgs& a;
  const LinearBand& band;
  int begin, piece, k;

  DEV Walk(const LinearArgs& a, Place at)
      : a(a), band(a.bands[at.band]), begin(blockIdx.y * a.split_depth), piece(first_of(band, blockIdx.y)), k(begin) {}
  // Where the piece's part of this split ends.
  DEV int end() const { return depth_of(a, band, piece, begin); }
  DEV void advance(int step) {
    k += step;
    if (k >= end()) {
      k = begin;
      piece++;
    }
  }
};

// The sums of a block's tile. NT: right is [width, depth].
template <class T, bool NT, bool VECTOR, class Dropout>
DEV float* product(const LinearArgs& a, Place at, uint8_t* smem, Dropout&& dropout) {
  const LinearBand& band = a.bands[at.band];
  Walk walk(a, at);
  int steps = 0, scaled = 0;
  for (int p = walk.piece; p < band.end; p++) {
    steps += ceil_div(depth_of(a, band, p, walk.begin) - walk.begin, T::BK);
    if (p + 1 == band.first + band.scaled) scaled = steps;
  }
  auto load = [&](uint8_t* stage) {
    const LinearPiece& p = a.pieces[walk.piece];
    const int k = walk.k, end = walk.end();
    load_operand<T, T::BM, true, VECTOR>(stage, p.left, p.left_stride, p.gathered ? a.rows : nullptr, at.m0, a.m, k, end);
    load_operand<T, T::BN, NT, VECTOR>(stage + T::LEFT_BYTES, p.right, p.right_stride, nullptr, at.n0, band.width, k, end);
    walk.advance(T::BK);
  };
  return multiply<T, true, NT>(smem, steps, scaled, band.scale, load, dropout);
}

}  // namespace linear
