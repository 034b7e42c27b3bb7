// The builds without the race checker; race.cpp has the other definition.
#include "race.h"

namespace emu {
const RaceHooks* const race_hooks = nullptr;
}
