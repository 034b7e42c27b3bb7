// TMA: tiles of 1 to 5 dimensions between device and shared memory, by tensor maps.
//
// A load makes its whole box garbage at issue; the data arrives after a random number of ticks, or only when no thread can
// run. A store takes a copy of its source at issue, reads it again when the thread waits, and complains of a difference.
#include <cstring>

#include "block.h"

namespace emu {
namespace {
constexpr uint64_t kMapMagic = 0x70616d2d756d65ull;

const Map& map_at(const void* p, int rank, const char* what) {
  const Map* m = static_cast<const Map*>(p);
  if ((uintptr_t)p & 127) fail("%s: the tensor map is not aligned to 128 bytes", what);
  if (m->magic != kMapMagic) fail("%s: not an encoded tensor map", what);
  if (m->rank != rank) fail("%s: %d coordinates for a tensor map of rank %u", what, rank, m->rank);
  return *m;
}

// PTX ISA, "Bounding Box": its address is a multiple of 16 bytes. Base and strides are (the map was encoded), so the first
// coordinate decides.
void check_corner(const Map& m, const int* corner, const char* what) {
  const int64_t at = (int64_t)corner[0] * m.element_bytes;
  if (at & 15) fail("%s: the box begins %lld bytes into its row, no multiple of 16", what, (long long)at);
}

uint32_t box_bytes(const Map& m) {
  uint32_t bytes = m.element_bytes;
  for (int i = 0; i < m.rank; i++) bytes *= m.box[i];
  return bytes;
}

// Bytes [from, to) of the row of the box that lie in the tensor, and the row's device address; null outside.
template <class Visit> void each_row(const Map& m, const int* corner, Visit visit) {
  uint32_t extent[5] = {1, 1, 1, 1, 1};
  for (int d = 1; d < m.rank; d++) extent[d] = m.box[d];
  const uint32_t rows = extent[1] * extent[2] * extent[3] * extent[4];
  for (uint32_t row = 0; row < rows; row++) {
    uint32_t rest = row;
    uint64_t offset = 0;
    bool inside = true;
    for (int d = 1; d < m.rank; d++) {
      const int64_t at = (int64_t)corner[d] + rest % extent[d];
      rest /= extent[d];
      inside = inside && at >= 0 && (uint64_t)at < m.dims[d];
      if (inside) offset += (uint64_t)at * m.strides[d - 1];
    }
    const int64_t first = corner[0], size = m.element_bytes, width = (int64_t)m.dims[0];
    const int64_t from = first < 0 ? -first : 0, to = width - first < m.box[0] ? width - first : m.box[0];
    if (!inside || from >= to) visit(row, nullptr, 0u, 0u);
    else visit(row, (uint8_t*)m.base + offset + (first + from) * size, (uint32_t)(from * size), (uint32_t)(to * size));
  }
}

// The shared bytes of a box in its own order, 16 at a time: the swizzle moves pieces of that size.
template <class Visit> void each_piece(const Map& m, uint32_t address, Visit visit) {
  for (uint32_t at = 0, bytes = box_bytes(m); at < bytes; at += 16)
    visit(at, block->shared + (swizzled(address + at, m.swizzle) - kSharedBase));
}

void check_place(const Map& m, uint32_t address, const char* what) {
  const uint32_t alignment = m.swizzle ? 128u << m.swizzle : 128;
  shared_at(address, box_bytes(m), alignment, what);
}

void deliver(const TmaLoad& load) {
  const Map& m = load.map;
  const uint32_t row_bytes = (uint32_t)m.box[0] * m.element_bytes, bytes = box_bytes(m);
  std::vector<uint8_t> box(bytes, 0);
  each_row(m, load.corner, [&](uint32_t row, const uint8_t* from, uint32_t start, uint32_t end) {
    if (from) memcpy(&box[row * row_bytes + start], from, end - start);
  });
  each_piece(m, load.destination, [&](uint32_t at, uint8_t* to) {
    for (int i = 0; i < 16; i++)
      if (to[i] != 0xff)
        fail_block("shared address 0x%x was written while a TMA load into it was under way", swizzled(load.destination + at, m.swizzle));
    memcpy(to, &box[at], 16);
  });
  if (race_hooks) race_hooks->load_done(load.destination - kSharedBase, bytes, load.barrier);
  complete_bytes(load.barrier, bytes);
}

TmaLoad take(size_t i) {
  auto& loads = block->loads;
  const TmaLoad load = loads[i];
  loads[i] = loads.back();
  loads.pop_back();
  return load;
}

void find_next_due() {
  block->next_due = block->counter_waiters.empty() ? ~0ull : block->tick + kLook;
  for (const TmaLoad& l : block->loads)
    if (l.due < block->next_due) block->next_due = l.due;
}

void gather(const BulkStore& s, bool check, std::vector<uint8_t>& out) {
  out.resize(box_bytes(s.map));
  each_piece(s.map, s.source, [&](uint32_t at, const uint8_t* from) {
    if (check && block->any_unfenced) check_fenced((uint32_t)(from - block->shared), "a TMA store");
    memcpy(&out[at], from, 16);
  });
}

void read_source(BulkStore& s) {
  if (s.read_done) return;
  gather(s, false, s.data);
  s.read_done = true;
  if (s.data != s.at_issue) fail("shared memory at 0x%x was written while a TMA store from it was under way", s.source);
}

void write_out(const BulkStore& s) {
  const uint32_t row_bytes = (uint32_t)s.map.box[0] * s.map.element_bytes;
  each_row(s.map, s.corner, [&](uint32_t row, uint8_t* to, uint32_t start, uint32_t end) {
    if (!to) return;
    if (race_hooks) race_hooks->device_access(self()->linear, (uintptr_t)to, end - start, true, "a TMA store");
    const uint8_t* from = &s.data[row * row_bytes + start];
    if (!s.add_f32) memcpy(to, from, end - start);
    else for (uint32_t i = 0; i < (end - start) / 4; i++) ((float*)to)[i] += ((const float*)from)[i];
  });
}

// The store is under way: its source may not change any more.
void issue_store(const Map& m, uint32_t source, const int* corner, bool add_f32) {
  Thread* me = self();
  if (race_hooks) race_hooks->store_issued(me->linear, me->store_groups, source - kSharedBase, box_bytes(m));
  me->used = true;
  me->stores.push_back({m, source, me->store_groups, {}, add_f32, false, {}, {}});
  BulkStore& s = me->stores.back();
  memcpy(s.corner, corner, sizeof(int) * m.rank);
  gather(s, true, s.at_issue);
}
}  // namespace

void deliver_due_loads() {
  for (size_t i = 0; i < block->loads.size();) {
    if (block->loads[i].due > block->tick) i++;
    else deliver(take(i));
  }
  find_next_due();
}
void deliver_some_load() {
  deliver(take(random_bits() % block->loads.size()));
  find_next_due();
}

void tma_load(uint32_t destination, const void* map, uint32_t barrier, int rank, const int* corner) {
  const Map& m = map_at(map, rank, "TMA load");
  mbarrier_at(barrier, "TMA load");
  check_mbarrier_published(barrier);
  check_place(m, destination, "TMA load");
  check_corner(m, corner, "TMA load");
  const uint32_t bytes = box_bytes(m);
  if (race_hooks) {
    race_hooks->load_issued(self()->linear, destination - kSharedBase, bytes, barrier);
    each_row(m, corner, [&](uint32_t, const uint8_t* from, uint32_t start, uint32_t end) {
      if (from) race_hooks->device_access(self()->linear, (uintptr_t)from, end - start, false, "a TMA load");
    });
  }
  for (const TmaLoad& other : block->loads)
    if (destination < other.destination + box_bytes(other.map) && other.destination < destination + bytes)
      fail("TMA load into shared address 0x%x while another one into it is under way", destination);
  memset(block->shared + (destination - kSharedBase), 0xff, bytes);
  TmaLoad load{m, destination, barrier, {}, ~0ull};
  memcpy(load.corner, corner, sizeof(int) * (size_t)rank);
  if (block->options.async == kAtOnce) return deliver(load);
  const uint64_t r = random_bits();
  if (block->options.async == kRandom && (r & 3)) load.due = block->tick + 1 + (r >> 8) % ((r & 3) == 1 ? 4 : 3000);
  block->loads.push_back(load);
  if (load.due < block->next_due) block->next_due = load.due;
}

void tma_store(const void* map, uint32_t source, int rank, const int* corner) {
  const Map& m = map_at(map, rank, "TMA store");
  check_place(m, source, "TMA store");
  check_corner(m, corner, "TMA store");
  // CUDA Programming Guide, on writes from shared memory: the rest of a box may lie outside, its corner may not be negative
  for (int d = 0; d < rank; d++)
    if (corner[d] < 0) fail("TMA store: a box that begins at coordinate %d of dimension %d", corner[d], d);
  issue_store(m, source, corner, false);
}

// Like a box of one row that the tensor ends with.
void bulk_store(void* destination, uint32_t source, uint32_t bytes, bool add_f32) {
  const char* what = add_f32 ? "bulk add" : "bulk store";
  if (bytes == 0 || bytes & 15) fail("%s: %u bytes are no multiple of 16", what, bytes);
  if ((uintptr_t)destination & 15) fail("%s: %p is not aligned to 16 bytes", what, destination);
  shared_at(source, bytes, 16, what);
  if (self()->unfenced_counter) fail("%s after a wait for a counter, without a fence.proxy.async.global between them", what);
  Map m = {};
  m.base = (uint64_t)destination;
  m.rank = 1;
  m.element_bytes = 16;
  m.dims[0] = m.box[0] = (uint16_t)(bytes / 16);
  const int corner[1] = {0};
  issue_store(m, source, corner, add_f32);
}

void bulk_commit() {
  self()->used = true;
  self()->store_groups++;
}

void bulk_wait(uint32_t groups_left, bool only_reads) {
  Thread* me = self();
  if (me->store_groups <= groups_left) return;
  const uint32_t end = me->store_groups - groups_left;
  std::vector<BulkStore> rest;
  for (BulkStore& s : me->stores) {
    if (s.group < end) read_source(s);
    if (s.group < end && !only_reads) write_out(s);
    else rest.push_back(std::move(s));
  }
  me->stores = std::move(rest);
  if (race_hooks) race_hooks->store_read(me->linear, end);
}

void finish_stores(Thread* t) {
  for (const BulkStore& s : t->stores) {
    if (s.group >= t->store_groups) fail("the thread ends with a TMA store that was never committed");
    if (!s.read_done) fail("the thread ends while a TMA store still reads shared memory");
  }
  bulk_wait(0, false);
}
}  // namespace emu

// Refuses what cuTensorMapEncodeTiled refuses.
extern "C" int vlm_emu_tensor_map(void* out128, uint32_t dtype, uint32_t rank, uint64_t address, const uint64_t* dims,
                                  const uint64_t* strides_bytes, const uint32_t* box, uint32_t swizzle) {
  using namespace emu;
  // CU_TENSOR_MAP_DATA_TYPE_: UINT8, UINT16, UINT32, INT32, UINT64, INT64, FLOAT16, FLOAT32, FLOAT64, BFLOAT16.
  constexpr uint8_t element_bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
  if (dtype >= sizeof element_bytes || rank < 1 || rank > 5 || swizzle > 3) return 1;
  if (address == 0 || address & 15 || (uintptr_t)out128 & 127) return 1;
  Map m = {};
  m.magic = kMapMagic;
  m.base = address;
  m.rank = (uint8_t)rank;
  m.element_bytes = element_bytes[dtype];
  m.swizzle = (uint8_t)swizzle;
  uint64_t below = dims[0] * m.element_bytes;   // what the dimensions so far span: a stride must not cut into it
  for (uint32_t d = 0; d < rank; d++) {
    if (dims[d] == 0 || dims[d] > 1ull << 32 || box[d] == 0 || box[d] > 256) return 1;
    m.dims[d] = dims[d];
    m.box[d] = (uint16_t)box[d];
    if (d == 0) continue;
    const uint64_t stride = strides_bytes[d - 1];
    if (stride & 15 || stride >= 1ull << 40 || stride < below) return 1;
    below = stride * dims[d];
    m.strides[d - 1] = stride;
  }
  const uint32_t row_bytes = box[0] * m.element_bytes;
  // The driver takes narrower rows with a swizzle as well; what they look like in shared memory is not modelled.
  if (row_bytes & 15 || (swizzle && row_bytes != 16u << swizzle)) return 1;
  if (box_bytes(m) > kSharedLimit) return 1;
  memset(out128, 0, 128);
  memcpy(out128, &m, sizeof m);
  return 0;
}
