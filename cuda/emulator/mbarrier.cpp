// mbarriers, in the 8 bytes of shared memory that the kernel gave them: bit 0 phase, 1-7 a mark that tells an initialised
// one, 8-19 count, 20-31 pending arrivals, 32-63 bytes still expected. Waiting threads are woken, never polled.
#include <cstdio>
#include <cstring>

#include "block.h"

namespace emu {
namespace {
constexpr uint64_t kMark = 0x55ull << 1, kMarkMask = 0x7full << 1;

uint32_t phase(uint64_t v) { return (uint32_t)v & 1; }
uint32_t count(uint64_t v) { return (uint32_t)(v >> 8) & 0xfff; }
uint32_t pending(uint64_t v) { return (uint32_t)(v >> 20) & 0xfff; }
int32_t expected_bytes(uint64_t v) { return (int32_t)(v >> 32); }
uint64_t fresh(uint32_t phase, uint32_t count) { return phase | kMark | (uint64_t)count << 8 | (uint64_t)count << 20; }

void end_phase_if_complete(uint32_t address, uint64_t* v) {
  if (pending(*v) || expected_bytes(*v)) return;
  const uint32_t ended = phase(*v);
  *v = fresh(ended ^ 1, count(*v));
  if (race_hooks) race_hooks->mbarrier_phase(address);
  auto& waiters = block->mbarrier_waiters;
  for (size_t i = 0; i < waiters.size();) {
    if (waiters[i].address != address || waiters[i].parity != ended) {
      i++;
      continue;
    }
    wake(waiters[i].thread);
    waiters[i] = waiters.back();
    waiters.pop_back();
  }
}

MbarrierRecord* record(uint32_t address) {
  for (MbarrierRecord& r : block->mbarriers)
    if (r.address == address) return &r;
  return nullptr;
}

uint64_t* raw(uint32_t address, const char* what, bool write) {
  uint64_t* v = (uint64_t*)shared_at(address, 8, 8, what);
  if (race_hooks && current) race_hooks->shared_access(self()->linear, address - kSharedBase, 8, write, what);
  return v;
}
}  // namespace

uint64_t* mbarrier_at(uint32_t address, const char* what) {
  uint64_t* v = raw(address, what, false);
  if ((*v & kMarkMask) != kMark || !record(address)) fail("%s: 0x%x is not an initialised mbarrier", what, address);
  return v;
}

std::string describe_mbarrier(uint32_t address) {
  uint64_t v;
  memcpy(&v, block->shared + (address - kSharedBase), 8);
  char text[160];
  snprintf(text, sizeof text, "mbarrier 0x%x (in phase %u, %u of %u arrivals missing, %d bytes missing)", address, phase(v),
           pending(v), count(v), expected_bytes(v));
  return text;
}

void mbar_init(uint32_t address, uint32_t arrivals) {
  if (arrivals == 0 || arrivals > 0xfff) fail("mbarrier.init: a count of %u", arrivals);
  if (record(address)) fail("mbarrier.init: 0x%x is an mbarrier already", address);
  *raw(address, "mbarrier.init", true) = fresh(0, arrivals);
  block->mbarriers.push_back({address, self()->linear, self()->mbar_epoch});
}

void mbar_invalidate(uint32_t address) {
  *mbarrier_at(address, "mbarrier.inval") = ~0ull;
  for (const MbarrierWaiter& w : block->mbarrier_waiters)
    if (w.address == address) fail("mbarrier.inval: thread %u waits for 0x%x", w.thread->linear, address);
  for (MbarrierRecord& r : block->mbarriers)
    if (r.address == address) {
      r = block->mbarriers.back();
      block->mbarriers.pop_back();
      return;
    }
}

// TMA works in the asynchronous proxy: it needs the initialising thread's fence.
void check_mbarrier_published(uint32_t address) {
  const MbarrierRecord* r = record(address);
  if (r && block->threads[r->initialiser].mbar_epoch == r->epoch)
    fail("TMA uses mbarrier 0x%x, which thread %u initialised without a fence.mbarrier_init after it", address, r->initialiser);
}

void mbar_arrive(uint32_t address, uint32_t arrivals) {
  uint64_t* v = mbarrier_at(address, "mbarrier.arrive");
  if (pending(*v) < arrivals) fail("mbarrier.arrive: more arrivals at 0x%x than its count of %u in one phase", address, count(*v));
  if (race_hooks) race_hooks->mbarrier_arrive(address, self()->linear);
  *v -= (uint64_t)arrivals << 20;
  end_phase_if_complete(address, v);
}

void mbar_expect_tx(uint32_t address, uint32_t bytes) { *mbarrier_at(address, "mbarrier.expect_tx") += (uint64_t)bytes << 32; }

void complete_bytes(uint32_t address, uint32_t bytes) {
  uint64_t* v = (uint64_t*)(block->shared + (address - kSharedBase));
  if ((*v & kMarkMask) != kMark) fail_block("a TMA load completes on 0x%x, which is no mbarrier any more", address);
  *v -= (uint64_t)bytes << 32;
  end_phase_if_complete(address, v);
}

bool mbar_test(uint32_t address, uint32_t parity) {
  if (parity > 1) fail("mbarrier wait: parity %u", parity);
  Thread* me = self();
  if (phase(*mbarrier_at(address, "mbarrier.test_wait")) != parity) {
    if (race_hooks) race_hooks->mbarrier_wait(address, me->linear);
    me->failed_tests = 0;
    return true;
  }
  if (++me->failed_tests > 100000) fail("polls without end for parity %u of %s", parity, describe_mbarrier(address).c_str());
  if (!block->ready_warps && !block->loads.empty()) deliver_some_load();
  yield();
  return false;
}

void mbar_wait(uint32_t address, uint32_t parity) {
  if (parity > 1) fail("mbarrier wait: parity %u", parity);
  Thread* me = self();
  if (phase(*mbarrier_at(address, "mbarrier.try_wait")) != parity) {
    if (block->options.policy != kFixed && (random_bits() & 7) == 0) yield();
  } else {
    block->mbarrier_waiters.push_back({address, parity, me});
    suspend(State::Mbarrier, "mbarrier.try_wait", address, parity);
  }
  if (race_hooks) race_hooks->mbarrier_wait(address, me->linear);
}

void fence_mbar_init() { self()->mbar_epoch++; }
void fence_proxy_async_global() { self()->unfenced_counter = false; }
void fence_proxy_async() {
  self()->mbar_epoch++;
  self()->proxy_epoch++;
}
}  // namespace emu
