#include "mmfree/core/cpu.h"

#include <cstdlib>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/core/parallel.h"

namespace mmfree {

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "?";
}

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    case Isa::avx512:
      return cpu_has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return isa == Isa::scalar;
#endif
}

namespace {
Isa detect() {
  if (const char* forced = std::getenv("MMFREE_ISA"); forced != nullptr && *forced != '\0') {
    for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
      if (isa_name(isa) != forced) continue;
      if (!cpu_has(isa))
        fail(ErrorKind::usage, std::string("MMFREE_ISA=") + forced + ": this CPU lacks it");
      return isa;
    }
    fail(ErrorKind::usage,
         std::string("MMFREE_ISA=") + forced + ": unknown; expected scalar, avx2 or avx512");
  }
  for (const Isa isa : {Isa::avx512, Isa::avx2})
    if (cpu_has(isa)) return isa;
  return Isa::scalar;
}
}  // namespace

Isa active_isa() {
  static const Isa isa = detect();
  return isa;
}

int default_threads() {
  const int n = omp_get_num_procs();
  return n < 1 ? 1 : n;
}

}  // namespace mmfree
