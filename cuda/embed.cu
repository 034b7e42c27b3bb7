// embed: a row of the table for each token, or a row of the image features in its place; and their gradients.
//
// Maths: y[t] = features[rows[t]] where rows[t] >= 0, else table[ids[t]].
//   dfeatures[rows[t]] (+)= dy[t], or dtable[ids[t]] += dy[t]
// Source of the semantics: transformers 5.x, Qwen3VLModel.forward (masked_scatter of the image embeddings).
//
// | tensor              | shape  | dtype | layout                                       |
// |---------------------|--------|-------|----------------------------------------------|
// | ids                 | [T]    | i32   | below V                                      |
// | rows                | [T]    | i32   | below U, or -1; absent: no images            |
// | table               | [V, D] | bf16  | 16-byte aligned                              |
// | features, dfeatures | [U, D] | bf16  |                                              |
// | y, dy               | [T, D] | bf16  |                                              |
// | dtable              | [V, D] | f32   | added to; absent where frozen                |
//
// Numerics: forward copies bits. Backward sums in f32 in the order of the tokens and rounds once where the gradient is
// bf16. NaN in gives NaN out.
//
// Ownership: forward, a thread owns 8 neighbouring columns of a token, or one where D is no multiple of 8; every number
// crosses device memory once. Backward, a block owns 256 columns of the row that its token names, a thread one column.
//
// The simple algorithm: for each token add its gradient to its row. Deviation: tokens that name the same row must be
// added in order, so the first of them does it for all; the others' blocks end at once. A block finds them by reading all
// T numbers of ids, 256 at a time, and keeps one bit a token.
// Deterministic: one thread adds to an element, in the order of the tokens.
#include "common/prim.cuh"
#include "common/rows.cuh"

namespace embed {
struct EmbedArgs {
  const int32_t* ids;
  const int32_t* rows;
  const bf16* table;
  const bf16* features;
  bf16* y;
  int64_t t;
  int64_t d;
};
LAYOUT(EmbedArgs, ids, rows, table, features, y, t, d);

struct EmbedBackwardArgs {
  const int32_t* ids;
  const int32_t* rows;
  const bf16* dy;
  float* dtable;
  bf16* dfeatures;
  int64_t t;
  int64_t d;
  int64_t add;
};
LAYOUT(EmbedBackwardArgs, ids, rows, dy, dtable, dfeatures, t, d, add);

template <int N> DEV void forward(const EmbedArgs& a) {
  const int64_t pieces = a.d / N, i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  if (i >= a.t * pieces) return;
  const int64_t token = i / pieces, c = i % pieces * N;
  const int32_t row = a.rows ? a.rows[token] : -1;
  const bf16* from = row >= 0 ? a.features + row * a.d : a.table + (int64_t)a.ids[token] * a.d;
  if constexpr (N == 8) *(V4*)(a.y + token * a.d + c) = *(const V4*)(from + c);
  else a.y[token * a.d + c] = from[c];
}

// Which row a token's gradient goes to: features count from -1 down.
DEV int32_t target(const EmbedBackwardArgs& a, int64_t token) {
  const int32_t row = a.rows ? a.rows[token] : -1;
  return row >= 0 ? -1 - row : a.ids[token];
}
}  // namespace embed

KERNEL(embed_fwd_bf16, 256, 1, const __grid_constant__ embed::EmbedArgs a) {
  if (a.d % 8 == 0) embed::forward<8>(a);
  else embed::forward<1>(a);
}

// Block (token, 256 columns).
KERNEL(embed_bwd_bf16, 256, 1, const __grid_constant__ embed::EmbedBackwardArgs a) {
  SHARED(uint32_t, s_same, [8]);  // a bit for each of 256 tokens
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int64_t own = blockIdx.x, c = (int64_t)blockIdx.y * 256 + threadIdx.x;
  const int32_t to = embed::target(a, own);
  if (to < 0 ? !a.dfeatures : !a.dtable) return;
  float* table = to < 0 ? nullptr : a.dtable + (int64_t)to * a.d + c;
  bf16* features = to < 0 ? a.dfeatures + (int64_t)(-1 - to) * a.d + c : nullptr;
  float sum = 0.0f;
  for (int64_t first = 0; first < a.t; first += 256) {
    const int64_t token = first + threadIdx.x;
    const uint32_t same = __ballot_sync(0xffffffffu, token < a.t && embed::target(a, token) == to);
    __syncthreads();
    if (lane == 0) s_same[warp] = same;
    __syncthreads();
    for (int w = 0; w < 8; w++) {
      for (uint32_t bits = s_same[w]; bits; bits &= bits - 1) {
        const int64_t with = first + w * 32 + __ffs((int)bits) - 1;
        if (with < own) return;  // that token's block does it; all threads see the same
        if (c >= a.d) continue;
        // the row is this block's alone, and only now that is known: no other block writes what is read here
        if (with == own && table) sum = *table;
        if (with == own && features && a.add) sum = bf2f(*features);
        sum += bf2f(a.dy[with * a.d + c]);
      }
    }
  }
  if (c >= a.d) return;
  if (table) *table = sum;
  else *features = f2bf(sum);
}
