#pragma once
// Instruction sets and the tables that choose a kernel among its variants.
#include <string_view>

namespace mmfree {

// In ascending order. An x86 CPU of one has all before it but neon, which is ARM's (with the dot
// product of ARMv8.2), and avxvnni, which AVX-512 takes the place of: an op with an avxvnni variant
// has an avx512 one. avx512vbmi: with GFNI. amx: its tiles of int8.
enum class Isa { scalar, neon, avx2, avxvnni, avx512, avx512vbmi, amx };

inline constexpr Isa kAllIsas[] = {Isa::scalar, Isa::neon,       Isa::avx2, Isa::avxvnni,
                                   Isa::avx512, Isa::avx512vbmi, Isa::amx};

std::string_view isa_name(Isa isa);
bool cpu_has(Isa isa);

// The best instruction set of this machine, or the one that the environment variable MMFREE_ISA
// names (see isa_name). Throws a usage Error if the CPU lacks it or the name is unknown.
Isa active_isa();

// One row of an op's table of variants; tables list the best first.
template <class Fn>
struct Variant {
  Isa isa;
  Fn fn;
};

// The first variant that needs no more than `isa`.
template <class Table>
auto pick(const Table& table, Isa isa) {
  for (const auto& v : table)
    if (v.isa <= isa) return v.fn;
  return table[std::size(table) - 1].fn;
}

}  // namespace mmfree
