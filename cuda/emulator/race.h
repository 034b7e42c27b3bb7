// What the runtime tells the race checker, where there is one (the build "race", race.cpp). Offsets are into the arena of
// shared memory, threads are numbered within their block. The checker itself ends a block that races.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {
struct Block;

struct RaceHooks {
  void (*launch_begin)();
  void (*block_begin)(const Block* b);
  void (*shared_access)(uint32_t thread, uint32_t offset, uint32_t bytes, bool write, const char* what);
  void (*device_access)(uint32_t thread, uintptr_t address, size_t bytes, bool write, const char* what);
  // Everyone's past is collected at a barrier, then given to everyone who waited.
  void (*barrier_arrive)(uint32_t barrier, uint32_t thread);
  void (*barrier_release)(uint32_t barrier, uint32_t thread);
  void (*barrier_done)(uint32_t barrier);
  void (*syncwarp)(uint32_t warp, uint32_t lanes);
  // A relaxed one, which orders nothing; and the arrival at a counter and the wait for it, which order the threads of different
  // blocks.
  void (*atomic)(uint32_t thread, uintptr_t address);
  void (*arrive_counter)(uint32_t thread, uintptr_t address, uint32_t becomes);
  void (*wait_counter)(uint32_t thread, uintptr_t address, uint32_t wanted);
  void (*copy_issued)(uint32_t thread, uint32_t offset, uint32_t bytes);
  void (*copy_done)(uint32_t thread, uint32_t offset, uint32_t bytes);
  void (*load_issued)(uint32_t thread, uint32_t offset, uint32_t bytes, uint32_t mbarrier);
  void (*load_done)(uint32_t offset, uint32_t bytes, uint32_t mbarrier);
  // A TMA store reads from its issue until its thread has waited for its group: for the first so many of the thread's.
  void (*store_issued)(uint32_t thread, uint32_t group, uint32_t offset, uint32_t bytes);
  void (*store_read)(uint32_t thread, uint32_t groups);
  void (*mbarrier_arrive)(uint32_t mbarrier, uint32_t thread);
  void (*mbarrier_phase)(uint32_t mbarrier);
  void (*mbarrier_wait)(uint32_t mbarrier, uint32_t thread);
  // A wgmma reads from its issue by the last thread until a thread of the warpgroup has waited for it.
  void (*wgmma_begin)(uint32_t warpgroup);
  void (*wgmma_read)(uint32_t warpgroup, uint32_t offset, uint32_t bytes);
  void (*wgmma_done)(uint32_t warpgroup, uint32_t thread);
};
extern const RaceHooks* const race_hooks;
}  // namespace emu
