// How a kernel and the layout of its argument struct make themselves known to the launcher.
#pragma once
#include <cstddef>
#include <cstdint>

#include "api.h"

namespace emu {
struct Kernel {
  const char* name;
  void (*invoke)(const void* argument);
  uint64_t argument_bytes;
  uint32_t max_threads;
  Kernel* next;
};
void register_kernel(Kernel* kernel);
void register_field(const VlmEmuField& field);

// Calls a kernel with its one argument.
template <auto Function> struct Invoke;
template <class Argument, void (*Function)(Argument)> struct Invoke<Function> {
  static constexpr uint64_t bytes = sizeof(Argument);
  static void run(const void* argument) { Function(*static_cast<const Argument*>(argument)); }
};
struct Registration {
  Kernel kernel;
  Registration(const char* name, void (*invoke)(const void*), uint64_t bytes, uint32_t max_threads)
      : kernel{name, invoke, bytes, max_threads, nullptr} {
    register_kernel(&kernel);
  }
};
struct FieldRegistration {
  FieldRegistration(const char* structure, uint64_t structure_bytes, const char* field, uint64_t offset, uint64_t bytes) {
    register_field({structure, structure_bytes, field, offset, bytes});
  }
};
}  // namespace emu

// LAYOUT(Struct, field, ...) publishes name, offset and size of each field, for a test that compares them with Rust's.
#define EMU_FIELD(S, F) \
  static const emu::FieldRegistration emu_field_##S##_##F(#S, sizeof(S), #F, offsetof(S, F), sizeof(S::F));
#define EMU_PARENS ()
#define EMU_EXPAND(...) EMU_EXPAND3(EMU_EXPAND3(EMU_EXPAND3(EMU_EXPAND3(__VA_ARGS__))))
#define EMU_EXPAND3(...) EMU_EXPAND2(EMU_EXPAND2(EMU_EXPAND2(EMU_EXPAND2(__VA_ARGS__))))
#define EMU_EXPAND2(...) EMU_EXPAND1(EMU_EXPAND1(EMU_EXPAND1(EMU_EXPAND1(__VA_ARGS__))))
#define EMU_EXPAND1(...) __VA_ARGS__
#define EMU_EACH(S, F, ...) EMU_FIELD(S, F) __VA_OPT__(EMU_EACH_AGAIN EMU_PARENS(S, __VA_ARGS__))
#define EMU_EACH_AGAIN() EMU_EACH
#define EMU_LAYOUT(S, ...) EMU_EXPAND(EMU_EACH(S, __VA_ARGS__))
