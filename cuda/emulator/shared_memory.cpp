// The shared memory of a block: an arena between guard pages. Static arrays lie at its start with red zones between them,
// the dynamic bytes at its end, a few of 16 bytes away from it so that nobody gets an alignment that was not asked for.
// Everything is filled with 0xff (NaN) when a block begins.
#include <cstring>

#include "block.h"

namespace emu {
void begin_shared(Block* b, uint32_t dynamic_bytes) {
  b->statics.clear();
  b->static_end = 0;
  if (b->any_unfenced) {
    b->unfenced.assign(b->unfenced.size(), 0);
    b->any_unfenced = false;
  }
  const uint32_t after = 16 * (1 + 2 * (uint32_t)(random_bits() % 4));  // 16, 48, 80 or 112
  b->dynamic_bytes = dynamic_bytes;
  b->dynamic_offset = kSharedBytes - after - ((dynamic_bytes + 15) & ~15u);
  const uint32_t end = b->dynamic_offset + dynamic_bytes;
  unpoison(b->shared, kSharedBytes);
  if (dynamic_bytes) {
    memset(b->shared + b->dynamic_offset - kRedZone, kRedZoneByte, kRedZone);
    memset(b->shared + b->dynamic_offset, 0xff, dynamic_bytes);
    memset(b->shared + end, kRedZoneByte, kSharedBytes - end);
  }
  poison(b->shared, kSharedBytes);
  unpoison(b->shared + b->dynamic_offset, dynamic_bytes);
}

const char* end_shared(Block* b) {
  unpoison(b->shared, kSharedBytes);
  auto written = [&](uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; i++)
      if (b->shared[i] != kRedZoneByte) return true;
    return false;
  };
  for (const StaticArray& a : b->statics) {
    const uint32_t end = a.offset + a.bytes;
    if (written(a.offset - kRedZone, a.offset) || written(end, end + kRedZone)) return a.name;
  }
  if (b->dynamic_bytes) {
    const uint32_t end = b->dynamic_offset + b->dynamic_bytes;
    if (written(b->dynamic_offset - kRedZone, b->dynamic_offset) || written(end, kSharedBytes)) return "that is dynamic";
  }
  return nullptr;
}

void* static_shared(const void* tag, const char* name, size_t bytes, size_t alignment) {
  for (const StaticArray& a : block->statics)
    if (a.tag == tag) return block->shared + a.offset;
  const uint32_t offset = (uint32_t)((block->static_end + kRedZone + alignment - 1) & ~(alignment - 1));
  const uint32_t end = offset + (uint32_t)bytes;
  if (end + kRedZone + block->dynamic_bytes > kSharedLimit)
    fail("shared memory: %u bytes of static and %u of dynamic arrays are more than %u", end, block->dynamic_bytes, kSharedLimit);
  unpoison(block->shared + offset - kRedZone, bytes + 2 * kRedZone);
  memset(block->shared + offset - kRedZone, kRedZoneByte, kRedZone);
  memset(block->shared + end, kRedZoneByte, kRedZone);
  poison(block->shared + offset - kRedZone, kRedZone);
  poison(block->shared + end, kRedZone);
  memset(block->shared + offset, 0xff, bytes);
  block->static_end = end;
  block->statics.push_back({tag, name, offset, (uint32_t)bytes});
  return block->shared + offset;
}

void* dynamic_shared() { return block->shared + block->dynamic_offset; }

SharedRange shared_array_at(uint32_t offset) {
  const uint32_t dynamic = block->dynamic_offset;
  if (offset >= dynamic && offset - dynamic < block->dynamic_bytes) return {dynamic, dynamic + block->dynamic_bytes};
  for (const StaticArray& a : block->statics)
    if (offset >= a.offset && offset - a.offset < a.bytes) return {a.offset, a.offset + a.bytes};
  return {0, 0};
}

bool in_shared_array(uint32_t offset, uint32_t bytes) {
  const SharedRange array = shared_array_at(offset);
  return array.end && offset + (uint64_t)bytes <= array.end;
}

uint8_t* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what) {
  const uint32_t offset = address - kSharedBase;
  if (__builtin_expect(!in_shared_array(offset, bytes), 0))
    fail("%s: %u bytes at shared address 0x%x are not inside one of the block's shared arrays", what, bytes, address);
  if (__builtin_expect(address & (alignment - 1), 0))
    fail("%s: shared address 0x%x is not aligned to %u bytes", what, address, alignment);
  return block->shared + offset;
}

void mark_unfenced(uint32_t offset, uint32_t bytes, const Thread* writer) {
  block->any_unfenced = true;
  for (uint32_t i = offset >> 4, end = (offset + bytes + 15) >> 4; i < end; i++)
    block->unfenced[i] = (uint64_t)(writer->linear + 1) << 32 | writer->proxy_epoch;
}

// Whether a reader of the asynchronous proxy may see what was last written here through the generic one.
void check_fenced(uint32_t offset, const char* what) {
  const uint64_t last = block->unfenced[offset >> 4];
  if (!last) return;
  const uint32_t writer = (uint32_t)(last >> 32) - 1;
  if (block->threads[writer].proxy_epoch == (uint32_t)last)
    fail("%s reads shared address 0x%x, which thread %u wrote without a fence.proxy.async after it", what,
         offset + kSharedBase, writer);
}
}  // namespace emu
