// Instructions that a warp runs together. Each lane leaves its arguments and waits; the last lane runs the instruction for
// all of them, reading and writing the registers of the others through pointers into their stacks.
#include <cstring>

#include "block.h"
#include "products.h"

namespace emu {
namespace {
using Run = void (*)(void** arguments, uint32_t mask);

void meet(uint32_t mask, Run run, void* argument, const char* what) {
  Thread* me = self();
  Warp& warp = block->warps[me->linear >> 5];
  const uint32_t lane = 1u << me->lane;
  if (!(mask & lane)) fail("%s: lane %u is not in its own mask 0x%08x", what, me->lane, mask);
  Rendezvous* place = nullptr;
  for (Rendezvous& m : warp.meetings) {
    if (!m.arrived) {
      if (!place) place = &m;
    } else if (m.mask == mask) {
      if (m.instruction != (const void*)run) fail("lanes of one warp are at different instructions: %s and %s", what, m.what);
      place = &m;
      break;
    } else if (m.mask & mask) {
      fail("divergent warp: %s of the lanes 0x%08x while %s of the lanes 0x%08x waits", what, mask, m.what, m.mask);
    }
  }
  if (!place) fail("%s: more than four groups of lanes in one warp", what);
  if (!place->arrived) {
    place->mask = mask;
    place->instruction = (const void*)run;
    place->what = what;
  }
  place->arguments[me->lane] = argument;
  place->arrived |= lane;
  if (place->arrived != mask) {
    suspend(State::Collective, what, mask, 0);
    return;
  }
  run(place->arguments, mask);
  place->arrived = 0;
  make_ready(me->linear >> 5, mask & ~lane);
}

template <class Visit> void each_lane(uint32_t mask, Visit visit) {
  for (uint32_t lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) visit(lane);
}

void run_syncwarp(void**, uint32_t mask) {
  if (race_hooks) race_hooks->syncwarp(self()->linear >> 5, mask);
}

struct LaneValue { uint32_t value, lane, width, result; };

template <Shuffle How> void run_shuffle(void** arguments, uint32_t mask) {
  each_lane(mask, [&](uint32_t lane) {
    LaneValue* a = (LaneValue*)arguments[lane];
    const uint32_t base = lane & ~(a->width - 1), end = base + a->width;
    uint32_t from = lane;
    if (How == Shuffle::Index) from = base + (a->lane & (a->width - 1));
    if (How == Shuffle::Up && lane >= base + a->lane) from = lane - a->lane;
    if (How == Shuffle::Down && lane + a->lane < end) from = lane + a->lane;
    if (How == Shuffle::Xor && (lane ^ a->lane) < end) from = lane ^ a->lane;
    if (!(mask >> from & 1)) fail("shfl: lane %u reads lane %u, which is not in the mask 0x%08x", lane, from, mask);
    a->result = ((LaneValue*)arguments[from])->value;
  });
}

void run_ballot(void** arguments, uint32_t mask) {
  uint32_t votes = 0;
  each_lane(mask, [&](uint32_t lane) { votes |= ((LaneValue*)arguments[lane])->value << lane; });
  each_lane(mask, [&](uint32_t lane) { ((LaneValue*)arguments[lane])->result = votes; });
}
void run_setmaxnreg(void** arguments, uint32_t) {
  for (int lane = 1; lane < 32; lane++)
    if (((LaneValue*)arguments[lane])->value != ((LaneValue*)arguments[0])->value)
      fail("setmaxnreg: the lanes of a warp ask for different numbers of registers");
}

// A matrix of 8 x 8: lane l holds elements (l / 4, 2 (l % 4) + {0, 1}), or transposed those of (column, row).
struct MatrixArgument { uint32_t* registers; uint32_t address; };
using Matrix = uint16_t[8][8];

void lane_from(const Matrix& m, uint32_t lane, bool transposed, uint32_t* out) {
  const uint32_t row = lane >> 2, column = (lane & 3) * 2;
  if (transposed) *out = m[column][row] | (uint32_t)m[column + 1][row] << 16;
  else *out = m[row][column] | (uint32_t)m[row][column + 1] << 16;
}
void lane_into(Matrix& m, uint32_t lane, bool transposed, uint32_t in) {
  const uint32_t row = lane >> 2, column = (lane & 3) * 2;
  (transposed ? m[column][row] : m[row][column]) = (uint16_t)in;
  (transposed ? m[column + 1][row] : m[row][column + 1]) = (uint16_t)(in >> 16);
}

template <int N, bool Transposed> void run_ldmatrix(void** arguments, uint32_t) {
  for (uint32_t n = 0; n < N; n++) {
    Matrix m;
    for (uint32_t row = 0; row < 8; row++) {
      const uint32_t lane = n * 8 + row, address = ((MatrixArgument*)arguments[lane])->address;
      memcpy(m[row], shared_at(address, 16, 16, "ldmatrix"), 16);
      if (race_hooks)
        race_hooks->shared_access((self()->linear & ~31u) + lane, address - kSharedBase, 16, false, "ldmatrix");
    }
    for (uint32_t lane = 0; lane < 32; lane++)
      lane_from(m, lane, Transposed, &((MatrixArgument*)arguments[lane])->registers[n]);
  }
}
template <int N, bool Transposed> void run_stmatrix(void** arguments, uint32_t) {
  for (uint32_t n = 0; n < N; n++) {
    Matrix m;
    for (uint32_t lane = 0; lane < 32; lane++)
      lane_into(m, lane, Transposed, ((MatrixArgument*)arguments[lane])->registers[n]);
    for (uint32_t row = 0; row < 8; row++) {
      const uint32_t lane = n * 8 + row, address = ((MatrixArgument*)arguments[lane])->address;
      // Every lane contributed to a row; the one that gave its address stands for them.
      const Thread& writer = block->threads[(self()->linear & ~31u) + lane];
      memcpy(shared_at(address, 16, 16, "stmatrix"), m[row], 16);
      if (race_hooks) race_hooks->shared_access(writer.linear, address - kSharedBase, 16, true, "stmatrix");
      mark_unfenced(address - kSharedBase, 16, &writer);
    }
  }
}

struct MmaArgument { float* d; const uint32_t *a, *b; int m_tiles, n_tiles; };
void run_mma(void** arguments, uint32_t) {
  MmaLane lanes[32];
  const MmaArgument* first = (MmaArgument*)arguments[0];
  for (int l = 0; l < 32; l++) {
    const MmaArgument* a = (MmaArgument*)arguments[l];
    if (a->m_tiles != first->m_tiles || a->n_tiles != first->n_tiles) fail("mma.sync: the lanes of a warp differ in the tile");
    lanes[l] = {a->d, a->a, a->b};
  }
  products().mma(lanes, first->m_tiles, first->n_tiles);
}
constexpr uint32_t kAll = 0xffffffffu;
}  // namespace

void syncwarp(uint32_t mask) { meet(mask, run_syncwarp, nullptr, "__syncwarp"); }

uint32_t shuffle(uint32_t mask, uint32_t value, uint32_t lane_or_delta, Shuffle how, uint32_t width) {
  if (width == 0 || width > 32 || (width & (width - 1))) fail("shfl: width %u is not a power of two up to 32", width);
  LaneValue a{value, lane_or_delta, width, 0};
  switch (how) {
    case Shuffle::Index: meet(mask, run_shuffle<Shuffle::Index>, &a, "shfl"); break;
    case Shuffle::Up: meet(mask, run_shuffle<Shuffle::Up>, &a, "shfl.up"); break;
    case Shuffle::Down: meet(mask, run_shuffle<Shuffle::Down>, &a, "shfl.down"); break;
    case Shuffle::Xor: meet(mask, run_shuffle<Shuffle::Xor>, &a, "shfl.bfly"); break;
  }
  return a.result;
}
uint32_t ballot(uint32_t mask, bool predicate) {
  LaneValue a{predicate, 0, 0, 0};
  meet(mask, run_ballot, &a, "vote");
  return a.result;
}
void setmaxnreg(uint32_t registers, bool increase) {
  if (registers % 8 != 0 || registers < 24 || registers > 256) fail("setmaxnreg: %u registers", registers);
  LaneValue a{registers << 1 | increase, 0, 0, 0};
  meet(kAll, run_setmaxnreg, &a, "setmaxnreg");
}

void ldmatrix(uint32_t* registers, uint32_t address, int matrices, bool transposed) {
  MatrixArgument a{registers, address};
  if (matrices == 4) meet(kAll, transposed ? run_ldmatrix<4, true> : run_ldmatrix<4, false>, &a, "ldmatrix.x4");
  else meet(kAll, transposed ? run_ldmatrix<2, true> : run_ldmatrix<2, false>, &a, "ldmatrix.x2");
}
void stmatrix(uint32_t address, const uint32_t* registers, int matrices, bool transposed) {
  MatrixArgument a{const_cast<uint32_t*>(registers), address};
  if (matrices == 4) meet(kAll, transposed ? run_stmatrix<4, true> : run_stmatrix<4, false>, &a, "stmatrix.x4");
  else meet(kAll, transposed ? run_stmatrix<2, true> : run_stmatrix<2, false>, &a, "stmatrix.x2");
}
void mma_16816(float* d, const uint32_t* a, const uint32_t* b, int m_tiles, int n_tiles) {
  MmaArgument argument{d, a, b, m_tiles, n_tiles};
  meet(kAll, run_mma, &argument, "mma.sync.m16n8k16");
}
}  // namespace emu
