// cp.async: the destination is garbage from the moment of issue, the bytes arrive when the thread that issued it waits.
#include <cstring>

#include "block.h"

namespace emu {
namespace {
void arrive(const CpAsync& c) {
  uint8_t* to = block->shared + (c.destination - kSharedBase);
  memcpy(to, c.source, c.source_bytes);
  memset(to + c.source_bytes, 0, c.bytes - c.source_bytes);
}
}  // namespace

void cp_async(uint32_t destination, const void* source, uint32_t bytes, uint32_t source_bytes) {
  Thread* me = self();
  uint8_t* to = shared_at(destination, bytes, bytes, "cp.async");
  if (source_bytes && ((uintptr_t)source & (bytes - 1))) fail("cp.async: device address %p is not aligned to %u bytes", source, bytes);
  const CpAsync copy{destination, (uint16_t)bytes, (uint16_t)source_bytes, source};
  if (race_hooks) {
    race_hooks->copy_issued(me->linear, destination - kSharedBase, bytes);
    if (source_bytes) race_hooks->device_access(me->linear, (uintptr_t)source, source_bytes, false, "cp.async");
  } else if (block->options.async == kAtOnce) {
    arrive(copy);
    return;
  }
  memset(to, 0xff, bytes);
  me->used = true;
  me->copies.push_back(copy);
}

void cp_async_commit() {
  Thread* me = self();
  me->used = true;
  me->copy_groups.push_back((uint32_t)me->copies.size());
}

void cp_async_wait(uint32_t groups_left) {
  Thread* me = self();
  const size_t groups = me->copy_groups.size();
  if (groups <= groups_left) return;
  const uint32_t end = me->copy_groups[groups - groups_left - 1];
  for (; me->copies_done < end; me->copies_done++) {
    const CpAsync& c = me->copies[me->copies_done];
    arrive(c);
    if (race_hooks) race_hooks->copy_done(me->linear, c.destination - kSharedBase, c.bytes);
  }
  if (me->copies_done == me->copies.size() && groups_left == 0) {
    me->copies.clear();
    me->copy_groups.clear();
    me->copies_done = 0;
  }
}

void check_copies_done(const Thread* t) {
  if (t->copies_done < t->copies.size()) fail("the thread ends with cp.async under way");
}
}  // namespace emu
