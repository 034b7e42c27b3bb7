// PTX instructions that sm_80 and everything newer has: cp.async, ldmatrix, mma.sync, named barriers, counters.
#pragma once
#include "types.cuh"

// 16 bytes from device to shared memory, both aligned to 16; zeros, and `src` not read, where `pred` is false.
DEV void cp_async16(uint32_t dst, const void* src, bool pred) {
#ifdef __CUDACC__
  int bytes = pred ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
#else
  emu::cp_async(dst, src, 16, pred ? 16 : 0);
#endif
}
// 4 bytes, for what is not aligned to 16.
DEV void cp_async4(uint32_t dst, const void* src, bool pred) {
#ifdef __CUDACC__
  int bytes = pred ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
#else
  emu::cp_async(dst, src, 4, pred ? 4 : 0);
#endif
}
DEV void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emu::cp_async_commit();
#endif
}
// Waits until at most N of this thread's groups are still under way. Other threads' copies need a barrier besides.
template <int N> DEV void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
  emu::cp_async_wait(N);
#endif
}

// Matrices of 8 x 8 bf16 from shared memory; lane 8 i + r gives the address of row r of matrix i. Lane l gets elements
// (l / 4, 2 (l % 4) + {0, 1}) of each, or with _trans those of the transposed matrix.
DEV void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
#else
  emu::ldmatrix(r, addr, 4, false);
#endif
}
DEV void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
#else
  emu::ldmatrix(r, addr, 4, true);
#endif
}
DEV void ldmatrix_x2(uint32_t (&r)[2], uint32_t addr) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(addr) : "memory");
#else
  emu::ldmatrix(r, addr, 2, false);
#endif
}
DEV void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t addr) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1]) : "r"(addr) : "memory");
#else
  emu::ldmatrix(r, addr, 2, true);
#endif
}

// D += A B with A [16, 16], B [16, 8] in bf16, D [16, 8] in f32. With g = lane / 4 and t = lane % 4, the lane holds
// a[i]: rows g + 8 (i % 2), columns 2 t + 8 (i / 2) + {0, 1}; b[i]: rows 2 t + 8 i + {0, 1}, column g;
// d[i]: row g + 8 (i / 2), column 2 t + i % 2.
DEV void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emu::mma_16816(d, a, b, 1, 1);
#endif
}
// One A fragment against NB B fragments: the same instructions, one rendezvous in the emulator.
template <int NB> DEV void mma_16816_row(float (&d)[NB][4], const uint32_t (&a)[4], const uint32_t (&b)[NB][2]) {
#ifdef __CUDACC__
  UNROLL for (int i = 0; i < NB; i++) mma_16816(d[i], a, b[i]);
#else
  emu::mma_16816(&d[0][0], a, &b[0][0], 1, NB);
#endif
}
// MI A fragments against NB B fragments.
template <int MI, int NB>
DEV void mma_16816_tile(float (&d)[MI][NB][4], const uint32_t (&a)[MI][4], const uint32_t (&b)[NB][2]) {
#ifdef __CUDACC__
  UNROLL for (int m = 0; m < MI; m++) UNROLL for (int i = 0; i < NB; i++) mma_16816(d[m][i], a[m], b[i]);
#else
  emu::mma_16816(&d[0][0][0], &a[0][0], &b[0][0], MI, NB);
#endif
}

// Named barriers 1..15 of the first `threads` arrivals, a multiple of 32; 0 is __syncthreads.
template <int ID> DEV void bar_sync(int threads) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(threads) : "memory");
#else
  emu::barrier_sync(ID, (uint32_t)threads);
#endif
}
template <int ID> DEV void bar_arrive(int threads) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"n"(ID), "r"(threads) : "memory");
#else
  emu::barrier_arrive(ID, (uint32_t)threads);
#endif
}
// With a number known only at run time ptxas reserves all sixteen barriers.
DEV void bar_sync_id(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emu::barrier_sync((uint32_t)id, (uint32_t)threads);
#endif
}
DEV void bar_arrive_id(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emu::barrier_arrive((uint32_t)id, (uint32_t)threads);
#endif
}

// Counts an arrival at a counter of device memory that starts at 0 and goes back to it with the n-th: how many came before.
// Who arrives later sees what this thread wrote and, of others, what a barrier had ordered before: blocks of one launch
// need nothing else between them.
DEV uint32_t arrive_counter(uint32_t* counter, uint32_t n) {
#ifdef __CUDACC__
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(n - 1) : "memory");
  return before;
#else
  return emu::arrive_counter(counter, n);
#endif
}
// Until a counter has come to n: this thread sees what those who arrived saw. Blocks need not run side by side, so only what
// has begun for certain may be waited for: blocks that drew an earlier number of a counter.
DEV void wait_counter(const uint32_t* counter, uint32_t n) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred p;\n.reg .u32 v;\nwaiting:\nld.acquire.gpu.u32 v, [%0];\nsetp.lt.u32 p, v, %1;\n@p bra waiting;\n}" ::"l"(
          counter), "r"(n) : "memory");
#else
  emu::wait_counter(counter, n);
#endif
}
