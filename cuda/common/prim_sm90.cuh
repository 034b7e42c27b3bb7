// PTX instructions of sm_90 and sm_90a: stmatrix, mbarrier, TMA, setmaxnreg, wgmma. Files named *_sm90.cu are compiled for
// sm_90a alone; in others these functions do not exist while nvcc compiles for sm_80.
#pragma once
#include "types.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The opposite of ldmatrix: four matrices of 8 x 8 into shared memory.
DEV void stmatrix_x4(uint32_t addr, const uint32_t (&r)[4]) {
#ifdef __CUDACC__
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3]) : "memory");
#else
  emu::stmatrix(addr, r, 4, false);
#endif
}
DEV void stmatrix_x4_trans(uint32_t addr, const uint32_t (&r)[4]) {
#ifdef __CUDACC__
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(addr), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3]) : "memory");
#else
  emu::stmatrix(addr, r, 4, true);
#endif
}

// mbarriers: 8 bytes of shared memory, aligned to 8. A phase ends when `count` arrivals and the announced bytes are in.
DEV void mbar_init(uint32_t bar, uint32_t count) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
#else
  emu::mbar_init(bar, count);
#endif
}
// Needed before the bytes of an mbarrier are used for anything else.
DEV void mbar_invalidate(uint32_t bar) {
#ifdef __CUDACC__
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
#else
  emu::mbar_invalidate(bar);
#endif
}
// Makes mbarrier.init visible to TMA; other threads need a barrier besides.
DEV void fence_mbar_init() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  emu::fence_mbar_init();
#endif
}
// Orders this thread's ordinary accesses to shared memory before TMA's and wgmma's.
DEV void fence_proxy_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emu::fence_proxy_async();
#endif
}
// The same between what a counter let this thread see of device memory and its own bulk_store and bulk_add there.
DEV void fence_proxy_async_global() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.global;" ::: "memory");
#else
  emu::fence_proxy_async_global();
#endif
}
DEV void mbar_arrive(uint32_t bar) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
#else
  emu::mbar_arrive(bar, 1);
#endif
}
DEV void mbar_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
#else
  emu::mbar_expect_tx(bar, bytes);
  emu::mbar_arrive(bar, 1);
#endif
}
// Until the phase of that parity has ended. A new barrier is in phase 0, so waiting for parity 1 returns at once.
DEV void mbar_wait(uint32_t bar, uint32_t parity) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred p;\nwaiting:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra waiting;\n"
      "done:\n}" ::"r"(bar), "r"(parity) : "memory");
#else
  emu::mbar_wait(bar, parity);
#endif
}
DEV bool mbar_test(uint32_t bar, uint32_t parity) {
#ifdef __CUDACC__
  uint32_t ended;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(ended) : "r"(bar), "r"(parity) : "memory");
  return ended != 0;
#else
  return emu::mbar_test(bar, parity);
#endif
}

// TMA: a box of the map's size, its corner at element (x, y, ..), x innermost; zeros outside the tensor. `dst` is aligned
// to 128, or to the swizzle's 1024 (128B), 512 (64B), 256 (32B). The map is the kernel's __grid_constant__ argument.
DEV void tma_load_2d(uint32_t dst, const TensorMap* map, uint32_t bar, int x, int y) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          dst), "l"(map), "r"(bar), "r"(x), "r"(y) : "memory");
#else
  const int corner[2] = {x, y};
  emu::tma_load(dst, map, bar, 2, corner);
#endif
}
DEV void tma_load_3d(uint32_t dst, const TensorMap* map, uint32_t bar, int x, int y, int z) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(dst), "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z) : "memory");
#else
  const int corner[3] = {x, y, z};
  emu::tma_load(dst, map, bar, 3, corner);
#endif
}
// What lies outside the tensor is not written.
DEV void tma_store_2d(const TensorMap* map, uint32_t src, int x, int y) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(src),
               "r"(x), "r"(y) : "memory");
#else
  const int corner[2] = {x, y};
  emu::tma_store(map, src, 2, corner);
#endif
}
DEV void tma_store_3d(const TensorMap* map, uint32_t src, int x, int y, int z) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(src),
               "r"(x), "r"(y), "r"(z) : "memory");
#else
  const int corner[3] = {x, y, z};
  emu::tma_store(map, src, 3, corner);
#endif
}
DEV void tma_prefetch(const TensorMap* map) {
#ifdef __CUDACC__
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
  (void)map;
#endif
}
// Bytes of shared memory into device memory, without a map, or f32 numbers added to those there, each once and rounded to
// nearest (what is subnormal may become 0). Both addresses and `bytes` are multiples of 16.
DEV void bulk_store(void* to, uint32_t src, uint32_t bytes) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(src), "r"(bytes) : "memory");
#else
  emu::bulk_store(to, src, bytes, false);
#endif
}
DEV void bulk_add(float* to, uint32_t src, uint32_t bytes) {
#ifdef __CUDACC__
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(src), "r"(bytes)
               : "memory");
#else
  emu::bulk_store(to, src, bytes, true);
#endif
}
// TMA stores of this thread, in groups: _read waits until shared memory may be written again, the other for the whole. So the
// PTX ISA promises it, and a later architecture may keep them apart; for sm_90 nvcc 13 makes the same wait of both (DEPBAR.LE
// SB0, and CCTL.IVALL behind the other), so that shared memory is not free any earlier there.
DEV void bulk_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emu::bulk_commit();
#endif
}
template <int N> DEV void bulk_wait_read() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
#else
  emu::bulk_wait(N, true);
#endif
}
template <int N> DEV void bulk_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
#else
  emu::bulk_wait(N, false);
#endif
}

// Registers of each thread of a warpgroup: 24 to 256, a multiple of 8.
template <int N> DEV void reg_dealloc() {
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#else
  emu::setmaxnreg(N, false);
#endif
}
template <int N> DEV void reg_alloc() {
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#else
  emu::setmaxnreg(N, true);
#endif
}

#include "wgmma.cuh"
#endif
