// sample: the next token of each sequence.
//
// Maths, in this order: logits of tokens in `seen` are divided by the repetition penalty where positive, else multiplied;
// those of tokens in `generated` lose the presence penalty. Greedy: the first of the largest. Else: l / temperature; the
// top_k largest and what equals the last of them; probabilities; without the smallest that together have at most
// 1 - top_p; the first token, from the largest down, at which the sum of probabilities exceeds `uniform`.
// Source of the semantics: transformers 5.x, generation/logits_process.py; presence as vLLM's.
//
// | tensor          | shape    | dtype | layout                                                       |
// |-----------------|----------|-------|--------------------------------------------------------------|
// | logits          | [B, V]   | f32   | ids from n_valid on are never chosen                         |
// | seen, generated | [B, any] | i32   | -1 and ids from n_valid on are padding                       |
// | uniform         | [B]      | f32   | in [0, 1)                                                    |
// | flags           | [B, V]   | u32   | bit 0: seen, bit 1: generated; only where there is a penalty |
// | keys, ids       | [B, V]   | u32   | the tokens that may be chosen, in the order of their ids     |
// | y               | [B]      | i32   | -1 where a logit is NaN, or none is a number                 |
//
// Numerics: penalties in f32, probabilities and their sums in f64. A NaN among the logits gives -1.
//
// Ownership: a block owns a sequence. V logits cross device memory about seven times, mostly from L2; with top_k the
// lists are short and the rest is cheap.
//
// The simple algorithm: sort, and walk. Deviations:
//  1. No sort: a key orders as its logit does, and the key at which a running sum crosses a value is found 8 bits at a
//     time, from counts or sums for each of 256 bins.
//  2. Sums of probabilities have a thread a bin, which reads the whole list: no atomic, so one order. Without top_k that
//     list has V entries, and choosing takes milliseconds.
//  3. Equal logits stand in the list in the order of their ids, in which a sort would leave them.
// Unmeasured: no GPU was at hand.
// Deterministic: atomics only on whole numbers. There is no backward.
#include "common/prim.cuh"

namespace sample {
constexpr int THREADS = 256;

struct SampleArgs {
  const float* logits;
  const int32_t* seen;
  const int32_t* generated;
  const float* uniform;
  int32_t* y;
  uint32_t* flags;
  uint32_t* keys;
  uint32_t* ids;
  int64_t v;
  int64_t n_valid;
  int64_t n_seen;
  int64_t n_generated;
  int64_t top_k;
  int32_t greedy;
  float temperature;
  float top_p;
  float repetition;
  float presence;
  int32_t pad;
};
LAYOUT(SampleArgs, logits, seen, generated, uniform, y, flags, keys, ids, v, n_valid, n_seen, n_generated, top_k, greedy, temperature,
       top_p, repetition, presence, pad);

DEV bool finite(float x) { return (__float_as_uint(x) & 0x7fffffffu) < 0x7f800000u; }
// Orders as the numbers do.
DEV uint32_t key_of(float x) {
  const uint32_t u = __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
DEV float number_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// What one block works on.
struct Row {
  const float* logits;
  uint32_t* flags;
  uint32_t* keys;
  uint32_t* ids;
};

DEV float penalised(const SampleArgs& a, const Row& row, int64_t i) {
  float l = row.logits[i];
  if (!row.flags) return l;
  const uint32_t flags = row.flags[i];
  if (flags & 1u) l = l < 0.0f ? l * a.repetition : l / a.repetition;
  if (flags & 2u) l -= a.presence;
  return l;
}

DEV void mark(const SampleArgs& a, const Row& row, const int32_t* of, int64_t n, uint32_t bit) {
  for (int64_t i = threadIdx.x; i < n; i += THREADS) {
    if (of[i] >= 0 && of[i] < a.n_valid) atomicOr(&row.flags[of[i]], bit);
  }
}

struct Best {
  float max;
  int64_t at;     // of the largest, the first; -1: none is a number
  int64_t count;  // of finite ones
  bool nan;
};

// Over all logits, in every thread. FINITE: infinities count for nothing.
template <bool FINITE> DEV Best best(const SampleArgs& a, const Row& row) {
  SHARED(float, s_max, [THREADS]);
  SHARED(int64_t, s_at, [THREADS]);
  SHARED(int64_t, s_count, [THREADS]);
  SHARED(int32_t, s_nan, [THREADS]);
  const int me = threadIdx.x;
  Best b{0.0f, -1, 0, false};
  for (int64_t i = me; i < a.n_valid; i += THREADS) {
    const float l = penalised(a, row, i);
    b.nan |= l != l;
    const bool number = finite(l);
    b.count += number;
    if (FINITE ? !number : l != l || (!number && l < 0.0f)) continue;
    if (b.at < 0 || l > b.max) b.max = l, b.at = i;
  }
  s_max[me] = b.max, s_at[me] = b.at, s_count[me] = b.count, s_nan[me] = b.nan;
  for (int half = THREADS / 2; half; half /= 2) {
    __syncthreads();
    if (me < half) {
      const int other = me + half;
      const bool take = s_at[other] >= 0 && (s_at[me] < 0 || s_max[other] > s_max[me] || (s_max[other] == s_max[me] && s_at[other] < s_at[me]));
      if (take) s_max[me] = s_max[other], s_at[me] = s_at[other];
      s_count[me] += s_count[other];
      s_nan[me] |= s_nan[other];
    }
  }
  __syncthreads();
  return Best{s_max[0], s_at[0], s_count[0], s_nan[0] != 0};
}

// The k-th largest key of the finite logits: at each step the bin that holds it.
DEV uint32_t kth_key(const SampleArgs& a, const Row& row, int64_t k) {
  SHARED(uint32_t, s_counts, [256]);
  SHARED(uint32_t, s_found, [2]);
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    s_counts[threadIdx.x] = 0;  // thread 0 has read the last step's: all waited for what it found
    __syncthreads();
    for (int64_t i = threadIdx.x; i < a.n_valid; i += THREADS) {
      const float l = penalised(a, row, i);
      const uint32_t key = key_of(l);
      if (finite(l) && ((uint64_t)key >> (shift + 8)) == prefix) atomicAdd(&s_counts[key >> shift & 255u], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t bin = 255, above = 0;
      for (; bin > 0 && (int64_t)above + s_counts[bin] < k; bin--) above += s_counts[bin];
      s_found[0] = bin, s_found[1] = above;
    }
    __syncthreads();
    prefix = prefix << 8 | s_found[0];
    k -= s_found[1];
  }
  return prefix;
}

// Lists the finite logits whose key is at least `low`; their number.
DEV int64_t list(const SampleArgs& a, const Row& row, uint32_t low) {
  SHARED(uint32_t, s_counts, [THREADS / 32]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int64_t n = 0;
  for (int64_t first = 0; first < a.n_valid; first += THREADS) {
    const int64_t i = first + threadIdx.x;
    const float l = i < a.n_valid ? penalised(a, row, i) : 0.0f;
    const bool take = i < a.n_valid && finite(l) && key_of(l) >= low;
    const uint32_t taken = __ballot_sync(0xffffffffu, take);
    __syncthreads();
    if (lane == 0) s_counts[warp] = (uint32_t)__popc(taken);
    __syncthreads();
    int64_t at = n + __popc(taken & ((1u << lane) - 1u));
    for (int w = 0; w < THREADS / 32; w++) {
      at += w < warp ? s_counts[w] : 0;
      n += s_counts[w];
    }
    if (take) row.keys[at] = key_of(l), row.ids[at] = (uint32_t)i;
  }
  __syncthreads();
  return n;
}

DEV double mass(const SampleArgs& a, uint32_t key, double max) {
  return exp((double)number_of(key) / (double)a.temperature - max);
}

struct Found {
  uint32_t id;
  double sum;  // of the masses down to this one, itself included
};

// From the largest down, the first token at which the sum of masses reaches `wanted` (STRICT: exceeds it), or the last.
template <bool STRICT> DEV Found find(const SampleArgs& a, const Row& row, int64_t n, double max, double wanted) {
  SHARED(double, s_sums, [256]);
  SHARED(uint32_t, s_counts, [256]);
  SHARED(uint32_t, s_bin, [1]);
  SHARED(double, s_above, [1]);
  uint32_t prefix = 0;
  double above = 0.0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    double sum = 0.0;
    uint32_t count = 0;
    for (int64_t i = 0; i < n; i++) {
      const uint32_t key = row.keys[i];
      if (((uint64_t)key >> (shift + 8)) == prefix && (key >> shift & 255u) == threadIdx.x) sum += mass(a, key, max), count++;
    }
    // thread 0 has read the last step's: all waited for what it found
    s_sums[threadIdx.x] = sum, s_counts[threadIdx.x] = count;
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t last = 0;
      double at_last = above, run = above;
      for (int bin = 255; bin >= 0; bin--) {
        if (!s_counts[bin]) continue;
        last = (uint32_t)bin, at_last = run;
        run += s_sums[bin];
        if (STRICT ? run > wanted : run >= wanted) break;
      }
      s_bin[0] = last, s_above[0] = at_last;
    }
    __syncthreads();
    prefix = prefix << 8 | s_bin[0];
    above = s_above[0];
  }
  Found found{0, above};
  for (int64_t i = 0; i < n; i++) {
    if (row.keys[i] != prefix) continue;
    found.id = row.ids[i];
    found.sum += mass(a, prefix, max);
    if (STRICT ? found.sum > wanted : found.sum >= wanted) break;
  }
  return found;
}

DEV double total(const SampleArgs& a, const Row& row, int64_t n, double max) {
  SHARED(double, s_sums, [THREADS]);
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += mass(a, row.keys[i], max);
  s_sums[threadIdx.x] = sum;
  for (int half = THREADS / 2; half; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < half) s_sums[threadIdx.x] += s_sums[threadIdx.x + half];
  }
  __syncthreads();
  return s_sums[0];
}
}  // namespace sample

KERNEL(sample_fwd_f32, 256, 1, const __grid_constant__ sample::SampleArgs a) {
  using namespace sample;
  const int64_t b = blockIdx.x;
  const Row row{a.logits + b * a.v, a.flags ? a.flags + b * a.v : nullptr, a.keys + b * a.v, a.ids + b * a.v};
  if (row.flags) {
    for (int64_t i = threadIdx.x; i < a.n_valid; i += THREADS) row.flags[i] = 0;
    __syncthreads();
    mark(a, row, a.seen + b * a.n_seen, a.n_seen, 1u);
    mark(a, row, a.generated + b * a.n_generated, a.n_generated, 2u);
    __syncthreads();
  }
  const Best top = a.greedy ? best<false>(a, row) : best<true>(a, row);
  int32_t chosen = (int32_t)top.at;
  if (!a.greedy && !top.nan && top.at >= 0) {
    const bool cut = a.top_k > 0 && a.top_k < top.count;
    const int64_t n = list(a, row, cut ? kth_key(a, row, a.top_k) : 0u);
    const double max = (double)top.max / (double)a.temperature;
    double sum = total(a, row, n, max);
    if (a.top_p < 1.0f) sum = find<false>(a, row, n, max, sum - (1.0 - (double)a.top_p) * sum).sum;
    chosen = (int32_t)find<true>(a, row, n, max, (double)a.uniform[b] * sum).id;
  }
  if (threadIdx.x == 0) a.y[b] = top.nan ? -1 : chosen;
}
