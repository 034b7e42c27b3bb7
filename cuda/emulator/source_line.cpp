#include "source_line.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace emu {
std::string source_line(const void* return_address) {
  Dl_info info;
  if (!dladdr(return_address, &info) || !info.dli_fname) return "";
  // The call is the instruction before the return address.
  const size_t offset = (size_t)return_address - (size_t)info.dli_fbase - 1;
  std::string library = info.dli_fname;
  const char* mine = "/proc/self/";
  if (library.rfind(mine, 0) == 0) library = "/proc/" + std::to_string(getpid()) + "/" + library.substr(strlen(mine));
  char command[512];
  snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", library.c_str(), offset);
  char line[512] = "";
  if (FILE* said = popen(command, "r")) {
    if (!fgets(line, sizeof line, said)) line[0] = 0;
    pclose(said);
  }
  line[strcspn(line, " \n")] = 0;
  // Paths begin at the folder of the kernels.
  const char* start = strstr(line, "cuda/");
  char text[640];
  if (line[0] && line[0] != '?') snprintf(text, sizeof text, " (%s)", start ? start : line);
  else snprintf(text, sizeof text, " (at 0x%zx of the library)", offset);
  return text;
}
}  // namespace emu
