#pragma once
// Instruction sets and the tables that choose a kernel among its variants.
#include <string_view>

namespace mmfree {

enum class Isa { scalar, avx2, avx512 };

std::string_view isa_name(Isa isa);
bool cpu_has(Isa isa);

// The best instruction set of this machine, or the one that the environment variable MMFREE_ISA
// names (scalar, avx2, avx512). Throws a usage Error if the CPU lacks it or the name is unknown.
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
