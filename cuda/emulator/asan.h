// What AddressSanitizer has to be told about stacks and memory; nothing in the other builds.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN 1
#else
#define EMU_ASAN 0
#endif

namespace emu {
#if EMU_ASAN
inline void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
// Before a switch to another stack; `own` keeps what belongs to the one that is left, null where it will not be used again.
inline void before_switch(void** own, const void* stack, size_t bytes) { __sanitizer_start_switch_fiber(own, stack, bytes); }
inline void after_switch(void* own) { __sanitizer_finish_switch_fiber(own, nullptr, nullptr); }
#else
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
inline void before_switch(void**, const void*, size_t) {}
inline void after_switch(void*) {}
#endif
}  // namespace emu
