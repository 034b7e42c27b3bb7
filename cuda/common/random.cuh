// Random bits as a function of (key, element): Philox4x32-10, the same as src/base/rng.rs. The host makes the key of a
// stream from seed and ids; see `Stream::new` there.
#pragma once
#include "types.cuh"

struct Random4 { uint32_t word[4]; };

// Block `index` of the stream: elements 4 index .. 4 index + 3.
DEV Random4 random_block(uint32_t key0, uint32_t key1, uint64_t index) {
  uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = 0, c3 = 0;
  UNROLL for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ key0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ key1;
    c3 = (uint32_t)p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return Random4{{c0, c1, c2, c3}};
}
// Uniform in [0, 1), a multiple of 2^-24.
DEV float random_uniform(uint32_t bits) { return (float)(bits >> 8) * (1.0f / 16777216.0f); }
