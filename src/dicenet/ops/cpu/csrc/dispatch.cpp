// Which level's kernels to run.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace dicenet {

#ifdef DICENET_HAVE_X86_LEVELS
namespace avx512 {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
#endif
namespace baseline {
extern const Kernels table;
}

namespace {

#ifdef DICENET_HAVE_X86_LEVELS
// -march=x86-64-v4 and -v3 in full: the compiler may use any instruction of theirs
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
#endif

const Kernels& choose() {
  const char* wish = std::getenv("DICENET_CPU");
  if (!wish) wish = std::getenv("ATEN_CPU_CAPABILITY");
  if (wish && !std::strcmp(wish, "default")) wish = "baseline";
  if (wish) {
    if (const Kernels* k = kernels_of(wish)) return *k;
  }
  for (const char* level : {"avx512", "avx2"}) {
    if (const Kernels* k = kernels_of(level)) return *k;
  }
  return baseline::table;
}

}  // namespace

const Kernels* kernels_of(const char* level) {
#ifdef DICENET_HAVE_X86_LEVELS
  if (!std::strcmp(level, "avx512")) return has_avx512() ? &avx512::table : nullptr;
  if (!std::strcmp(level, "avx2")) return has_avx2() ? &avx2::table : nullptr;
#endif
  return std::strcmp(level, "baseline") ? nullptr : &baseline::table;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace dicenet
