#include "mmfree/core/types.h"

#include <array>

namespace mmfree {
namespace {
struct Named {
  DType type;
  std::string_view name;
};
constexpr std::array<Named, 10> kNames = {{{DType::f64, "F64"},
                                           {DType::f32, "F32"},
                                           {DType::f16, "F16"},
                                           {DType::bf16, "BF16"},
                                           {DType::i64, "I64"},
                                           {DType::i32, "I32"},
                                           {DType::i16, "I16"},
                                           {DType::i8, "I8"},
                                           {DType::u8, "U8"},
                                           {DType::boolean, "BOOL"}}};
}  // namespace

std::string_view dtype_name(DType t) {
  for (const Named& n : kNames)
    if (n.type == t) return n.name;
  return "?";
}

std::optional<DType> find_dtype(std::string_view name) {
  for (const Named& n : kNames)
    if (n.name == name) return n.type;
  return std::nullopt;
}

float f16_to_float(std::uint16_t v) {
  const std::uint32_t sign = (v & 0x8000U) << 16;
  const std::uint32_t exponent = (v >> 10) & 0x1fU;
  const std::uint32_t mantissa = v & 0x3ffU;
  if (exponent == 0x1fU) return std::bit_cast<float>(sign | 0x7f800000U | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
}

std::uint16_t float_to_f16(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (u >> 16) & 0x8000U;
  const std::uint32_t magnitude = u & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude >= 0x477ff000U) return static_cast<std::uint16_t>(sign | 0x7c00U);  // >= 65520
  if (magnitude < 0x38800000U) {  // below the smallest normal half, 2^-14
    // Adding 0.5 aligns the value so that the float unit itself rounds at 2^-24.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(aligned) - 0x3f000000U));
  }
  const std::uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

}  // namespace mmfree
