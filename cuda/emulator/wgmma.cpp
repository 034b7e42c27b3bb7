// wgmma: the threads of a warpgroup issue without waiting for each other; an operation exists once all 128 have issued it,
// and runs at some moment between then and the first thread's wait for it. Accumulator registers are garbage from issue
// until their own thread has waited; the sums live in a tile of the warpgroup meanwhile.
#include <cstring>

#include "block.h"
#include "products.h"

namespace emu {
namespace {
constexpr uint32_t kThreads = 128, kRows = 64, kDepth = 16;

Warpgroup& group_of(const Thread* t) { return block->warpgroups[t->linear / kThreads]; }

// The sums of a slot, [64][n], aligned for vectors.
float* tile(Warpgroup& g, int slot, int n) {
  std::vector<float>& t = g.tiles[slot];
  if (t.size() < kRows * (size_t)n + 16) t.resize(kRows * (size_t)n + 16);
  return (float*)(((uintptr_t)t.data() + 63) & ~(uintptr_t)63);
}

// Registers of a thread and the tile: pairs of columns, in rows `row` and `row` + 8.
template <class Move> void each_pair(const Thread* t, int n, Move move) {
  const uint32_t in_group = t->linear % kThreads;
  const uint32_t row = in_group / 32 * 16 + in_group % 32 / 4, column = in_group % 4 * 2;
  for (int j = 0; j < n / 8; j++)
    for (uint32_t half = 0; half < 2; half++) move(j * 4 + half * 2, (row + half * 8) * (uint32_t)n + (uint32_t)j * 8 + column);
}

// Where an operand's element lies: the canonical layouts of the PTX ISA. `mn` is the row of A or the column of B.
struct Operand {
  uint32_t start, leading, stride, row_bytes;
  int swizzle;
  bool mn_major;

  Operand(uint64_t descriptor, bool transposed) : mn_major(transposed) {
    constexpr int kSwizzles[] = {0, 3, 2, 1};  // none, 128, 64, 32 bytes
    start = (uint32_t)(descriptor & 0x3fff) << 4;
    leading = (uint32_t)(descriptor >> 16 & 0x3fff) << 4;
    stride = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    swizzle = kSwizzles[descriptor >> 62];
    row_bytes = 16u << swizzle;
    if (descriptor >> 49 & 7) fail("wgmma: a base offset in a matrix descriptor is not supported");
  }
  uint32_t address(uint32_t mn, uint32_t k) const {
    uint32_t offset;
    if (!mn_major) {
      offset = swizzle ? mn / 8 * stride + mn % 8 * row_bytes + k * 2
                       : mn / 8 * stride + k / 8 * leading + mn % 8 * 16 + k % 8 * 2;
    } else {
      const uint32_t shift = 3 + (uint32_t)swizzle, columns = 1u << shift;
      offset = swizzle ? (mn >> shift) * leading + k / 8 * stride + k % 8 * row_bytes + (mn & (columns - 1)) * 2
                       : mn / 8 * stride + k / 8 * leading + k % 8 * 16 + mn % 8 * 2;
    }
    return swizzled(start + offset, swizzle);
  }
};

uint64_t mix(uint64_t hash, const uint8_t* bytes) {
  uint64_t a, b;
  memcpy(&a, bytes, 8);
  memcpy(&b, bytes + 8, 8);
  return ((hash ^ a) * 0x9E3779B97F4A7C15ull) ^ ((b ^ hash >> 32) * 0xD1B54A32D192ED03ull);
}

float widen(uint16_t bits) { return __builtin_bit_cast(float, (uint32_t)bits << 16); }

// Reads an operand of `extent` rows or columns; returns a hash of its bytes. With `values`, [16][extent] is written; with
// `check`, the reads are those of the moment of issue and are checked.
uint64_t read_operand(const Operand& o, uint32_t extent, float* values, bool check, const char* what) {
  uint64_t hashes[4] = {1, 2, 3, 4};
  const uint32_t warpgroup = self()->linear / kThreads;
  const uint8_t* const shared = block->shared;
  const bool any_unfenced = block->any_unfenced;
  SharedRange known = {0, 0};  // nearly always all pieces lie in one array
  auto piece = [&](uint32_t mn, uint32_t k) -> const uint8_t* {
    const uint32_t address = o.address(mn, k), offset = address - kSharedBase;
    if (!check) return shared + offset;
    if (__builtin_expect(offset < known.start || offset + 16 > known.end, 0)) {
      shared_at(address, 16, 16, what);
      known = shared_array_at(offset);
    }
    if (any_unfenced) check_fenced(offset, what);
    if (race_hooks) race_hooks->wgmma_read(warpgroup, offset, 16);
    return shared + offset;
  };
  const uint32_t outer = o.mn_major ? kDepth : extent, pieces = (o.mn_major ? extent : kDepth) / 8;
  for (uint32_t i = 0; i < outer; i++) {
    for (uint32_t p = 0; p < pieces; p++) {
      const uint8_t* from = o.mn_major ? piece(p * 8, i) : piece(i, p * 8);
      hashes[p & 3] = mix(hashes[p & 3], from);
      if (!values) continue;
      uint16_t eight[8];
      memcpy(eight, from, 16);
      float* to = values + (o.mn_major ? i * extent + p * 8 : p * 8 * extent + i);
      const uint32_t step = o.mn_major ? 1 : extent;
      for (uint32_t e = 0; e < 8; e++) to[e * step] = widen(eight[e]);
    }
  }
  return hashes[0] ^ hashes[1] * 3 ^ hashes[2] * 5 ^ hashes[3] * 7;
}

void execute(Warpgroup& g, WgmmaOperation& o, uint32_t number) {
  // Not thread-local: the few bytes of static thread storage that a loaded library may take are for `current`.
  float *a = block->wgmma_a, *b = block->wgmma_b;
  uint64_t a_hash = 0;
  if (o.a_in_registers) {
    for (uint32_t i = 0; i < kDepth * kRows; i++) a[i] = widen(o.a_values[i]);
    o.a_values = {};
  } else {
    a_hash = read_operand(Operand(o.a, o.a_transposed), kRows, a, false, "wgmma A");
  }
  const uint64_t b_hash = read_operand(Operand(o.b, o.b_transposed), (uint32_t)o.n, b, false, "wgmma B");
  if (a_hash != o.a_hash || b_hash != o.b_hash)
    fail("operand %s of wgmma number %u (m64n%dk16) was written while it was under way", a_hash != o.a_hash ? "A" : "B", number, o.n);
  float* d = tile(g, o.slot, o.n);
  if (!o.scale_d) memset(d, 0, kRows * (size_t)o.n * sizeof(float));
  products().wgmma(d, a, b, o.n);
}

void execute_until(Warpgroup& g, uint32_t end) {
  for (; g.executed < end; g.executed++) execute(g, g.operations[g.executed], g.executed);
}

// The slot that holds this thread's accumulator; a new one takes over the registers. A slot keeps its n: other threads may
// not have fetched their sums yet, and lie elsewhere in a tile of another width.
int accumulator_slot(Thread* me, Warpgroup& g, float* d, int n, bool scale_d) {
  WgmmaLane& lane = me->wgmma;
  int free = -1;
  for (int s = kAccumulators - 1; s >= 0; s--) {
    if (lane.registers[s] == d) return s;
    if (!lane.registers[s] && (lane.width[s] == 0 || lane.width[s] == n)) free = s;
  }
  if (free < 0) fail("wgmma: more than %d accumulators of all widths in one warpgroup", kAccumulators);
  lane.registers[free] = d;
  lane.width[free] = n;
  float* sums = tile(g, free, n);
  if (scale_d) each_pair(me, n, [&](int r, uint32_t at) { memcpy(&sums[at], d + r, 8); });
  memset(d, 0xff, (size_t)n / 2 * sizeof(float));
  return free;
}

void all_have_issued(Warpgroup& g, WgmmaOperation& o, uint32_t number) {
  g.issued = number + 1;
  if (race_hooks) race_hooks->wgmma_begin(self()->linear / kThreads);
  if (!o.a_in_registers) o.a_hash = read_operand(Operand(o.a, o.a_transposed), kRows, nullptr, true, "wgmma A");
  o.b_hash = read_operand(Operand(o.b, o.b_transposed), (uint32_t)o.n, nullptr, true, "wgmma B");
  const int async = block->options.async;
  if (async == kAtOnce || (async == kRandom && (random_bits() & 3) == 0)) execute_until(g, g.issued);
  for (size_t i = 0; i < g.waiters.size();) {
    if (g.waiters[i].second > g.issued) {
      i++;
      continue;
    }
    wake(g.waiters[i].first);
    g.waiters[i] = g.waiters.back();
    g.waiters.pop_back();
  }
}
}  // namespace

void wgmma_fence() {
  self()->used = true;
  self()->wgmma.fenced = true;
}

void wgmma_issue(float* d, int n, uint64_t a, uint64_t b, const uint32_t* a_registers, bool scale_d, bool a_transposed,
                 bool b_transposed) {
  Thread* me = self();
  Warpgroup& g = group_of(me);
  if (block->n_threads % kThreads) fail("wgmma: %d threads are not whole warpgroups", block->n_threads);
  me->used = true;
  if (!me->wgmma.fenced) fail("wgmma without a wgmma.fence since the kernel's start or the last commit");
  const uint32_t number = me->wgmma.issued++;
  const int slot = accumulator_slot(me, g, d, n, scale_d);
  if (me->wgmma.width[slot] != n) fail("wgmma: one accumulator is used with n %d and n %d", me->wgmma.width[slot], n);
  me->wgmma.last_use[slot] = number;
  const bool in_registers = a_registers != nullptr;
  if (number == g.operations.size()) {
    g.operations.push_back({n, slot, 0, a, b, scale_d, a_transposed, b_transposed, in_registers, 0, 0, {}});
    if (in_registers) g.operations.back().a_values.resize(kDepth * kRows);
  }
  WgmmaOperation& o = g.operations[number];
  const bool same = o.n == n && o.slot == slot && o.a == a && o.b == b && o.scale_d == scale_d &&
                    o.a_transposed == a_transposed && o.b_transposed == b_transposed && o.a_in_registers == in_registers;
  if (!same) fail("wgmma: the threads of a warpgroup disagree about operation %u", number);
  if (in_registers) {
    const uint32_t in_group = me->linear % kThreads;
    const uint32_t row = in_group / 32 * 16 + in_group % 32 / 4, k = in_group % 4 * 2;
    for (uint32_t q = 0; q < 4; q++) {
      const uint32_t at = (k + q / 2 * 8) * kRows + row + q % 2 * 8;
      o.a_values[at] = (uint16_t)a_registers[q];
      o.a_values[at + kRows] = (uint16_t)(a_registers[q] >> 16);
    }
  }
  if (++o.lanes == (int)kThreads) all_have_issued(g, o, number);
}

void wgmma_commit() {
  Thread* me = self();
  Warpgroup& g = group_of(me);
  me->used = true;
  const uint32_t group = me->wgmma.groups++;
  me->wgmma.fenced = false;
  if (group == g.group_ends.size()) g.group_ends.push_back(me->wgmma.issued);
  else if (g.group_ends[group] != me->wgmma.issued) fail("wgmma.commit_group: the threads of a warpgroup disagree about group %u", group);
}

void wgmma_wait(uint32_t groups_left) {
  Thread* me = self();
  Warpgroup& g = group_of(me);
  WgmmaLane& lane = me->wgmma;
  if (lane.groups <= groups_left) return;
  const uint32_t end = g.group_ends[lane.groups - groups_left - 1];
  if (end > g.issued) {
    g.waiters.push_back({me, end});
    suspend(State::Wgmma, "wgmma.wait_group", end, 0);
  }
  execute_until(g, end);
  if (race_hooks) race_hooks->wgmma_done(me->linear / kThreads, me->linear);
  for (int s = 0; s < kAccumulators; s++) {
    if (!lane.registers[s] || lane.last_use[s] >= end) continue;
    const float* sums = tile(g, s, lane.width[s]);
    float* d = lane.registers[s];
    each_pair(me, lane.width[s], [&](int r, uint32_t at) { memcpy(d + r, &sums[at], 8); });
    lane.registers[s] = nullptr;
  }
}

void check_wgmma_done(const Thread* t) {
  for (const float* d : t->wgmma.registers)
    if (d) fail("the thread ends with wgmma under way");
}
}  // namespace emu
