// The loops of products.cpp; included once per instruction set, with EMU_TARGET as its attribute.

using Eight = float __attribute__((vector_size(32)));
using EightWords = uint32_t __attribute__((vector_size(32)));

// b of one tile, as pairs of rows: even[p] is row 2 p, odd[p] row 2 p + 1, each over the eight columns.
EMU_TARGET void mma(const MmaLane* lanes, int m_tiles, int n_tiles) {
  alignas(64) uint32_t pairs[16][8];
  alignas(64) float even[16][8], odd[16][8], d[16][8];
  Eight b_even[kMaxTiles][8], b_odd[kMaxTiles][8];
  for (int t = 0; t < n_tiles; t++) {
    for (int l = 0; l < 32; l++) {
      const uint32_t* b = lanes[l].b + t * 2;
      pairs[l & 3][l >> 2] = b[0];
      pairs[(l & 3) + 4][l >> 2] = b[1];
    }
    for (int p = 0; p < 8; p++) {
      const EightWords v = *(EightWords*)pairs[p];
      b_even[t][p] = (Eight)(v << 16);
      b_odd[t][p] = (Eight)(v & 0xffff0000u);
    }
  }
  for (int m = 0; m < m_tiles; m++) {
    for (int l = 0; l < 32; l++) {
      const uint32_t* a = lanes[l].a + m * 4;
      const int row = l >> 2, pair = l & 3;
      pairs[row][pair] = a[0];
      pairs[row + 8][pair] = a[1];
      pairs[row][pair + 4] = a[2];
      pairs[row + 8][pair + 4] = a[3];
    }
    for (int i = 0; i < 16; i++) {
      const EightWords v = *(EightWords*)pairs[i];
      *(EightWords*)even[i] = v << 16;
      *(EightWords*)odd[i] = v & 0xffff0000u;
    }
    for (int t = 0; t < n_tiles; t++) {
      const int at = (m * n_tiles + t) * 4;
      for (int l = 0; l < 32; l++) {
        memcpy(&d[l >> 2][(l & 3) * 2], lanes[l].d + at, 8);
        memcpy(&d[(l >> 2) + 8][(l & 3) * 2], lanes[l].d + at + 2, 8);
      }
      for (int i = 0; i < 16; i += 4) {
        Eight s0 = *(Eight*)d[i], s1 = *(Eight*)d[i + 1], s2 = *(Eight*)d[i + 2], s3 = *(Eight*)d[i + 3];
        for (int p = 0; p < 8; p++) {
          const Eight x = b_even[t][p], y = b_odd[t][p];
          s0 += even[i][p] * x, s1 += even[i + 1][p] * x, s2 += even[i + 2][p] * x, s3 += even[i + 3][p] * x;
          s0 += odd[i][p] * y, s1 += odd[i + 1][p] * y, s2 += odd[i + 2][p] * y, s3 += odd[i + 3][p] * y;
        }
        *(Eight*)d[i] = s0, *(Eight*)d[i + 1] = s1, *(Eight*)d[i + 2] = s2, *(Eight*)d[i + 3] = s3;
      }
      for (int l = 0; l < 32; l++) {
        memcpy(lanes[l].d + at, &d[l >> 2][(l & 3) * 2], 8);
        memcpy(lanes[l].d + at + 2, &d[(l >> 2) + 8][(l & 3) * 2], 8);
      }
    }
  }
}

EMU_TARGET void wgmma(float* d, const float* a, const float* b, int n) {
  for (int j = 0; j < n; j += 16) {
    const int second = j + 8 < n ? 8 : 0;  // n may be an odd number of eights: then the last are computed twice
    for (int i = 0; i < 64; i += 4) {
      float *d0 = &d[i * n + j], *d1 = d0 + n, *d2 = d1 + n, *d3 = d2 + n;
      Eight s0 = *(Eight*)d0, s1 = *(Eight*)d1, s2 = *(Eight*)d2, s3 = *(Eight*)d3;
      Eight t0 = *(Eight*)(d0 + second), t1 = *(Eight*)(d1 + second), t2 = *(Eight*)(d2 + second), t3 = *(Eight*)(d3 + second);
      for (int k = 0; k < 16; k++) {
        const float* r = &a[k * 64 + i];
        const Eight x = *(const Eight*)&b[k * n + j], y = *(const Eight*)&b[k * n + j + second];
        s0 += r[0] * x, s1 += r[1] * x, s2 += r[2] * x, s3 += r[3] * x;
        t0 += r[0] * y, t1 += r[1] * y, t2 += r[2] * y, t3 += r[3] * y;
      }
      *(Eight*)d0 = s0, *(Eight*)d1 = s1, *(Eight*)d2 = s2, *(Eight*)d3 = s3;
      *(Eight*)(d0 + second) = t0, *(Eight*)(d1 + second) = t1, *(Eight*)(d2 + second) = t2, *(Eight*)(d3 + second) = t3;
    }
  }
}
