// A row's norm: of norm.cu, and of kernels that have just completed a row.
#pragma once
#include "common/reduce.cuh"
#include "common/rows.cuh"

namespace row_norm {

struct NormArgs {
  const bf16* x;
  const int32_t* rows;
  const bf16* weight;
  const bf16* bias;
  bf16* y;
  int64_t n_rows;
  int32_t d;
  float eps;
};

// A row is summed as by 128 threads, of which each has every 128th N columns: a thread's first, then 32 threads' by
// shuffles, then the four in order. So a warp, whose lanes stand for four threads each, and a warpgroup find the same bits.
struct Warp {
  static constexpr int THREADS = 32;
  static DEV int rank() { return threadIdx.x & 31; }
  // The sum over all threads, of what each found for those that it stands for.
  DEV float total(const float (&of)[4]) const {
    return warp_sum(of[0]) + warp_sum(of[1]) + warp_sum(of[2]) + warp_sum(of[3]);
  }
};

// A row as a Team holds it, N columns of a thread at a time. Where those are 16 bytes, 4096 columns stay in registers: they
// are read once, with all loads under way at once. What a row has beyond is read in each pass.
template <int N, class Team> struct Row {
  static constexpr int PARTS = 128 / Team::THREADS, KEPT = N == 8 ? 4 * PARTS : 0;
  const bf16* at;
  int d;
  V4 kept[KEPT + 1];

  DEV Row(const bf16* at, int d) : at(at), d(d) {
    UNROLL for (int i = 0; i < KEPT; i++) {
      if (column(i) < d) kept[i] = *(const V4*)(at + column(i));
    }
  }
  static DEV int column(int i) { return (i * Team::THREADS + Team::rank()) * N; }
  // Calls f(first column, which of the threads that this one stands for, N numbers of this row, N of the other).
  template <class F> DEV void each_with(const Row& other, F f) const {
    float v[N], w[N];
    UNROLL for (int i = 0; i < KEPT; i++) {
      if (column(i) >= d) continue;
      load<N>((const bf16*)&kept[i], v), load<N>((const bf16*)&other.kept[i], w);
      f(column(i), i % PARTS, v, w);
    }
    for (int i = KEPT; column(i) < d; i += PARTS) UNROLL for (int part = 0; part < PARTS; part++) {
      const int c = column(i + part);
      if (c >= d) continue;
      load<N>(at + c, v), load<N>(other.at + c, w);
      f(c, part, v, w);
    }
  }
  // The sum over the row of what f(N numbers) gives.
  template <class F> DEV float sum(const Team& team, F f) const {
    float of[PARTS] = {};
    each_with(*this, [&](int, int part, float (&v)[N], float (&)[N]) { of[part] += f(v); });
    return team.total(of);
  }
};

// Mean (0 for RMS) and reciprocal deviation of a row, the same in every thread.
template <int N, class Team>
DEV void statistics(const Team& team, const Row<N, Team>& x, bool layer, float eps, float& mean, float& r) {
  const float m = !layer ? 0.0f : x.sum(team, [](const float (&v)[N]) {
    float sum = 0.0f;
    UNROLL for (int i = 0; i < N; i++) sum += v[i];
    return sum;
  }) / (float)x.d;
  const float squares = x.sum(team, [&](const float (&v)[N]) {
    float sum = 0.0f;
    UNROLL for (int i = 0; i < N; i++) sum += (v[i] - m) * (v[i] - m);
    return sum;
  });
  mean = m, r = 1.0f / sqrtf(squares / (float)x.d + eps);
}

// Row `row` of y.
template <int N, class Team> DEV void normalise(const Team& team, const NormArgs& a, int64_t row) {
  const Row<N, Team> x(a.x + (a.rows ? (int64_t)a.rows[row] : row) * a.d, a.d), weight(a.weight, a.d);
  bf16* y = a.y + row * a.d;
  const bool layer = a.bias != nullptr;
  float mean, r, b[N];
  statistics<N>(team, x, layer, a.eps, mean, r);
  x.each_with(weight, [&](int c, int, float (&v)[N], float (&w)[N]) {
    if (layer) {
      load<N>(a.bias + c, b);
      UNROLL for (int i = 0; i < N; i++) v[i] = (v[i] - mean) * r * w[i] + b[i];
    } else {
      UNROLL for (int i = 0; i < N; i++) v[i] = round_bf16(v[i] * r) * w[i];
    }
    store<N>(y + c, v);
  });
}

}  // namespace row_norm
