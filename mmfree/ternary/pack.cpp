#include "mmfree/ternary/pack.h"

#include <fmt/format.h>

#include <cstring>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {

using u8 = std::uint8_t;

// ceil(n * 256 / 243) for the 3^5 values n of five digits; see formats.h.
u8 fraction_byte(int n) {
  return static_cast<u8>((n * 256 + 242) / 243);
}

// `bytes` bytes, each of `digits` codes that lie `bytes` apart; a missing fifth digit is zero.
void pack_digits(const std::int8_t* codes, int bytes, int digits, u8* out) {
  for (int j = 0; j < bytes; ++j) {
    int n = 0;
    for (int k = 0; k < 5; ++k) n = n * 3 + (k < digits ? codes[k * bytes + j] + 1 : 0);
    out[j] = fraction_byte(n);
  }
}

void pack_tq1(const std::int8_t* codes, u8* out) {
  pack_digits(codes, 32, 5, out);
  pack_digits(codes + 160, 16, 5, out + 32);
  pack_digits(codes + 240, 4, 4, out + 48);
}

void pack_tq2(const std::int8_t* codes, u8* out) {
  for (int half = 0; half < 2; ++half) {
    for (int j = 0; j < 32; ++j) {
      const std::int8_t* c = codes + 128 * half + j;
      const int b = (c[0] + 1) | (c[32] + 1) << 2 | (c[64] + 1) << 4 | (c[96] + 1) << 6;
      out[32 * half + j] = static_cast<u8>(b);
    }
  }
}

// The carry above 8 bits of 3 v is (v >= 86) + (v >= 171), so a digit costs byte operations only,
// which compilers turn into vector code. The fixed sizes let them unroll.
template <int kBytes, int kDigits>
void unpack_digits(const u8* in, std::int8_t* codes) {
  u8 v[kBytes];
  std::memcpy(v, in, kBytes);
  for (int k = 0; k < kDigits; ++k) {
    for (int j = 0; j < kBytes; ++j) {
      const int digit = static_cast<int>(v[j] >= 86) + static_cast<int>(v[j] >= 171);
      codes[k * kBytes + j] = static_cast<std::int8_t>(digit - 1);
      v[j] = static_cast<u8>(3 * v[j]);
    }
  }
}

void unpack_tq1(const u8* in, std::int8_t* codes) {
  unpack_digits<32, 5>(in, codes);
  unpack_digits<16, 5>(in + 32, codes + 160);
  unpack_digits<4, 4>(in + 48, codes + 240);
}

void unpack_tq2(const u8* in, std::int8_t* codes) {
  for (int half = 0; half < 2; ++half) {
    u8 v[32];
    std::memcpy(v, in + 32 * half, sizeof v);
    for (int k = 0; k < 4; ++k)
      for (int j = 0; j < 32; ++j)
        codes[128 * half + 32 * k + j] = static_cast<std::int8_t>((v[j] >> (2 * k) & 3) - 1);
  }
}

u8* bytes_of(std::byte* p) {
  return reinterpret_cast<u8*>(p);
}
const u8* bytes_of(const std::byte* p) {
  return reinterpret_cast<const u8*>(p);
}

void check_scales(const std::byte* row, idx blocks, std::size_t block_bytes, std::size_t offset,
                  std::optional<std::uint16_t> expected, idx r, std::string_view name) {
  for (idx b = 0; b < blocks; ++b) {
    std::uint16_t d = 0;
    std::memcpy(&d, row + static_cast<std::size_t>(b) * block_bytes + offset, sizeof d);
    if ((d & 0x7c00U) == 0x7c00U)
      fail(ErrorKind::format,
           fmt::format("{}: row {}, block {}: scale is {}, expected a finite number", name, r, b,
                       f16_to_float(d)));
    if (expected && d != *expected)
      fail(ErrorKind::format,
           fmt::format("{}: row {}, block {}: scale is {}, expected the tensor's scale {}", name, r,
                       b, f16_to_float(d), f16_to_float(*expected)));
  }
}

}  // namespace

void pack_row(TernaryFormat format, const std::int8_t* codes, idx cols, std::uint16_t scale_f16,
              std::byte* out) noexcept {
  if (cols == 0) return;  // the pointers may be null then, which memcpy forbids
  if (format == TernaryFormat::i8) {
    std::memcpy(out, codes, static_cast<std::size_t>(cols));
    return;
  }
  const bool tq1 = format == TernaryFormat::tq1_0;
  const std::size_t step = tq1 ? kTq1BlockBytes : kTq2BlockBytes;
  for (idx b = 0; b < cols / kTernaryBlockCodes; ++b) {
    const std::int8_t* c = codes + b * kTernaryBlockCodes;
    (tq1 ? pack_tq1 : pack_tq2)(c, bytes_of(out));
    std::memcpy(out + (tq1 ? kTq1ScaleOffset : kTq2ScaleOffset), &scale_f16, sizeof scale_f16);
    out += step;
  }
}

void unpack_row(TernaryFormat format, const std::byte* row, idx cols, std::int8_t* codes) noexcept {
  if (cols == 0) return;
  const idx blocks = cols / kTernaryBlockCodes;
  switch (format) {
    case TernaryFormat::i8:
      std::memcpy(codes, row, static_cast<std::size_t>(cols));
      return;
    case TernaryFormat::tq1_0:
      for (idx b = 0; b < blocks; ++b, row += kTq1BlockBytes, codes += kTernaryBlockCodes)
        unpack_tq1(bytes_of(row), codes);
      return;
    case TernaryFormat::tq2_0:
      for (idx b = 0; b < blocks; ++b, row += kTq2BlockBytes, codes += kTernaryBlockCodes)
        unpack_tq2(bytes_of(row), codes);
      return;
  }
}

void validate_rows(TernaryFormat format, const std::byte* rows_data, idx rows, idx cols,
                   std::optional<std::uint16_t> scale_f16, std::string_view name) {
  const std::size_t row_bytes = ternary_row_bytes(format, cols);
  const idx blocks = cols / kTernaryBlockCodes;
  for (idx r = 0; r < rows; ++r) {
    const std::byte* row = rows_data + static_cast<std::size_t>(r) * row_bytes;
    const u8* p = bytes_of(row);
    if (format == TernaryFormat::tq1_0) {
      check_scales(row, blocks, kTq1BlockBytes, kTq1ScaleOffset, scale_f16, r, name);
      continue;
    }
    if (format == TernaryFormat::i8) {
      unsigned bad = 0;
      // -1, 0, 1 are 0, 1, 2 after adding one; anything else wraps or stays above.
      for (idx i = 0; i < cols; ++i) bad |= static_cast<u8>(p[i] + 1) > 2;
      if (bad == 0) continue;
      idx i = 0;
      while (static_cast<u8>(p[i] + 1) <= 2) ++i;
      fail(ErrorKind::format,
           fmt::format("{}: row {}, column {}: code is {}, expected -1, 0 or 1", name, r, i,
                       static_cast<int>(static_cast<std::int8_t>(p[i]))));
    }
    check_scales(row, blocks, kTq2BlockBytes, kTq2ScaleOffset, scale_f16, r, name);
    unsigned bad = 0;  // has a low bit of a pair set where both bits of it are
    for (idx b = 0; b < blocks; ++b)
      for (std::size_t j = 0; j < kTq2ScaleOffset; ++j) {
        const unsigned v = p[static_cast<std::size_t>(b) * kTq2BlockBytes + j];
        bad |= v & (v >> 1) & 0x55U;
      }
    if (bad != 0)
      fail(ErrorKind::format,
           fmt::format("{}: row {}: holds the 2-bit code 3, expected 0, 1 or 2", name, r));
  }
}

}  // namespace mmfree
