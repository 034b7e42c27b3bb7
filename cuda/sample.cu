// sample: the next token of each sequence.
//
// Maths, in this order: logits of tokens in `seen` are divided by the repetition penalty where positive, else multiplied;
// those of tokens in `generated` lose the presence penalty. Greedy: the first of the largest. Else: l / temperature; the
// top_k largest and what equals the last of them; probabilities; without the smallest that together have at most
// 1 - top_p; the first token, from the largest down, at which the sum of probabilities exceeds `uniform`.
// Source of the semantics: transformers 5.x, generation/logits_process.py; presence as vLLM's.
//
// | tensor          | shape         | dtype | layout                                                       |
// |-----------------|---------------|-------|--------------------------------------------------------------|
// | logits          | [B, V]        | f32   | ids from n_valid on are never chosen                         |
// | seen, generated | [B, any]      | i32   | -1 and ids from n_valid on are padding                       |
// | uniform         | [B]           | f32   | in [0, 1)                                                    |
// | keys, ids       | [B, V]        | u32   | the tokens that may be chosen, in the order of their ids     |
// | parts           | [B, chunks]   | Part  | what each chunk of V came to                                 |
// | counters        | [B]           | u32   | 0 before and after                                           |
// | y               | [B]           | i32   | -1 where a logit is NaN or +infinity, or none is a number    |
//
// Numerics: penalties in f32, probabilities and their sums in f64. NaN or +infinity among the logits gives -1;
// -infinity is never chosen.
//
// Ownership: a block owns a chunk of a sequence's V and keeps its logits in shared memory; the last to come to an end owns
// the sequence. Logits cross device memory once. With top_k each chunk lists its own k largest, since those of the whole
// are among them: what is left for the last block is short.
//
// The simple algorithm: sort, and walk. Deviations:
//  1. No sort: a key orders as its logit does, and the key at which a running sum crosses a value is found 8 bits at a
//     time, from counts or sums for each of 256 bins.
//  2. Sums of probabilities have a thread a bin, which reads the whole list: no atomic, so one order. Without top_k that
//     list has V entries, and choosing takes milliseconds.
//  3. Equal logits stand in the list in the order of their ids, in which a sort would leave them.
// Unmeasured: no GPU was at hand.
// Deterministic: atomics only on whole numbers; which block comes last decides nothing else. There is no backward.
#include "common/prim.cuh"

namespace sample {
constexpr int THREADS = 256;

constexpr int CHUNK = 4096;

// What a chunk came to: key and id of its largest, the first of equals; how many may be chosen, and how many it listed;
// whether one is NaN or +infinity.
struct Part {
  uint32_t key, id, count, listed, wrong;
};

struct SampleArgs {
  const float* logits;
  const int32_t* seen;
  const int32_t* generated;
  const float* uniform;
  int32_t* y;
  uint32_t* keys;
  uint32_t* ids;
  Part* parts;
  uint32_t* counters;
  int64_t v;
  int64_t n_valid;
  int64_t n_seen;
  int64_t n_generated;
  int64_t top_k;
  int32_t first;  // row of the launch's first sequence
  int32_t greedy;
  float temperature;
  float top_p;
  float repetition;
  float presence;
};
LAYOUT(SampleArgs, logits, seen, generated, uniform, y, keys, ids, parts, counters, v, n_valid, n_seen, n_generated, top_k,
       first, greedy, temperature, top_p, repetition, presence);

DEV bool finite(float x) { return (__float_as_uint(x) & 0x7fffffffu) < 0x7f800000u; }
// Orders as the numbers do, both zeros the same; 0 is no number's.
DEV uint32_t key_of(float x) {
  const uint32_t u = x == 0.0f ? 0u : __float_as_uint(x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
DEV float number_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// What the block that comes last works on.
struct Row {
  uint32_t* keys;
  uint32_t* ids;
};

// Marks those of a list of tokens that lie in the block's chunk, a bit each.
DEV void mark(uint32_t* bits, const int32_t* of, int64_t n, int64_t begin, int64_t end) {
  for (int64_t i = threadIdx.x; i < n; i += THREADS) {
    const int64_t at = of[i];
    if (at >= begin && at < end) atomicOr(&bits[(at - begin) >> 5], 1u << ((at - begin) & 31));
  }
}

// The larger key, of equals the smaller id; sums of the rest.
DEV Part join(const Part& a, const Part& b) {
  const bool take = b.key > a.key || (b.key == a.key && b.id < a.id);
  return {take ? b.key : a.key, take ? b.id : a.id, a.count + b.count, a.listed + b.listed, a.wrong | b.wrong};
}
// Of all threads, in every thread. Between two calls the block waits for all to have read the first's.
DEV Part join_all(const Part& mine) {
  SHARED(Part, s_parts, [THREADS]);
  const int me = threadIdx.x;
  s_parts[me] = mine;
  for (int half = THREADS / 2; half; half /= 2) {
    __syncthreads();
    if (me < half) s_parts[me] = join(s_parts[me], s_parts[me + half]);
  }
  __syncthreads();
  return s_parts[0];
}

// The k-th largest of n keys, of which 0 is none: at each step the bin that holds it.
DEV uint32_t kth_key(const uint32_t* keys, int64_t n, int64_t k) {
  SHARED(uint32_t, s_counts, [256]);
  SHARED(uint32_t, s_found, [2]);
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    s_counts[threadIdx.x] = 0;  // thread 0 has read the last step's: all waited for what it found
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += THREADS) {
      const uint32_t key = keys[i];
      if (key && ((uint64_t)key >> (shift + 8)) == prefix) atomicAdd(&s_counts[key >> shift & 255u], 1u);
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

// Lists those of n keys that are at least `low`, with their ids: `ids`, or `first` and on. How many they are. The list may
// take the place of the keys.
DEV int64_t list(const Row& row, const uint32_t* keys, const uint32_t* ids, uint32_t first, int64_t n, uint32_t low) {
  SHARED(uint32_t, s_counts, [THREADS / 32]);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int64_t listed = 0;
  for (int64_t from = 0; from < n; from += THREADS) {
    const int64_t i = from + threadIdx.x;
    const uint32_t key = i < n ? keys[i] : 0u, id = i < n && ids ? ids[i] : first + (uint32_t)i;
    const bool take = key && key >= low;
    const uint32_t taken = __ballot_sync(0xffffffffu, take);
    __syncthreads();
    if (lane == 0) s_counts[warp] = (uint32_t)__popc(taken);
    __syncthreads();
    int64_t at = listed + __popc(taken & ((1u << lane) - 1u));
    for (int w = 0; w < THREADS / 32; w++) {
      at += w < warp ? s_counts[w] : 0;
      listed += s_counts[w];
    }
    if (take) row.keys[at] = key, row.ids[at] = id;
  }
  __syncthreads();
  return listed;
}

// Brings what the chunks listed, `listed` in all, together at the front of the row: a thread every 256th, which it may read
// at once.
DEV void gather(const Row& row, const Part* parts, int64_t listed) {
  int64_t chunk = 0, before = 0;  // listed by those before it
  for (int64_t from = 0; from < listed; from += THREADS) {
    const int64_t to = from + threadIdx.x;
    uint32_t key = 0, id = 0;
    if (to < listed) {
      while (to - before >= parts[chunk].listed) before += parts[chunk++].listed;
      const int64_t at = chunk * CHUNK + to - before;
      key = row.keys[at], id = row.ids[at];
    }
    __syncthreads();  // nothing that is still to be read lies before the end of what is written now
    if (to < listed) row.keys[to] = key, row.ids[to] = id;
  }
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
  SHARED(uint32_t, s_keys, [CHUNK]);
  SHARED(uint32_t, s_seen, [CHUNK / 32]);
  SHARED(uint32_t, s_generated, [CHUNK / 32]);
  SHARED(uint32_t, s_before, [1]);
  const int64_t b = a.first + (int64_t)blockIdx.y, begin = (int64_t)blockIdx.x * CHUNK;
  const int n = (int)min((int64_t)CHUNK, a.n_valid - begin);
  const bool penalised = a.repetition != 1.0f || a.presence != 0.0f;
  const float* logits = a.logits + b * a.v + begin;
  if (penalised) {
    for (int i = threadIdx.x; i < CHUNK / 32; i += THREADS) s_seen[i] = s_generated[i] = 0;
    __syncthreads();
    mark(s_seen, a.seen + b * a.n_seen, a.n_seen, begin, begin + n);
    mark(s_generated, a.generated + b * a.n_generated, a.n_generated, begin, begin + n);
    __syncthreads();
  }
  // of the numbers each that may be chosen has a key: those that are finite
  Part part{0, 0xffffffffu, 0, 0, 0};
  UNROLL4 for (int i = threadIdx.x; i < n; i += THREADS) {
    float l = logits[i];
    if (penalised) {
      if (s_seen[i >> 5] >> (i & 31) & 1u) l = l < 0.0f ? l * a.repetition : l / a.repetition;
      if (s_generated[i >> 5] >> (i & 31) & 1u) l -= a.presence;
    }
    const bool may = finite(l);
    const uint32_t key = may ? key_of(l) : 0u;
    s_keys[i] = key;
    part.wrong |= !may && !(l < 0.0f);
    part.count += may;
    if (key > part.key) part.key = key, part.id = (uint32_t)(begin + i);
  }
  part = join_all(part);
  const Row row{a.keys + b * a.v, a.ids + b * a.v};
  if (!a.greedy) {
    const Row own{row.keys + begin, row.ids + begin};
    const uint32_t low = a.top_k > 0 && a.top_k < (int64_t)part.count ? kth_key(s_keys, n, a.top_k) : 0u;
    part.listed = (uint32_t)list(own, s_keys, nullptr, (uint32_t)begin, n, low);
  }
  Part* parts = a.parts + b * gridDim.x;
  if (threadIdx.x == 0) {  // since all of the block's list was written
    parts[blockIdx.x] = part;
    s_before[0] = arrive_counter(&a.counters[blockIdx.y], gridDim.x);
  }
  __syncthreads();
  if (s_before[0] != gridDim.x - 1) return;

  Part top{0, 0xffffffffu, 0, 0, 0};
  for (int c = threadIdx.x; c < (int)gridDim.x; c += THREADS) top = join(top, parts[c]);
  top = join_all(top);
  int32_t chosen = top.wrong || !top.key ? -1 : (int32_t)top.id;
  if (!a.greedy && chosen >= 0) {
    int64_t listed = top.listed;
    gather(row, parts, listed);
    if (a.top_k > 0 && a.top_k < (int64_t)top.count) {
      listed = list(row, row.keys, row.ids, 0, listed, kth_key(row.keys, listed, a.top_k));
    }
    const double max = (double)number_of(top.key) / (double)a.temperature;
    double sum = total(a, row, listed, max);
    if (a.top_p < 1.0f) sum = find<false>(a, row, listed, max, sum - (1.0 - (double)a.top_p) * sum).sum;
    chosen = (int32_t)find<true>(a, row, listed, max, (double)a.uniform[b] * sum).id;
  }
  if (threadIdx.x == 0) a.y[b] = chosen;
}
