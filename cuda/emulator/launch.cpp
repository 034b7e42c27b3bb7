// Launches: looks the kernel up, checks what the driver would check, and runs the blocks on one or more threads of the
// operating system.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <thread>

#include "block.h"

namespace emu {
thread_local Options options;

namespace {
thread_local std::string last_error;

// Registration runs before main or inside dlopen, both on one thread; afterwards these are only read.
Kernel* kernels;
std::vector<VlmEmuField>& fields() {
  static std::vector<VlmEmuField> all;
  return all;
}

Kernel* kernel_at(uint32_t index) {
  Kernel* k = kernels;
  while (k && index--) k = k->next;
  return k;
}

// Contexts of blocks that are not running, to be used again.
std::mutex pool_mutex;
std::vector<Block*> pool;

Block* take_block() {
  {
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (!pool.empty()) {
      Block* b = pool.back();
      pool.pop_back();
      return b;
    }
  }
  return new_block();
}

int refuse(std::string why) {
  last_error = std::move(why);
  return 1;
}

uint64_t block_seed(uint64_t seed, uint64_t number) {
  const uint64_t mixed = seed * 0x9E3779B97F4A7C15ull ^ (number + 1) * 0xD1B54A32D192ED03ull;
  return mixed ? mixed : 1;
}

// The order in which blocks begin, drawn by the seed, so that a kernel's result cannot hang on it: from `first` on in steps
// of `stride`, which has no divisor in common with the number of blocks.
struct Order {
  uint64_t first = 0, stride = 1;
};
Order drawn_order(uint64_t seed, uint64_t n_blocks) {
  Order o;
  o.first = block_seed(seed, 0) % n_blocks;
  o.stride = 1 + block_seed(seed, 1) % n_blocks;
  while (std::gcd(o.stride, n_blocks) != 1) o.stride++;
  return o;
}

struct Launch {
  const Kernel* kernel;
  const void* argument;
  dim3 grid, shape;
  uint32_t dynamic_bytes;
  Options options;
  uint64_t n_blocks;
  Order order;
  std::atomic<uint64_t> next{0};
  Siblings siblings;
  std::mutex mutex;
  std::string error;
};

void fail_launch(Launch& l, std::string why) {
  std::lock_guard<std::mutex> lock(l.mutex);
  if (!l.siblings.failed) l.error = std::move(why);
  l.siblings.failed = true;
}

void run_one(Launch& l, Block* b, uint64_t number) {
  b->random_state = block_seed(l.options.seed, number);
  for (int warm_up = 0; warm_up < 4; warm_up++) random_bits();
  const uint3 index = {(uint32_t)(number % l.grid.x), (uint32_t)(number / l.grid.x % l.grid.y),
                       (uint32_t)(number / l.grid.x / l.grid.y)};
  if (!run_block(b, l.shape, index, l.dynamic_bytes)) fail_launch(l, b->error);
}

// Runs blocks until none is left or, with `limit`, until so much time has gone by.
void work(Launch& l, std::chrono::microseconds limit) {
  install_fault_handlers();
  Block* b = take_block();
  if (!b) return fail_launch(l, "no memory for the stacks of a block");
  b->kernel = l.kernel;
  b->argument = l.argument;
  b->siblings = &l.siblings;
  l.siblings.running++;
  b->options = l.options;
  launch_shape = {l.shape, l.grid};
  block = b;
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t turn; !l.siblings.failed && (turn = l.next++) < l.n_blocks;) {
    run_one(l, b, (uint64_t)((l.order.first + (unsigned __int128)turn * l.order.stride) % l.n_blocks));
    if (limit.count() && std::chrono::steady_clock::now() - start > limit) break;
  }
  block = nullptr;
  l.siblings.running--;
  std::lock_guard<std::mutex> lock(pool_mutex);
  pool.push_back(b);
}

void run_all(Launch& l) {
  // The race checker keeps one history for a whole launch.
  uint64_t threads = race_hooks ? 1 : l.options.threads ? (uint64_t)l.options.threads : std::thread::hardware_concurrency();
  if (threads > l.n_blocks) threads = l.n_blocks;
  if (threads <= 1) return work(l, {});
  // Most launches are over before other threads could help.
  work(l, std::chrono::microseconds(200));
  if (l.next >= l.n_blocks || l.siblings.failed) return;
  std::vector<std::thread> helpers;
  for (uint64_t i = 1; i < threads; i++) helpers.emplace_back([&l] { work(l, {}); });
  work(l, {});
  for (std::thread& t : helpers) t.join();
}
}  // namespace

void register_kernel(Kernel* kernel) {
  kernel->next = kernels;
  kernels = kernel;
}
void register_field(const VlmEmuField& field) { fields().push_back(field); }
}  // namespace emu

extern "C" int vlm_emu_launch(uint64_t device, const char* kernel, const uint32_t grid[3], const uint32_t shape[3],
                              uint32_t dyn_smem_bytes, const void* args, uint64_t args_bytes) {
  using namespace emu;
  last_error.clear();
  const Kernel* k = kernels;
  while (k && strcmp(k->name, kernel)) k = k->next;
  const std::string name = kernel;
  if (!k) return refuse("there is no kernel " + name);
  if (args_bytes != k->argument_bytes)
    return refuse(name + ": the argument has " + std::to_string(args_bytes) + " bytes, the kernel's " + std::to_string(k->argument_bytes));
  const uint64_t threads = (uint64_t)shape[0] * shape[1] * shape[2];
  if (threads == 0 || shape[0] > 1024 || shape[1] > 1024 || shape[2] > 64 || threads > k->max_threads)
    return refuse(name + ": a block of " + std::to_string(shape[0]) + " x " + std::to_string(shape[1]) + " x " +
                  std::to_string(shape[2]) + " threads, where the kernel takes 1 to " + std::to_string(k->max_threads));
  if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535)
    return refuse(name + ": a grid of " + std::to_string(grid[0]) + " x " + std::to_string(grid[1]) + " x " + std::to_string(grid[2]) + " blocks");
  if (dyn_smem_bytes > kSharedLimit) return refuse(name + ": " + std::to_string(dyn_smem_bytes) + " bytes of dynamic shared memory are more than " + std::to_string(kSharedLimit));
  // Tensor maps inside have to be aligned to 128 bytes.
  void* argument = aligned_alloc(128, (args_bytes + 127) / 128 * 128);
  if (!argument) return refuse(name + ": no memory for its argument");
  memcpy(argument, args, args_bytes);
  Launch l;
  l.kernel = k;
  l.argument = argument;
  l.grid = {grid[0], grid[1], grid[2]};
  l.shape = {shape[0], shape[1], shape[2]};
  l.dynamic_bytes = dyn_smem_bytes;
  l.options = options;
  l.n_blocks = (uint64_t)grid[0] * grid[1] * grid[2];
  if (l.options.policy != kFixed) l.order = drawn_order(l.options.seed, l.n_blocks);
  if (race_hooks) race_hooks->launch_begin();
  run_all(l);
  if (!l.siblings.failed) {
    const std::string slack = check_slack(device);
    if (!slack.empty()) fail_launch(l, slack + " [kernel " + name + "]");
  }
  free(argument);
  last_error = l.error;
  return l.siblings.failed;
}

extern "C" const char* vlm_emu_last_error(void) { return emu::last_error.c_str(); }

extern "C" int vlm_emu_configure(const char* key, int64_t value) {
  emu::Options& o = emu::options;
  const std::string k = key;
  auto set = [&](int& option, int64_t most) {
    if (value < 0 || value > most) return 1;
    option = (int)value;
    return 0;
  };
  if (k == "seed") {
    o.seed = (uint64_t)value;
    return 0;
  }
  if (k == "policy") return set(o.policy, 2);
  if (k == "async") return set(o.async, 2);
  if (k == "threads") return set(o.threads, 4096);
  if (k == "placement") return set(o.placement, 2);
  return 1;
}

extern "C" const char* vlm_emu_build(void) { return emu::race_hooks ? "race" : EMU_ASAN ? "asan" : "plain"; }

extern "C" uint32_t vlm_emu_kernel_count(void) {
  uint32_t n = 0;
  for (const emu::Kernel* k = emu::kernels; k; k = k->next) n++;
  return n;
}
extern "C" const char* vlm_emu_kernel_name(uint32_t index) {
  const emu::Kernel* k = emu::kernel_at(index);
  return k ? k->name : nullptr;
}
extern "C" uint64_t vlm_emu_kernel_argument_bytes(uint32_t index) {
  const emu::Kernel* k = emu::kernel_at(index);
  return k ? k->argument_bytes : 0;
}
extern "C" uint32_t vlm_emu_kernel_max_threads(uint32_t index) {
  const emu::Kernel* k = emu::kernel_at(index);
  return k ? k->max_threads : 0;
}
extern "C" uint32_t vlm_emu_field_count(void) { return (uint32_t)emu::fields().size(); }
extern "C" const VlmEmuField* vlm_emu_field(uint32_t index) {
  return index < emu::fields().size() ? &emu::fields()[index] : nullptr;
}
