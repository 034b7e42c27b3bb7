// Random bits as a function of (key, element): Philox4x32-10, the same as src/base/rng.rs. The host makes the key of a
// stream from seed and ids; see `Stream::new` there.
#pragma once
#include "types.cuh"

struct Random4 { uint32_t word[4]; };
// What names a stream.
struct RandomKey { uint32_t word[2]; };

// The ten rounds of one counter, whose upper two words are (`kind`, 0).
DEV Random4 random_words(RandomKey key, uint64_t low, uint32_t kind) {
  uint32_t c0 = (uint32_t)low, c1 = (uint32_t)(low >> 32), c2 = kind, c3 = 0;
  UNROLL for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ key.word[0];
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ key.word[1];
    c3 = (uint32_t)p0;
    key.word[0] += 0x9E3779B9u;
    key.word[1] += 0xBB67AE85u;
  }
  return Random4{{c0, c1, c2, c3}};
}
// Block `index` of the stream: elements 4 index .. 4 index + 3.
DEV Random4 random_block(RandomKey key, uint64_t index) { return random_words(key, index, 0); }
// The stream of one more id: `Stream::with`.
DEV RandomKey random_key(RandomKey key, uint64_t id) {
  const Random4 r = random_words(key, id, 1);
  return RandomKey{{r.word[0], r.word[1]}};
}
// Uniform in [0, 1), a multiple of 2^-24.
DEV float random_uniform(uint32_t bits) { return (float)(bits >> 8) * (1.0f / 16777216.0f); }
// Bit w: whether element 4 index + w is kept by a dropout, which drops what is below `from`.
DEV uint32_t random_kept(RandomKey key, uint64_t index, uint32_t from) {
  const Random4 r = random_block(key, index);
  uint32_t kept = 0;
  UNROLL for (int w = 0; w < 4; w++) kept |= (uint32_t)(r.word[w] >= from) << w;
  return kept;
}
