#pragma once
// How rows of ternary codes {-1, 0, +1} lie in bytes. A row of C codes is stored on its own, row
// after row without gaps. The fp16 scale `d` is little-endian; a code c stands for the weight c *
// d, and all blocks of a tensor carry the same d (the nearest fp16 of the tensor's exact fp32
// scale, which a GGUF file keeps in a tensor of its own).
//
// i8: one byte a code, two's complement, any C. No scale inside.
//
//   byte     0   1   2        C-1
//          | c0| c1| c2| ... |cC-1|
//
// tq2_0: blocks of 256 codes in 66 bytes (2.0625 bit a code), C a multiple of 256. A byte holds
// four codes that lie 32 apart, as c + 1 (0, 1, 2; 3 is invalid), the first one in the low bits.
//
//   byte     0 ............ 31 | 32 ........... 63 | 64 65
//          | codes 0 .. 127    | codes 128 .. 255  | d    |
//
//   byte j < 32 :  bits  7 6 | 5 4 | 3 2 | 1 0
//                 code  j+96 | j+64| j+32| j          (and 128 more for bytes 32 .. 63)
//
// tq1_0: blocks of 256 codes in 54 bytes (1.6875 bit a code), C a multiple of 256. Five codes of a
// byte are the digits c + 1 of a number n in base 3, the first code the most significant digit; the
// byte is the fraction n / 243 in units of 1/256, rounded up: b = ceil(n * 256 / 243). So
// multiplying by 3 brings the digits out one by one in the carry above 8 bits. The last four bytes
// hold four codes and a zero as the fifth digit.
//
//   byte     0 ............ 31 | 32 ............. 47 | 48 ............ 51 | 52 53
//          | codes 0 .. 159    | codes 160 .. 239    | codes 240 .. 255   | d    |
//
//   byte j < 32        : codes j, j+32, j+64, j+96, j+128
//   byte 32 + j, j < 16: codes 160 + j, + 16, + 32, + 48, + 64
//   byte 48 + j, j < 4 : codes 240 + j, + 4, + 8, + 12
#include <cstddef>
#include <string_view>

#include "mmfree/core/types.h"

namespace mmfree {

enum class TernaryFormat { i8, tq1_0, tq2_0 };

inline constexpr idx kTernaryBlockCodes = 256;
inline constexpr std::size_t kTq1BlockBytes = 54;
inline constexpr std::size_t kTq2BlockBytes = 66;
inline constexpr std::size_t kTq1ScaleOffset = 52;  // of d in its block
inline constexpr std::size_t kTq2ScaleOffset = 64;

// "i8", "tq1_0", "tq2_0".
constexpr std::string_view ternary_format_name(TernaryFormat format) {
  switch (format) {
    case TernaryFormat::i8:
      return "i8";
    case TernaryFormat::tq1_0:
      return "tq1_0";
    case TernaryFormat::tq2_0:
      return "tq2_0";
  }
  return "?";
}

// Whether rows of `cols` codes can be stored in this format.
constexpr bool ternary_format_allows(TernaryFormat format, idx cols) {
  return cols >= 0 && (format == TernaryFormat::i8 || cols % kTernaryBlockCodes == 0);
}

// Bytes of one row; `cols` must be allowed.
constexpr std::size_t ternary_row_bytes(TernaryFormat format, idx cols) {
  const std::size_t blocks = static_cast<std::size_t>(cols / kTernaryBlockCodes);
  switch (format) {
    case TernaryFormat::i8:
      return static_cast<std::size_t>(cols);
    case TernaryFormat::tq1_0:
      return blocks * kTq1BlockBytes;
    case TernaryFormat::tq2_0:
      return blocks * kTq2BlockBytes;
  }
  return 0;
}

}  // namespace mmfree
