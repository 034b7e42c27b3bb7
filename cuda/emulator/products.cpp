#include "products.h"

#include <cstring>

namespace emu {
namespace {
namespace any {
#define EMU_TARGET
#include "products_body.h"
#undef EMU_TARGET
}  // namespace any
namespace avx2 {
#define EMU_TARGET __attribute__((target("avx2")))
#include "products_body.h"
#undef EMU_TARGET
}  // namespace avx2
}  // namespace

const Products& products() {
  static const Products chosen =
      __builtin_cpu_supports("avx2") ? Products{avx2::mma, avx2::wgmma} : Products{any::mma, any::wgmma};
  return chosen;
}
}  // namespace emu
