#include "mmfree/core/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/core/parallel.h"

namespace mmfree {

#if defined(__x86_64__)
namespace {
// CPUID leaf 7, sub-leaf 1, EAX bit 4; the compiler's own name for it is younger than GCC 12.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1U) != 0;
}

// Tiles of int8 (leaf 7, EDX bits 24 and 25), and the system's leave to use them: their 8 KB of
// state are saved only for processes that asked.
bool may_use_amx() {
#ifdef __linux__
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 3U) != 3U) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
}  // namespace
#endif

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::neon:
      return "neon";
    case Isa::avx2:
      return "avx2";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512vbmi:
      return "avx512vbmi";
    case Isa::amx:
      return "amx";
  }
  return "?";
}

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::neon:
      return false;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
    case Isa::avxvnni:
      return cpu_has(Isa::avx2) && has_avxvnni();
    case Isa::avx512:
      return cpu_has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512vbmi:
      return cpu_has(Isa::avx512) && __builtin_cpu_supports("avx512vbmi") &&
             __builtin_cpu_supports("gfni");
    case Isa::amx: {
      static const bool usable = cpu_has(Isa::avx512vbmi) && may_use_amx();
      return usable;
    }
  }
  return false;
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
  return isa == Isa::scalar || (isa == Isa::neon && (getauxval(AT_HWCAP) & kDotProduct) != 0);
#else
  return isa == Isa::scalar;
#endif
}

namespace {
Isa detect() {
  if (const char* forced = std::getenv("MMFREE_ISA"); forced != nullptr && *forced != '\0') {
    for (const Isa isa : kAllIsas) {
      if (isa_name(isa) != forced) continue;
      if (!cpu_has(isa))
        fail(ErrorKind::usage, std::string("MMFREE_ISA=") + forced + ": this CPU lacks it");
      return isa;
    }
    fail(ErrorKind::usage,
         std::string("MMFREE_ISA=") + forced +
             ": unknown; expected scalar, neon, avx2, avxvnni, avx512, avx512vbmi or amx");
  }
  Isa best = Isa::scalar;
  for (const Isa isa : kAllIsas)
    if (cpu_has(isa)) best = isa;
  return best;
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
