// What drops out of the products of an adapter: A reads x with some of its elements left out and the others multiplied by
// 1 / (1 - p), each by the word of its own (row's key, module, column), as src/host/dropout.rs has it.
//
//   s = (x o keep) A^T       x is the left operand: its elements become zero once they lie in shared memory
//   dA += ds^T (x o keep)    x is the right operand: as above
//   dx += (ds A) o keep      here it is sums that become zero, those of one adapter before they join the rest
//
// In operands an element is only left out, which bf16 does exactly; the factor 1 / (1 - p) multiplies the f32 sum. What is
// left out is multiplied by zero, not overwritten: NaN in gives NaN out.
// Words are drawn again wherever they are needed, four at a time, so no mask is ever stored.
#pragma once
#include "linear_product.cuh"

namespace linear {

// An operand whose rows, ROWS in a step with COLUMNS elements each, are rows of x: each thread leaves out of the chunks that
// it has loaded itself (see load_operand).
template <class T, int ROWS, int COLUMNS> struct DroppedOperand {
  static constexpr int CHUNKS = COLUMNS / 8, EACH = ROWS * CHUNKS / T::THREADS;
  RandomKey keys[EACH];  // of the rows of this thread's chunks

  // `rows`, where not null, names the row of x for each row; those from rows_n on hold nothing.
  DEV void begin(uint64_t module, const RandomKey* noise, const int32_t* rows, int row0, int rows_n) {
    UNROLL for (int i = 0; i < EACH; i++) {
      const int row = row0 + ((int)threadIdx.x + i * T::THREADS) / CHUNKS;
      if (row < rows_n) keys[i] = random_key(noise[rows ? rows[row] : row], module);
    }
  }
  DEV void leave_out(uint8_t* operand, uint32_t from, int column0, int row0, int rows_n) const {
    UNROLL for (int i = 0; i < EACH; i++) {
      const int c = (int)threadIdx.x + i * T::THREADS, r = c / CHUNKS, chunk = c % CHUNKS;
      if (row0 + r >= rows_n) continue;
      const int block = (column0 + chunk * 8) / 4;
      const uint32_t kept = random_kept(keys[i], block, from) | random_kept(keys[i], block + 1, from) << 4;
      V4* at = (V4*)(operand + swizzled<CHUNKS>(r, chunk));
      const V4 v = *at;
      uint32_t words[4] = {v.x, v.y, v.z, v.w};
      UNROLL for (int w = 0; w < 4; w++) {
        const float low = kept >> (2 * w) & 1 ? 1.f : 0.f, high = kept >> (2 * w + 1) & 1 ? 1.f : 0.f;
        words[w] = pack_bf16(bflo(words[w]) * low, bfhi(words[w]) * high);
      }
      *at = V4{words[0], words[1], words[2], words[3]};
    }
  }
};

// The product x A^T: elements of its left operand drop out.
template <class T> struct DroppedLeft : Undropped {
  Walk walk;
  int m0;
  DroppedOperand<T, T::BM, T::BK> x;

  DEV DroppedLeft(const LinearArgs& a, Place at) : walk(a, at), m0(at.m0) {}
  DEV void arrived(uint8_t* stage) {
    const LinearArgs& a = walk.a;
    const LinearDropout& d = a.pieces[walk.piece].dropout;
    if (d.from) {
      if (walk.k == walk.begin) x.begin(d.module, a.noise, a.rows, m0, a.m);
      x.leave_out(stage, d.from, walk.k, m0, a.m);
    }
    walk.advance(T::BK);
  }
};

// Which sums of 16 rows and NB tiles of 8 columns are kept: bit 4 j + q is that of tile j's sum q, as a lane of mma_16816 or
// wgmma holds them: row lane / 4 + 8 (q / 2), column 2 (lane % 4) + q % 2. `key` is that of row lane / 4 in even lanes and of
// row lane / 4 + 8 in odd ones: a lane and its neighbour need the same words of both rows, and each draws those of one.
template <int NB> DEV uint32_t kept_sums(RandomKey key, int column0, uint32_t from, int lane) {
  static_assert(NB <= 8, "32 bits");
  constexpr uint32_t LOW = 0x33333333u;  // the first two words of each block
  uint32_t own = 0;
  UNROLL4 for (int j = 0; j < NB; j++) {  // more at once would cost registers
    own |= random_kept(key, (column0 + 8 * j + 4 * (lane >> 1 & 1)) / 4, from) << (4 * j);
  }
  const uint32_t other = __shfl_xor_sync(0xffffffffu, own, 1);
  return lane & 1 ? (other >> 2 & LOW) | (own & ~LOW) : (own & LOW) | (other & LOW) << 2;
}
// The row of 16 whose key a lane has to give for that.
DEV int kept_row(int lane) { return (lane >> 2) + 8 * (lane & 1); }

// The key of a row of the result; of none beyond it.
DEV RandomKey key_of(const LinearArgs& a, uint64_t module, int row) {
  return row < a.m ? random_key(a.noise[a.rows ? a.rows[row] : row], module) : RandomKey{{0, 0}};
}

// The product dz W + (ds A) o keep: sums of some pieces drop out.
template <class T> struct DroppedSums : Undropped {
  Walk walk;
  Place at;

  DEV DroppedSums(const LinearArgs& a, Place at) : walk(a, at), at(at) {}
  template <class, bool LEFT_ALONG_K, bool RIGHT_ALONG_K>
  DEV void add(Sums<T>& acc, uint32_t left, uint32_t right, int warp_m, int warp_n, int lane) {
    const LinearDropout& d = walk.a.pieces[walk.piece].dropout;
    if (d.from) {
      uint32_t kept[T::MI];
      UNROLL for (int i = 0; i < T::MI; i++) {
        const RandomKey key = key_of(walk.a, d.module, at.m0 + warp_m + i * 16 + kept_row(lane));
        kept[i] = kept_sums<T::NB>(key, at.n0 + warp_n, d.from, lane);
      }
      Sums<T> v;
      UNROLL for (int i = 0; i < T::MI; i++) UNROLL for (int j = 0; j < T::NB; j++) UNROLL for (int q = 0; q < 4; q++) {
        v[i][j][q] = 0.f;
      }
      multiply_step<T, LEFT_ALONG_K, RIGHT_ALONG_K>(v, left, right, warp_m, warp_n, lane);
      UNROLL for (int i = 0; i < T::MI; i++) UNROLL for (int j = 0; j < T::NB; j++) UNROLL for (int q = 0; q < 4; q++) {
        acc[i][j][q] = fmaf(v[i][j][q], kept[i] >> (4 * j + q) & 1 ? d.kept : 0.f, acc[i][j][q]);
      }
    } else {
      multiply_step<T, LEFT_ALONG_K, RIGHT_ALONG_K>(acc, left, right, warp_m, warp_n, lane);
    }
    walk.advance(T::BK);
  }
};

}  // namespace linear
