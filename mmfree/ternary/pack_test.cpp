#include "mmfree/ternary/pack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree {
namespace {

constexpr TernaryFormat kFormats[] = {TernaryFormat::i8, TernaryFormat::tq1_0,
                                      TernaryFormat::tq2_0};
constexpr std::uint16_t kScale = 0x2e66;  // about 0.1

std::vector<std::int8_t> random_codes(idx n, std::uint64_t seed) {
  std::vector<std::int8_t> codes(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<std::int8_t>(static_cast<int>(random_bits(seed, 0, i) % 3) - 1);
  return codes;
}

std::vector<std::byte> packed(TernaryFormat format, const std::vector<std::int8_t>& codes) {
  const idx cols = static_cast<idx>(codes.size());
  std::vector<std::byte> row(ternary_row_bytes(format, cols));
  pack_row(format, codes.data(), cols, kScale, row.data());
  return row;
}

std::vector<std::int8_t> unpacked(TernaryFormat format, const std::vector<std::byte>& row,
                                  idx cols) {
  std::vector<std::int8_t> codes(static_cast<std::size_t>(cols), 99);
  unpack_row(format, row.data(), cols, codes.data());
  return codes;
}

template <class F>
std::string format_error_of(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::format);
    return e.what();
  }
  return "no error";
}

TEST(Formats, RowSizesAreThoseOfTheFormat) {
  EXPECT_EQ(ternary_row_bytes(TernaryFormat::tq1_0, 2560), 540U);
  EXPECT_EQ(ternary_row_bytes(TernaryFormat::tq2_0, 2560), 660U);
  EXPECT_EQ(ternary_row_bytes(TernaryFormat::i8, 100), 100U);
  EXPECT_TRUE(ternary_format_allows(TernaryFormat::i8, 100));
  EXPECT_FALSE(ternary_format_allows(TernaryFormat::tq1_0, 100));
  EXPECT_FALSE(ternary_format_allows(TernaryFormat::tq2_0, 255));
  EXPECT_TRUE(ternary_format_allows(TernaryFormat::tq2_0, 512));
}

TEST(Pack, UnpackingGivesBackEveryGroupOfFiveDigitsAtEveryPlace) {
  // Group n fills the whole block with the digits of n, so every byte of the block holds a group;
  // the rotation by `shift` puts each digit at each place of a byte.
  for (int n = 0; n < 243; ++n) {
    int digits[5];
    for (int k = 0, rest = n; k < 5; ++k, rest /= 3) digits[k] = rest % 3 - 1;
    for (const idx spacing : {idx{32}, idx{16}, idx{4}, idx{1}}) {
      std::vector<std::int8_t> codes(512);
      for (std::size_t i = 0; i < codes.size(); ++i)
        codes[i] = static_cast<std::int8_t>(digits[i / static_cast<std::size_t>(spacing) % 5]);
      for (const TernaryFormat f : kFormats)
        ASSERT_EQ(unpacked(f, packed(f, codes), 512), codes) << ternary_format_name(f) << " " << n;
    }
  }
}

TEST(Pack, UnpackingGivesBackRandomRowsOfEveryLength) {
  for (const TernaryFormat f : kFormats) {
    for (idx cols = 0; cols <= 4096; cols += f == TernaryFormat::i8 ? 37 : 256) {
      const auto codes = random_codes(cols, static_cast<std::uint64_t>(cols) + 1);
      const auto row = packed(f, codes);
      EXPECT_EQ(unpacked(f, row, cols), codes) << ternary_format_name(f) << " " << cols;
      validate_rows(f, row.data(), 1, cols, kScale, "t");
    }
  }
}

TEST(Pack, UnpacksAtAnyAlignmentAndTouchesNothingElse) {
  const auto codes = random_codes(512, 5);
  for (const TernaryFormat f : kFormats) {
    const auto row = packed(f, codes);
    for (std::size_t shift = 1; shift < 4; ++shift) {
      std::vector<std::byte> moved(row.size() + shift);
      std::memcpy(moved.data() + shift, row.data(), row.size());
      std::vector<std::int8_t> out(512 + 2 * shift, 77);
      unpack_row(f, moved.data() + shift, 512, out.data() + shift);
      EXPECT_EQ(std::memcmp(out.data() + shift, codes.data(), 512), 0);
      for (std::size_t i = 0; i < shift; ++i) {
        EXPECT_EQ(out[i], 77);
        EXPECT_EQ(out[512 + shift + i], 77);
      }
    }
  }
}

// The definition in formats.h, digit by digit: code k of byte b is the k-th base-3 digit of the
// fraction b / 256.
TEST(Pack, EveryByteOfTq1UnpacksToTheDigitsOfItsFraction) {
  for (int b = 0; b < 256; ++b) {
    const std::vector<std::byte> row(kTq1BlockBytes, static_cast<std::byte>(b));
    const auto codes = unpacked(TernaryFormat::tq1_0, row, 256);
    int digits[5];
    for (int k = 0, v = b; k < 5; ++k) {
      digits[k] = v * 3 / 256;
      v = v * 3 % 256;
    }
    for (int i = 0; i < 256; ++i) {
      const int k = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
      ASSERT_EQ(codes[static_cast<std::size_t>(i)], digits[k] - 1) << "byte " << b << " code " << i;
    }
  }
}

TEST(Pack, EveryByteOfTq2UnpacksToItsFourPairsOfBits) {
  for (int b = 0; b < 256; ++b) {
    const std::vector<std::byte> row(kTq2BlockBytes, static_cast<std::byte>(b));
    const auto codes = unpacked(TernaryFormat::tq2_0, row, 256);
    for (int i = 0; i < 256; ++i)
      ASSERT_EQ(codes[static_cast<std::size_t>(i)], (b >> (2 * (i / 32 % 4)) & 3) - 1);
  }
}

TEST(Pack, EachCodeOfABlockHasItsOwnPlace) {
  for (const TernaryFormat f : kFormats) {
    for (std::size_t i = 0; i < 256; ++i) {
      std::vector<std::int8_t> codes(256, 0);
      codes[i] = 1;
      ASSERT_EQ(unpacked(f, packed(f, codes), 256), codes);
    }
  }
}

TEST(ValidateRows, RefusesInvalidCodesAndScalesAndNamesTheRow) {
  for (const TernaryFormat f : kFormats) {
    const auto row = packed(f, random_codes(512, 9));
    std::vector<std::byte> rows;
    for (int r = 0; r < 3; ++r) rows.insert(rows.end(), row.begin(), row.end());
    const auto error = [&](std::optional<std::uint16_t> scale = std::nullopt) {
      return format_error_of(
          [&] { validate_rows(f, rows.data(), 3, 512, scale, "blk.0.ffn_down.weight"); });
    };
    EXPECT_EQ(error(), "no error");
    EXPECT_EQ(error(kScale), "no error");
    const std::size_t second = row.size();
    if (f == TernaryFormat::i8) {
      for (const int bad : {2, -2, 127, -128}) {
        rows[second + 7] = static_cast<std::byte>(bad);
        const std::string text = error();
        EXPECT_NE(
            text.find("blk.0.ffn_down.weight: row 1, column 7: code is " + std::to_string(bad)),
            std::string::npos)
            << text;
      }
      continue;
    }
    const bool tq1 = f == TernaryFormat::tq1_0;
    const std::size_t d =
        second + (tq1 ? kTq1BlockBytes + kTq1ScaleOffset : kTq2BlockBytes + kTq2ScaleOffset);
    for (const unsigned bits : {0x7c00U, 0xfc00U, 0x7e00U, 0x7c01U}) {
      const auto bad = static_cast<std::uint16_t>(bits);
      std::memcpy(rows.data() + d, &bad, sizeof bad);
      EXPECT_NE(error().find("row 1, block 1: scale is"), std::string::npos) << error();
    }
    std::memcpy(rows.data() + d, &kScale, sizeof kScale);
    EXPECT_NE(error(static_cast<std::uint16_t>(kScale + 1)).find("row 0, block 0: scale is"),
              std::string::npos);
    if (!tq1) {
      for (const int shift : {0, 2, 4, 6}) {
        for (const std::size_t at : {std::size_t{0}, std::size_t{63}}) {
          const std::byte before = rows[second + at];
          rows[second + at] |= static_cast<std::byte>(3 << shift);
          EXPECT_NE(error().find("row 1: holds the 2-bit code 3"), std::string::npos) << error();
          rows[second + at] = before;
        }
      }
    }
    EXPECT_EQ(error(), "no error");
  }
}

}  // namespace
}  // namespace mmfree
