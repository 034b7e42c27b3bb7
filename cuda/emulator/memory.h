// Device memory of the emulator.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {
struct Allocation {
  uint64_t device;         // whose it is
  uint8_t *map, *user;
  size_t map_bytes, bytes;
  uint8_t* shadow;         // of the race checker, made when it is first needed
  size_t shadow_bytes;
};
// The allocation whose pages, guard pages among them, hold the address; null where there is none. Stays valid while
// nobody frees it, and nobody frees what a running kernel uses.
Allocation* find_allocation(uintptr_t address);
}  // namespace emu
