#pragma once
// Index type, element types of files and the 16-bit float formats.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace mmfree {

// Extents, offsets and counts. Never int for a product of dimensions.
using idx = std::int64_t;

enum class DType : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };

constexpr std::size_t dtype_size(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
      return 2;
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      return 1;
  }
  return 0;
}

// Names as safetensors spells them: "F32", "BF16", ...
std::string_view dtype_name(DType t);
std::optional<DType> find_dtype(std::string_view name);

// bfloat16: the upper half of a float. Rounds to nearest even; NaN stays NaN.
inline float bf16_to_float(std::uint16_t v) {
  return std::bit_cast<float>(std::uint32_t{v} << 16);
}
inline std::uint16_t float_to_bf16(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  if ((u & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((u >> 16) | 0x40U);
  return static_cast<std::uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}

// IEEE half precision. Rounds to nearest even, overflow gives infinity, subnormals are kept.
float f16_to_float(std::uint16_t v);
std::uint16_t float_to_f16(float x);

}  // namespace mmfree
