// A block of a launch while it runs: its threads, each on a stack of its own, and the state of everything that they wait
// for. One operating system thread runs a block from beginning to end, so nothing in here is locked.
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "asan.h"
#include "instructions.h"
#include "race.h"
#include "registry.h"

namespace emu {
// As vlm_emu_configure sets them; see api.h.
struct Options {
  uint64_t seed = 1;
  int policy = 1, async = 1, threads = 0, placement = 0;
};
enum Policy { kFixed = 0, kWarpAtATime = 1, kAnyThread = 2 };
enum Async { kAtOnce = 0, kRandom = 1, kLatest = 2 };

enum class State : uint8_t { Ready, Barrier, Collective, Mbarrier, Counter, Wgmma, Exited };

// ---- what single threads keep ----

struct CpAsync {
  uint32_t destination;
  uint16_t bytes, source_bytes;
  const void* source;
};

// A tensor map, in our own encoding of its 128 bytes.
struct Map {
  uint64_t magic, base;
  uint64_t dims[5];       // elements, innermost first
  uint64_t strides[4];    // bytes, of dimensions 1..
  uint16_t box[5];
  uint8_t rank, element_bytes, swizzle;
};
static_assert(sizeof(Map) <= 128, "a tensor map has 128 bytes");

struct BulkStore {
  Map map;
  uint32_t source, group;
  int corner[5];
  bool add_f32, read_done;
  std::vector<uint8_t> at_issue, data;
};

constexpr int kAccumulators = 8;  // accumulator tiles of one warpgroup that may be in flight at once

struct WgmmaLane {
  uint32_t issued = 0, groups = 0;
  bool fenced = false;
  float* registers[kAccumulators] = {};  // where the accumulator of a slot goes back to
  uint32_t last_use[kAccumulators] = {};
  int width[kAccumulators] = {};
};

struct Thread : ThreadView {
  void* stack_pointer;
  uint8_t* stack;
  size_t stack_bytes;
  void* asan_stack;
  State state;
  const char* what;          // for reports: the instruction it waits in
  uint32_t waits_for, parity;
  uint32_t proxy_epoch;      // counts fence.proxy.async
  uint32_t mbar_epoch;       // counts fences that publish mbarrier.init
  uint32_t failed_tests;     // of mbar_test in a row
  bool unfenced_counter;     // waited for a counter, without a fence.proxy.async.global since
  bool used;                 // whether anything below has to be cleared for the next block
  std::vector<CpAsync> copies;
  std::vector<uint32_t> copy_groups;
  uint32_t copies_done;
  std::vector<BulkStore> stores;
  uint32_t store_groups;
  WgmmaLane wgmma;
};

// ---- what warps, warpgroups and the block keep ----

// Lanes that have reached the same instruction; the last one runs it for all.
struct Rendezvous {
  uint32_t mask, arrived;
  const void* instruction;
  const char* what;
  void* arguments[32];
};
struct Warp {
  Rendezvous meetings[4];
  uint32_t exited;
};
struct NamedBarrier {
  uint32_t wanted, arrived;
  uint32_t waiting[32];     // lanes, per warp
};
struct MbarrierWaiter {
  uint32_t address, parity;
  Thread* thread;
};
struct CounterWaiter {
  const uint32_t* counter;
  uint32_t wanted;
  Thread* thread;
};
struct MbarrierRecord {
  uint32_t address, initialiser, epoch;
};
struct TmaLoad {
  Map map;
  uint32_t destination, barrier;
  int corner[5];
  uint64_t due;             // tick at which the data arrives by itself
};
struct WgmmaOperation {
  int n, slot, lanes;
  uint64_t a, b;
  bool scale_d, a_transposed, b_transposed, a_in_registers;
  uint64_t a_hash, b_hash;
  std::vector<uint16_t> a_values;  // [16][64], from registers
};
struct Warpgroup {
  std::vector<WgmmaOperation> operations;
  std::vector<uint32_t> group_ends;
  uint32_t executed, issued;
  std::vector<float> tiles[kAccumulators];
  std::vector<std::pair<Thread*, uint32_t>> waiters;
};
struct StaticArray {
  const void* tag;
  const char* name;
  uint32_t offset, bytes;
};

// What the blocks of a launch know of each other.
struct Siblings {
  std::atomic<bool> failed{false};
  std::atomic<int> running{0};  // threads of the operating system that run blocks
};

constexpr int kMaxThreads = 1024;
constexpr uint64_t kLook = 256;         // ticks between two looks at the counters that threads wait for
constexpr uint32_t kRedZone = 32;       // bytes between shared arrays, checked when the block ends
constexpr uint8_t kRedZoneByte = 0xa7;

struct Block {
  Options options;
  const Kernel* kernel;
  const void* argument;
  const Siblings* siblings;
  dim3 shape;
  uint3 index;
  int n_threads, n_warps, alive;

  std::vector<Thread> threads;
  uint32_t ready[32], started[32];      // lanes, per warp
  uint32_t ready_warps;
  uint32_t warp_now;
  uint64_t random_state, tick, next_due;
  uint64_t jump_mask;                   // how seldom another warp's turn comes

  Warp warps[32];
  NamedBarrier barriers[16];
  Warpgroup warpgroups[8];
  alignas(64) float wgmma_a[16 * 64], wgmma_b[16 * 256];  // operands of the wgmma that runs, by k
  std::vector<MbarrierWaiter> mbarrier_waiters;
  std::vector<MbarrierRecord> mbarriers;
  std::vector<CounterWaiter> counter_waiters;
  std::vector<TmaLoad> loads;

  uint8_t* shared;                      // between guard pages
  uint32_t static_end;                  // static arrays grow from the start
  uint32_t dynamic_offset, dynamic_bytes;  // dynamic ones lie at the end
  std::vector<StaticArray> statics;
  std::vector<uint64_t> unfenced;       // per 16 bytes: who wrote them through the generic proxy, (thread + 1) << 32 | epoch
  bool any_unfenced;

  uint8_t* stacks;
  uint8_t* landing;                     // the stack on which a fault is reported
  void* main_stack_pointer;
  void* main_asan_stack;
  const void* main_stack;
  size_t main_stack_bytes;

  bool failed;
  std::string error;
};

extern thread_local Block* block;
extern thread_local Options options;  // of launches by this thread
inline Thread* self() { return static_cast<Thread*>(current); }

inline uint64_t random_bits() {
  uint64_t x = block->random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return block->random_state = x;
}

// ---- scheduler.cpp ----
Block* new_block();
// Runs one block to its end; false: block->error says why not.
bool run_block(Block* b, dim3 shape, uint3 index, uint32_t dynamic_bytes);
// Ends the block with an error that names the running thread, or only the block where no thread is to blame.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_block(const char* format, ...) __attribute__((format(printf, 1, 2)));
void suspend(State state, const char* what, uint32_t waits_for, uint32_t parity);
void yield();
inline void make_ready(uint32_t warp, uint32_t lanes) {
  if (!lanes) return;
  block->ready[warp] |= lanes;
  block->ready_warps |= 1u << warp;
}
inline void wake(Thread* t) {
  t->state = State::Ready;
  make_ready(t->linear >> 5, 1u << t->lane);
}

// ---- shared_memory.cpp ----
void begin_shared(Block* b, uint32_t dynamic_bytes);
// An error where an array's red zone was written; null if all is well.
const char* end_shared(Block* b);
// The host's address of `bytes` at a shared address, after checking bounds and alignment.
uint8_t* shared_at(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what);
struct SharedRange { uint32_t start, end; };
// The array that a byte lies in; {0, 0} where it lies in none.
SharedRange shared_array_at(uint32_t offset);
bool in_shared_array(uint32_t offset, uint32_t bytes);
void mark_unfenced(uint32_t offset, uint32_t bytes, const Thread* writer);
void check_fenced(uint32_t offset, const char* what);

// ---- the instruction files ----
// When a thread ends, nothing of it may be under way.
void check_barriers_done();
void check_copies_done(const Thread* t);
void finish_stores(Thread* t);
void check_wgmma_done(const Thread* t);
void deliver_due_loads();
void deliver_some_load();
void complete_bytes(uint32_t barrier, uint32_t bytes);
// Wakes those whose counters have come so far. The second one is for when no thread can run: it waits for other blocks,
// and false says that none of them will ever come.
void look_at_counters();
bool await_counters();
uint64_t* mbarrier_at(uint32_t address, const char* what);
void check_mbarrier_published(uint32_t address);
std::string describe_mbarrier(uint32_t address);
inline uint32_t swizzled(uint32_t address, int mode) { return address ^ (address >> 3 & ((1u << mode) - 1) << 4); }

// ---- memory.cpp ----
std::string describe_address(uintptr_t address);
// An error where the bytes around an allocation of this device were written; empty if all is well.
std::string check_slack(uint64_t device);

// ---- faults.cpp ----
void install_fault_handlers();
}  // namespace emu
