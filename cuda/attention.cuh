// What the attention kernels share: their arguments, which tile of which sequence a block owns, tiles of head rows in
// shared memory, and the fragments of mma.sync m16n8k16 that are read from them.
#pragma once
#include "common/prim.cuh"

struct AttentionArgs {
  const bf16* q;
  const bf16* k;
  const bf16* v;
  const int32_t* starts;
  bf16* y;
  float* lse;
  int64_t k_stride;
  int64_t v_stride;
  int32_t tokens;
  int32_t sequences;
  int32_t heads;
  int32_t group;
  int32_t width;
  int32_t causal;
  float scale_log2;
};

struct AttentionBackwardArgs {
  const bf16* q;
  const bf16* k;
  const bf16* v;
  const int32_t* starts;
  const bf16* y;
  const float* lse;
  const bf16* dy;
  float* statistics;
  bf16* dq;
  bf16* dk;
  bf16* dv;
  int64_t k_stride;
  int64_t v_stride;
  int32_t tokens;
  int32_t sequences;
  int32_t heads;
  int32_t group;
  int32_t width;
  int32_t v_column;
  int32_t causal;
  int32_t add_dq;
  int32_t add_dk;
  int32_t add_dv;
  float scale;
  float scale_log2;
};

namespace attention {

// Both statistics of a query of a head lie together: its log2-sum-exp2, and delta = dy . y. A head's begin at a multiple
// of 16 bytes, as TMA wants them.
DEV float* statistics_of(const AttentionBackwardArgs& a, int head, int token) {
  return a.statistics + ((int64_t)head * (a.tokens + (a.tokens & 1)) + token) * 2;
}

// The statistics of two queries of a head, of which `row` of the sequence is the first and row + 8 the other, found by the
// four lanes that share them and left for the other kernel. Zeros for rows from n on. Aligned: as load_rows says.
template <bool Aligned>
DEV void find_statistics(float (&lse)[2], float (&delta)[2], const AttentionBackwardArgs& a, int head, int from, int row,
                         int n) {
  const int part = threadIdx.x & 3;
  UNROLL for (int h = 0; h < 2; h++) {
    const int query = row + h * 8;
    const bool valid = query < n;
    float sum = 0.f;
    if (valid) {
      const int64_t at = ((int64_t)(from + query) * a.heads + head) * a.width;
      if constexpr (Aligned) {
        for (int c = part * 8; c < a.width; c += 32) {
          const V4 y = *(const V4*)(a.y + at + c), dy = *(const V4*)(a.dy + at + c);
          sum = fmaf(bflo(y.x), bflo(dy.x), sum), sum = fmaf(bfhi(y.x), bfhi(dy.x), sum);
          sum = fmaf(bflo(y.y), bflo(dy.y), sum), sum = fmaf(bfhi(y.y), bfhi(dy.y), sum);
          sum = fmaf(bflo(y.z), bflo(dy.z), sum), sum = fmaf(bfhi(y.z), bfhi(dy.z), sum);
          sum = fmaf(bflo(y.w), bflo(dy.w), sum), sum = fmaf(bfhi(y.w), bfhi(dy.w), sum);
        }
      } else {
        for (int c = part; c < a.width; c += 4) sum = fmaf(bf2f(a.y[at + c]), bf2f(a.dy[at + c]), sum);
      }
    }
    delta[h] = quad_sum(sum);
    lse[h] = valid ? a.lse[(int64_t)head * a.tokens + from + query] : 0.f;
    if (valid && part == 0) *(float2*)statistics_of(a, head, from + query) = make_float2(lse[h], delta[h]);
  }
}

constexpr int kThreads = 128;           // four warps
constexpr int kTile = 64;               // queries or keys of a tile; a warp owns 16 rows of it

// What a block works on: the tokens [from, from + length) of its sequence, in tiles; it owns tile `tile`, which begins
// past the end where the block has nothing to do.
struct Span { int from, length, tile; };

// Tiles have slots: the tiles of sequence b begin at slot starts[b] * scale / rows + b. That leaves each sequence enough
// slots, empty sequences too, and finds its owner by bisection, without a table made beforehand. Every start is brought
// into [0, tokens], so that no contents of `starts` lead out of the tensors.
DEV int start_of(const int32_t* starts, int b, int tokens) { return min(max((int)starts[b], 0), tokens); }

DEV Span find_tile(const int32_t* starts, int sequences, int tokens, int scale, int rows, int slot, int& sequence) {
  int low = 0, high = sequences - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (start_of(starts, middle, tokens) * scale / rows + middle <= slot) low = middle; else high = middle - 1;
  }
  sequence = low;
  int from = start_of(starts, low, tokens);
  return {from, start_of(starts, low + 1, tokens) - from, slot - (from * scale / rows + low)};
}

// A tile of rows of one head, W elements each, in shared memory. Chunks of 16 bytes are placed so that the eight rows of
// an ldmatrix fall into different banks: by exclusive or where a row is a power of two, by a pad of 16 bytes elsewhere.
template <int W> struct Tile {
  static constexpr int kChunks = W / 8;
  static constexpr bool kPadded = (W & (W - 1)) != 0;
  static constexpr int kStride = W * 2 + (kPadded ? 16 : 0);
  static constexpr int kBytes = kTile * kStride;
  DEV static uint32_t at(int row, int chunk) {
    if (kPadded) return (uint32_t)(row * kStride + chunk * 16);
    int turn = W >= 64 ? row & 7 : (row >> 1) & 3;
    return (uint32_t)(row * kStride + ((chunk ^ turn) << 4));
  }
  // The address 2 * `pairs` chunks further along the row. Tiles begin at multiples of a row's bytes (shared_memory), so
  // that it is one operation with a constant and needs no register of its own.
  DEV static uint32_t along(uint32_t address, int pairs) {
    return kPadded ? address + pairs * 32 : address ^ (uint32_t)(pairs * 32);
  }
};

constexpr int kAlignment = 256;         // of the tiles; launches ask for as many bytes more

// The dynamic shared memory from its first multiple of kAlignment on.
DEV uint8_t* shared_memory() {
  DYN_SMEM(s_raw);
  return s_raw + (-smem_u32(s_raw) & (kAlignment - 1));
}

// Starts the copy of ROWS rows of a head; rows from `n_valid` on and columns from `width` on become zero. Aligned: rows
// begin at multiples of 16 bytes, and `width` is a multiple of 8. The rest goes element by element, and is there after
// the next barrier as well.
template <int W, int ROWS, bool Aligned>
DEV void load_rows(uint8_t* s_tile, const bf16* x, int64_t stride, int n_valid, int width) {
  if constexpr (Aligned) {
    constexpr int kChunks = Tile<W>::kChunks, kRounds = (ROWS * kChunks + kThreads - 1) / kThreads;
    uint32_t tile = smem_u32(s_tile);
    if constexpr (kThreads % kChunks == 0) {
      // a thread keeps its chunk; its rows are a multiple of 8 apart, so that their places in shared memory are too
      constexpr int kStep = kThreads / kChunks;
      const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
      const uint32_t to = tile + Tile<W>::at(row, chunk);
      const bf16* from = x + row * stride + chunk * 8;
      UNROLL for (int i = 0; i < kRounds; i++) {
        bool valid = row + i * kStep < n_valid && chunk * 8 < width;
        cp_async16(to + i * kStep * Tile<W>::kStride, valid ? from : x, valid);
        from += kStep * stride;
      }
    } else {
      UNROLL for (int i = 0; i < kRounds; i++) {
        int c = threadIdx.x + i * kThreads, row = c / kChunks, chunk = c % kChunks;
        bool valid = row < n_valid && chunk * 8 < width;
        if (row < ROWS) cp_async16(tile + Tile<W>::at(row, chunk), valid ? x + row * stride + chunk * 8 : x, valid);
      }
    }
  } else {
    UNROLL1 for (int i = threadIdx.x; i < ROWS * W; i += kThreads) {
      int row = i / W, column = i % W;
      bf16 v = {0};
      if (row < n_valid && column < width) v = x[row * stride + column];
      *(bf16*)(s_tile + Tile<W>::at(row, column >> 3) + (column & 7) * 2) = v;
    }
  }
}

// Where a lane's part of an A fragment lies: 16 rows from `row`, elements 0 to 15; along() leads to the next ones.
template <int W> DEV uint32_t a_address(uint32_t tile, int row, int lane) {
  return tile + Tile<W>::at(row + (lane & 15), lane >> 4);
}

// The same of B fragments of 16 rows, two tiles of 8: the product's columns are the tile's rows.
template <int W> DEV uint32_t b_address(uint32_t tile, int lane) {
  return tile + Tile<W>::at((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
}

// B fragments of NB tiles of 8 rows, from the address of the first.
template <int W, int NB> DEV void load_b(uint32_t (&b)[NB][2], uint32_t address) {
  static_assert(NB % 2 == 0, "two at a time");
  UNROLL for (int n = 0; n < NB / 2; n++) {
    uint32_t r[4];
    ldmatrix_x4(r, address + n * 16 * Tile<W>::kStride);
    b[n * 2][0] = r[0], b[n * 2][1] = r[1], b[n * 2 + 1][0] = r[2], b[n * 2 + 1][1] = r[3];
  }
}

// d = rows of A (16 from row `row` of tile a) times the NB * 8 rows of tile b, over the whole width.
template <int W, int NB> DEV void rows_by_rows(float (&d)[NB][4], uint32_t a_tile, int row, uint32_t b_tile, int lane) {
  UNROLL for (int i = 0; i < NB; i++) UNROLL for (int c = 0; c < 4; c++) d[i][c] = 0.f;
  const uint32_t a_at = a_address<W>(a_tile, row, lane), b_at = b_address<W>(b_tile, lane);
  UNROLL for (int kk = 0; kk < W / 16; kk++) {
    uint32_t a[4], b[NB][2];
    ldmatrix_x4(a, Tile<W>::along(a_at, kk));
    load_b<W, NB>(b, Tile<W>::along(b_at, kk));
    mma_16816_row<NB>(d, a, b);
  }
}

// The base of a row's exponentials, 2^(score - base): its largest score so far, given in units of log2, rounded up to a
// whole number. With a whole one, a row's sums shrink by powers of two where the base grows, so that the bf16 that a
// weight is rounded to does not depend on how the keys are cut into tiles.
DEV float raised(float base, float largest) { return fmaxf(base, ceilf(largest)); }

// Two weights as they enter a product.
DEV void round_weights(float& x, float& z) {
  const uint32_t pair = pack_bf16(x, z);
  x = bflo(pair), z = bfhi(pair);
}

// Accumulators of 16 rows by W columns: PARTS groups of NB tiles of 8 columns, so that no more B fragments are alive at
// once than registers allow.
template <int W> struct Rows {
  static constexpr int kParts = W > 80 ? 2 : 1, kTiles = W / 8 / kParts;
  float v[kParts][kTiles][4];
  DEV void clear() {
    UNROLL for (int p = 0; p < kParts; p++) UNROLL for (int i = 0; i < kTiles; i++) {
      UNROLL for (int c = 0; c < 4; c++) v[p][i][c] = 0.f;
    }
  }
  // += A times the 16 rows of `tile` from `row`; A is the 16 x 16 block that the accumulators x and z (columns 0 to 7 and
  // 8 to 15) of an earlier product hold, rounded.
  DEV void add_product(const float (&x)[4], const float (&z)[4], uint32_t tile, int row, int lane) {
    const uint32_t a[4] = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(z[0], z[1]), pack_bf16(z[2], z[3])};
    const uint32_t at = tile + Tile<W>::at(lane & 15, lane >> 4) + row * Tile<W>::kStride;
    UNROLL for (int p = 0; p < kParts; p++) {
      uint32_t b[kTiles][2];
      UNROLL for (int n = 0; n < kTiles / 2; n++) {
        uint32_t r[4];
        ldmatrix_x4_trans(r, Tile<W>::along(at, p * kTiles / 2 + n));
        b[n * 2][0] = r[0], b[n * 2][1] = r[1], b[n * 2 + 1][0] = r[2], b[n * 2 + 1][1] = r[3];
      }
      mma_16816_row<kTiles>(v[p], a, b);
    }
  }
  // Rows lane / 4 and lane / 4 + 8 times their factors.
  DEV void scale(float low, float high) {
    UNROLL for (int p = 0; p < kParts; p++) UNROLL for (int i = 0; i < kTiles; i++) {
      v[p][i][0] *= low, v[p][i][1] *= low, v[p][i][2] *= high, v[p][i][3] *= high;
    }
  }
};

// The part of a warp's 16 rows in the output: rows below n_valid, columns below width. The rows pass through `s_rows`
// (16 rows of a tile that this warp alone uses now), so that device memory sees whole 16-byte chunks. `add`: to what is
// there already, rounded once.
template <int W, bool Aligned>
DEV void store_rows(const Rows<W>& rows, uint8_t* s_rows, int row, bf16* y, int64_t stride, int n_valid, int width,
                    bool add, int lane) {
  constexpr int kTiles = Rows<W>::kTiles;
  if (Aligned && !add) {
    UNROLL for (int p = 0; p < Rows<W>::kParts; p++) UNROLL for (int i = 0; i < kTiles; i++) UNROLL for (int h = 0; h < 2; h++) {
      uint32_t pair = pack_bf16(rows.v[p][i][h * 2], rows.v[p][i][h * 2 + 1]);
      *(uint32_t*)(s_rows + Tile<W>::at(row + (lane >> 2) + h * 8, p * kTiles + i) + (lane & 3) * 4) = pair;
    }
    __syncwarp();
    UNROLL for (int i = 0; i < 16 * Tile<W>::kChunks / 32; i++) {
      int c = lane + i * 32, r = c / Tile<W>::kChunks, chunk = c % Tile<W>::kChunks;
      V4 v = *(const V4*)(s_rows + Tile<W>::at(row + r, chunk));
      if (r < n_valid && chunk * 8 < width) *(V4*)(y + r * stride + chunk * 8) = v;
    }
  } else {
    UNROLL for (int p = 0; p < Rows<W>::kParts; p++) UNROLL for (int i = 0; i < kTiles; i++) UNROLL for (int q = 0; q < 4; q++) {
      int r = (lane >> 2) + (q >> 1) * 8, column = (p * kTiles + i) * 8 + (lane & 3) * 2 + (q & 1);
      if (r < n_valid && column < width) {
        bf16* to = y + r * stride + column;
        *to = f2bf((add ? bf2f(*to) : 0.f) + rows.v[p][i][q]);
      }
    }
  }
}

// The columns of a tensor around `key_heads` heads of values from `column` on, of rows of one key head, become zero. Each
// key head clears its part of them, each warp of 128 threads its rows.
DEV void clear_outside(bf16* rows, int n_rows, int64_t stride, int column, int width, int key_head, int key_heads) {
  const int64_t outside = stride - (int64_t)key_heads * width;
  const int64_t low = outside * key_head / key_heads, high = outside * (key_head + 1) / key_heads;
  for (int r = threadIdx.x >> 5 & 3; r < n_rows; r += 4) {
    bf16* to = rows + r * stride;
    for (int64_t c = low + (threadIdx.x & 31); c < high; c += 32) to[c < column ? c : c + (int64_t)key_heads * width] = bf16{0};
  }
}

}  // namespace attention
