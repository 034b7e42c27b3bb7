// The handlers of -fsanitize=undefined for kernels: each becomes an error of the launch that names the line. The compiler
// passes a description whose first field is the place in the source.
#include <cstdint>

#include "block.h"

namespace {
struct Place {
  const char* file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, info;
  char name[1];
};
struct Mismatch {
  Place place;
  const Type* type;
  uint8_t log_alignment, access;
};
struct OutOfBounds {
  Place place;
  const Type *array, *index;
};

[[noreturn]] void undefined(const Place* at, const char* what) {
  emu::fail("undefined behaviour at %s:%u:%u: %s", at->file ? at->file : "?", at->line, at->column, what);
}
}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1_abort(Mismatch* data, uintptr_t pointer) {
  emu::fail("undefined behaviour at %s:%u:%u: address 0x%zx is not aligned to %u bytes for type %s", data->place.file,
            data->place.line, data->place.column, (size_t)pointer, 1u << data->log_alignment, data->type->name);
}
void __ubsan_handle_alignment_assumption_abort(Place* data, uintptr_t, uintptr_t, uintptr_t) { undefined(data, "a misaligned pointer"); }
void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, uintptr_t index) {
  emu::fail("undefined behaviour at %s:%u:%u: index %lld of an array %s", data->place.file, data->place.line,
            data->place.column, (long long)index, data->array->name);
}
void __ubsan_handle_shift_out_of_bounds_abort(Place* data, uintptr_t, uintptr_t) { undefined(data, "a shift by more bits than the type has, or of a negative number"); }
void __ubsan_handle_add_overflow_abort(Place* data, uintptr_t, uintptr_t) { undefined(data, "signed overflow of +"); }
void __ubsan_handle_sub_overflow_abort(Place* data, uintptr_t, uintptr_t) { undefined(data, "signed overflow of -"); }
void __ubsan_handle_mul_overflow_abort(Place* data, uintptr_t, uintptr_t) { undefined(data, "signed overflow of *"); }
void __ubsan_handle_negate_overflow_abort(Place* data, uintptr_t) { undefined(data, "signed overflow of a negation"); }
void __ubsan_handle_divrem_overflow_abort(Place* data, uintptr_t, uintptr_t) { undefined(data, "integer division by zero, or one that overflows"); }
// The only description that may begin without a place, in old compilers; g++ 8 and newer give it.
void __ubsan_handle_float_cast_overflow_abort(Place* data, uintptr_t) { undefined(data, "a float outside of the integer's range, or NaN, made an integer"); }
}
