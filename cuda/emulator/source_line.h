// Where in the kernels' sources a return address lies.
#pragma once
#include <string>

namespace emu {
// " (cuda/norm.cu:87)", by the program addr2line where there is one, else the address in the library.
std::string source_line(const void* return_address);
}  // namespace emu
