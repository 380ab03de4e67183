#pragma once
// Internal: sizes and entry points of the laboratory's kernels. Raw pointers only, as the files of
// one instruction set need.
#include <cstdint>

#include "mmfree/core/types.h"

namespace mmfree::lab {

// Codes of one token as the kernels read them.
struct Token {
  const std::int8_t* q;          // (K), zeros up to padded_inputs(K)
  const std::uint8_t* prepared;  // what prepare() made
  std::int32_t sum;              // of all codes
};

inline constexpr idx kLut3Outputs = 128;  // a step: 9 inputs, 256 bytes; 192 bytes of tables
inline constexpr idx kLut3Inputs = 9;
inline constexpr idx kLut5Outputs = 256;  // a step: 5 inputs, 256 bytes; 512 bytes of tables
inline constexpr idx kLut5Inputs = 5;
inline constexpr int kLut5Offset = 640;    // makes the sums of five codes positive
inline constexpr idx kBitmapOutputs = 64;  // a step: 4 inputs, 32 bytes of bits
inline constexpr idx kBitmapInputs = 4;
inline constexpr idx kListOutputs = 64;
inline constexpr idx kListInputs = 63;

// A block of `lists` starts with the numbers of vectors of its four groups of 16 outputs, +1 then
// -1; then the vectors' numbers of 63 inputs (16 bits each), and from a multiple of 64 on the
// vectors.
inline constexpr idx kListHeader = 8;
constexpr idx list_vectors_at(idx vectors) {
  return (kListHeader * 4 + vectors * 2 + 63) / 64 * 64;
}
// A block of `bitmap`: bits of all steps, then the signs.
constexpr idx bitmap_signs_at(idx in) {
  return (in + kBitmapInputs - 1) / kBitmapInputs * 32;
}

#define MMFREE_LAB_KERNELS(isa)                                                \
  namespace isa {                                                              \
  void lut3w_prepare(const std::int8_t*, std::uint8_t*, idx, idx) noexcept;    \
  void lut3w(const std::uint8_t*, idx, const Token&, std::int32_t*) noexcept;  \
  void lut5b_prepare(const std::int8_t*, std::uint8_t*, idx, idx) noexcept;    \
  void lut5b(const std::uint8_t*, idx, const Token&, std::int32_t*) noexcept;  \
  void bitmap(const std::uint8_t*, idx, const Token&, std::int32_t*) noexcept; \
  void lists_prepare(const std::int8_t*, std::uint8_t*, idx, idx) noexcept;    \
  void lists(const std::uint8_t*, idx, const Token&, std::int32_t*) noexcept;  \
  }
MMFREE_LAB_KERNELS(scalar)
MMFREE_LAB_KERNELS(avx512vbmi)
#undef MMFREE_LAB_KERNELS

}  // namespace mmfree::lab
