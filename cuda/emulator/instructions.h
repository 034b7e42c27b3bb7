// The emulator's half of each primitive of common/prim.cuh: what a kernel calls where the GPU would run an instruction.
// Shared addresses are 32-bit numbers, as on the GPU; each instruction checks bounds and alignment of the one it gets.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 { uint32_t x, y, z; };
struct dim3 { uint32_t x, y, z; };

namespace emu {
// The shared address of the arena's first byte; 0 stays an invalid address.
constexpr uint32_t kSharedBase = 1024;
// What an H100 gives to one block, less the 1 KiB that the driver keeps, is the most a kernel may ask for.
constexpr uint32_t kSharedBytes = 228 * 1024;
constexpr uint32_t kSharedLimit = 227 * 1024;

// The part of a thread that kernel code reads without a call.
struct ThreadView {
  uint3 thread_index;
  uint3 block_index;
  uint32_t linear;      // number of the thread in its block
  uint32_t lane;
  uint8_t* shared;      // the arena's first byte
};
struct LaunchShape { dim3 block, grid; };
extern thread_local ThreadView* current __attribute__((tls_model("initial-exec")));
extern thread_local LaunchShape launch_shape __attribute__((tls_model("initial-exec")));

[[noreturn]] void trap(const char* why);

// Barriers of the block. `threads` 0 means all of it.
void barrier_sync(uint32_t id, uint32_t threads);
void barrier_arrive(uint32_t id, uint32_t threads);
void thread_fence();
void spin_yield(const char* what);

// Warps.
enum class Shuffle { Index, Up, Down, Xor };
void syncwarp(uint32_t mask);
uint32_t shuffle(uint32_t mask, uint32_t value, uint32_t lane_or_delta, Shuffle how, uint32_t width);
uint32_t ballot(uint32_t mask, bool predicate);
void ldmatrix(uint32_t* registers, uint32_t address, int matrices, bool transposed);
void stmatrix(uint32_t address, const uint32_t* registers, int matrices, bool transposed);
// `m_tiles` x `n_tiles` products of 16 x 8 x 16, bf16 in and f32 out.
void mma_16816(float* d, const uint32_t* a, const uint32_t* b, int m_tiles, int n_tiles);
void setmaxnreg(uint32_t registers, bool increase);

// Atomics on device or shared memory.
uint32_t atomic_add(uint32_t* p, uint32_t v);
uint32_t atomic_max(uint32_t* p, uint32_t v);
uint32_t atomic_or(uint32_t* p, uint32_t v);
uint32_t atomic_cas(uint32_t* p, uint32_t wanted, uint32_t v);
// Up to n - 1, then back to 0; releases and acquires at the device's scope.
uint32_t arrive_counter(uint32_t* p, uint32_t n);
// Until the counter is n or more; acquires at the device's scope.
void wait_counter(const uint32_t* p, uint32_t n);

// cp.async.
void cp_async(uint32_t destination, const void* source, uint32_t bytes, uint32_t source_bytes);
void cp_async_commit();
void cp_async_wait(uint32_t groups_left);

// mbarriers and the fences between the generic and the asynchronous proxy.
void mbar_init(uint32_t barrier, uint32_t count);
void mbar_invalidate(uint32_t barrier);
void mbar_arrive(uint32_t barrier, uint32_t count);
void mbar_expect_tx(uint32_t barrier, uint32_t bytes);
void mbar_wait(uint32_t barrier, uint32_t parity);
bool mbar_test(uint32_t barrier, uint32_t parity);
void fence_mbar_init();
void fence_proxy_async();
void fence_proxy_async_global();

// TMA.
void tma_load(uint32_t destination, const void* map, uint32_t barrier, int rank, const int* corner);
void tma_store(const void* map, uint32_t source, int rank, const int* corner);
void bulk_store(void* destination, uint32_t source, uint32_t bytes, bool add_f32);
void bulk_commit();
void bulk_wait(uint32_t groups_left, bool only_reads);

// wgmma. `a_registers` null: A is read from shared memory through `a_descriptor`.
void wgmma_fence();
void wgmma_issue(float* d, int n, uint64_t a_descriptor, uint64_t b_descriptor, const uint32_t* a_registers, bool scale_d,
                 bool a_transposed, bool b_transposed);
void wgmma_commit();
void wgmma_wait(uint32_t groups_left);

// Shared memory: a static array is known by the address of its tag.
void* static_shared(const void* tag, const char* name, size_t bytes, size_t alignment);
void* dynamic_shared();
}  // namespace emu
