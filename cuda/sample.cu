// sample: the next token of each sequence.
//
// Maths, in this order: logits of tokens in `seen` are divided by the repetition penalty where positive, else multiplied;
// those of tokens in `generated` lose the presence penalty. Greedy: the first of the largest. Else: l / temperature; the
// top_k largest and what equals the last of them; probabilities; without the smallest that together have at most
// 1 - top_p; the first token, from the largest down, at which the sum of probabilities exceeds `uniform`.
// Source of the semantics: transformers 5.x, generation/logits_process.py; presence as vLLM's. Specification:
// src/host/sample.rs.
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
// Numerics: penalties in f32. A probability is a mass, a whole number of units of 2^-43 of the largest token's, made by an
// exponential in f64 and cut off: sums of masses are exact, and no order of adding has a say in them. NaN or +infinity among
// the logits gives -1; -infinity is never chosen, nor is a token with a mass of 0.
//
// Ownership: a block owns a chunk of a sequence's V and keeps its logits in shared memory; the last to come to an end owns
// the sequence. Logits cross device memory once. With top_k each chunk lists its own k largest, since those of the whole
// are among them: what is left for the last block is short. Without, it has V entries, which are read five times for a
// token and ten with top_p, from L2; an exponential for each once, or twice.
//
// The simple algorithm: sort, and walk. Deviations:
//  1. No sort: where a running sum reaches a value is found 11 bits of the order at a time, from the sums of 2048 bins. Of
//     the first 11, a sign, an exponent and two bits behind it, logits take dozens: few threads want one bin at once.
//  2. A sum of 64 bits is two words and a carry: shared memory adds words by itself, and 64 bits in a loop.
//  3. Equal logits come in the order of their ids, in which a sort would leave them: the id is the end of what is ordered.
// Unmeasured: no GPU was at hand.
// Deterministic: atomics only on whole numbers; which block comes last decides nothing else. There is no backward.
#include "common/prim.cuh"

namespace sample {
constexpr int THREADS = 256;

constexpr int CHUNK = 4096;
constexpr int AT_ONCE = 8;  // entries of a list that a thread reads before it needs one of them
constexpr int BIN_BITS = 11, BINS = 1 << BIN_BITS, ID_BITS = 23;
constexpr double UNIT = 8796093022208.0;  // units in a mass of 1, 2^43; V is at most 2^20

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

// A sum in two words, whoever adds first. A carry is known by the low word from before.
DEV void add(uint32_t& low, uint32_t& high, uint64_t x) {
  const uint32_t of_low = (uint32_t)x, before = atomicAdd(&low, of_low);
  const uint32_t of_high = (uint32_t)(x >> 32) + (before + of_low < before);
  if (of_high) atomicAdd(&high, of_high);
}

struct Reached {
  uint64_t place, sum;  // up to this place and with it
};

struct Bins {
  uint32_t low[BINS], high[BINS];
  uint64_t warps[THREADS / 32];
  Reached found;  // the bin; the sum of those above
};
DEV Bins& bins() {
  SHARED(Bins, s_bins, [1]);
  return s_bins[0];
}
DEV uint64_t sum_of(const Bins& s, int bin) { return (uint64_t)s.high[bin] << 32 | s.low[bin]; }

// Goes through n keys from the largest down, of equals from the smallest id, and adds up the weights: where the sum reaches
// what `wanted` makes of the sum of all, 1 to that. A place is a key and behind it the id, counted down; `BITS` are all of
// it that is looked at, from the front. A key of 0 is none.
template <int BITS, class Weight, class Wanted>
DEV Reached reach(const uint32_t* keys, const uint32_t* ids, int64_t n, Weight&& weight, Wanted&& wanted) {
  Bins& s = bins();
  constexpr int PLACE_BITS = 32 + ID_BITS, OWN = BINS / THREADS;
  const int me = threadIdx.x, lane = me & 31, warp = me >> 5;
  uint64_t prefix = 0, above = 0, target = 0;
  int shift = PLACE_BITS;
  while (shift > PLACE_BITS - BITS) {
    shift -= BIN_BITS;
    for (int bin = me; bin < BINS; bin += THREADS) s.low[bin] = s.high[bin] = 0;
    __syncthreads();
    for (int64_t from = me; from < n; from += AT_ONCE * THREADS) {
      uint32_t key[AT_ONCE], id[AT_ONCE];
      UNROLL for (int j = 0; j < AT_ONCE; j++) {
        const int64_t i = from + j * THREADS;
        key[j] = i < n ? keys[i] : 0u, id[j] = i < n && ids ? ids[i] : 0u;
      }
      UNROLL for (int j = 0; j < AT_ONCE; j++) {
        const uint64_t place = (uint64_t)key[j] << ID_BITS | ((1u << ID_BITS) - 1 - id[j]);
        if (!key[j] || place >> (shift + BIN_BITS) != prefix) continue;
        const int bin = (int)(place >> shift & (BINS - 1));
        add(s.low[bin], s.high[bin], weight(key[j]));
      }
    }
    __syncthreads();
    // a thread has neighbouring bins, the first the largest; its sum with those before it
    const int last = BINS - 1 - me * OWN;
    uint64_t own = 0;
    UNROLL for (int j = 0; j < OWN; j++) own += sum_of(s, last - j);
    uint64_t sum = own, all = above;
    UNROLL for (int distance = 1; distance < 32; distance *= 2) {
      const uint64_t before = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += before;
    }
    if (lane == 31) s.warps[warp] = sum;
    __syncthreads();
    sum += above;
    for (int w = 0; w < THREADS / 32; w++) {
      all += s.warps[w];
      if (w < warp) sum += s.warps[w];
    }
    if (shift == PLACE_BITS - BIN_BITS) target = wanted(all);
    if (sum >= target && sum - own < target) {
      int bin = last;
      sum -= own;
      for (; sum + sum_of(s, bin) < target; bin--) sum += sum_of(s, bin);
      s.found = {(uint64_t)bin, sum};
    }
    __syncthreads();
    prefix = prefix << BIN_BITS | s.found.place;
    above = s.found.sum;
  }
  const uint64_t at = sum_of(s, (int)(prefix & (BINS - 1)));
  __syncthreads();  // before the bins are used again
  return {prefix << shift, above + at};
}

// The k-th largest of n keys, of which at least k are not 0.
DEV uint32_t kth_key(const uint32_t* keys, int64_t n, int64_t k) {
  auto one = [](uint32_t) { return (uint64_t)1; };
  auto wanted = [k](uint64_t) { return (uint64_t)k; };
  return (uint32_t)(reach<32>(keys, nullptr, n, one, wanted).place >> ID_BITS);
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

// Brings what the chunks listed, `listed` in all, together at the front of the row: a thread every 256th, of which it may
// read several at once.
DEV void gather(const Row& row, const Part* parts, int64_t listed) {
  int64_t chunk = 0, before = 0;  // listed by those before it
  for (int64_t from = threadIdx.x; from - threadIdx.x < listed; from += AT_ONCE * THREADS) {
    uint32_t key[AT_ONCE], id[AT_ONCE];
    UNROLL for (int j = 0; j < AT_ONCE; j++) {
      const int64_t to = from + j * THREADS;
      if (to >= listed) break;
      while (to - before >= parts[chunk].listed) before += parts[chunk++].listed;
      const int64_t at = chunk * CHUNK + to - before;
      key[j] = row.keys[at], id[j] = row.ids[at];
    }
    __syncthreads();  // nothing that is still to be read lies before the end of what is written now
    UNROLL for (int j = 0; j < AT_ONCE; j++) {
      const int64_t to = from + j * THREADS;
      if (to < listed) row.keys[to] = key[j], row.ids[to] = id[j];
    }
  }
}

// Of a sum of masses, less than all.
DEV uint64_t share(double of, uint64_t sum) { return min((uint64_t)(of * (double)sum), sum - 1); }
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
    if (listed < a.n_valid) gather(row, parts, listed);  // else all lie where they belong
    if (a.top_k > 0 && a.top_k < (int64_t)top.count) {
      listed = list(row, row.keys, row.ids, 0, listed, kth_key(row.keys, listed, a.top_k));
    }
    const double temperature = a.temperature, max = (double)number_of(top.key) / temperature;
    auto mass = [=](uint32_t key) { return (uint64_t)(exp((double)number_of(key) / temperature - max) * UNIT); };
    auto find = [&](auto&& wanted) { return reach<32 + ID_BITS>(row.keys, row.ids, listed, mass, wanted); };
    auto drawn = [&](uint64_t sum) { return share(a.uniform[b], sum) + 1; };
    auto kept = [&](uint64_t sum) { return sum - share(1.0 - (double)a.top_p, sum); };
    const uint64_t sum = a.top_p < 1.0f ? find(kept).sum : 0;
    const Reached found = find([&](uint64_t all) { return drawn(a.top_p < 1.0f ? sum : all); });
    chosen = (1 << ID_BITS) - 1 - (int32_t)(found.place & ((1u << ID_BITS) - 1));
  }
  if (threadIdx.x == 0) a.y[b] = chosen;
}
