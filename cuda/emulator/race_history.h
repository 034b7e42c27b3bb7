// What the race checker remembers: race.cpp of shared memory and of who waited for whom, race_device.cpp of device memory
// and of the counters on which blocks arrive. Only these two include it.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "race.h"

namespace emu {
struct Allocation;
using Clock = std::vector<uint32_t>;

// Clocks of other blocks, by the blocks' numbers in rising order. Mostly all threads of a block know the same.
using Others = std::shared_ptr<const std::vector<std::pair<uint32_t, std::shared_ptr<const Clock>>>>;

// What a thread knows: up to which time, of each actor of its own block and of other blocks.
struct Knowledge {
  Clock own;
  Others others;
};

struct Read {
  uint16_t actor;
  uint32_t time;
};
struct Cell {
  uint32_t generation, write_time;
  uint16_t writer;
  uint8_t n_reads;
  bool by_atomics;      // since the write; their times are in `shared_atomics`
  Read reads[4];
  int32_t more_reads;  // a clock in `spare`, -1 where four are enough
};

// What is known of the block that runs now, and of its launch; one per thread of the operating system.
struct History {
  uint32_t n_threads, width, generation = 0, block_number, launch;
  std::vector<Knowledge> known;          // per thread
  Clock pseudo_time;                     // of actors that are no threads
  std::map<uint32_t, Knowledge> barriers, arriving, completed;
  std::map<uint32_t, uint32_t> mbarrier_actors, store_actors;
  Clock warpgroup_knows;
  std::vector<Cell> cells;
  std::vector<Clock> spare;
  std::vector<int32_t> free_spare;
  // When which thread last changed a word by an atomic: of shared memory, and of device memory for each block in turn.
  std::unordered_map<uint32_t, Clock> shared_atomics;
  std::unordered_map<uintptr_t, std::vector<std::pair<uint32_t, Clock>>> device_atomics;
  std::map<uintptr_t, std::vector<Others>> counters;  // what all who had arrived there knew, for each value it has had since 0
  Others merge_of[2], merge_is;          // the last merge of what is known of other blocks: many threads ask for the same
  Allocation* recent = nullptr;
};
extern constinit thread_local History* history;
extern constinit thread_local const void* place;  // in the kernel's code

void join(Clock& into, const Clock& from);
void join(Knowledge& into, const Knowledge& from);
// The place in the source, for a report.
std::string at_place();

// ---- race_device.cpp ----
void device_launch_begin();
void device_access(uint32_t thread, uintptr_t address, size_t bytes, bool write, const char* what);
void device_atomic(uint32_t thread, uintptr_t address);
void arrive_at_counter(uint32_t thread, uintptr_t address, uint32_t becomes);
void wait_for_counter(uint32_t thread, uintptr_t address, uint32_t wanted);
}  // namespace emu
