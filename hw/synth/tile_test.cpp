// The ternary tile and its int8 twins against plain sums: random groups with gaps, and the corners
// of both number formats.
#include <gtest/gtest.h>
#include <verilated.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <random>
#include <vector>

#include "Vtile_carry.h"
#include "Vtile_int8_0.h"
#include "Vtile_int8_1.h"
#include "Vtile_int8_2.h"
#include "Vtile_pairs.h"
#include "Vtile_ternary.h"
#include "mmfree/hw/fixed.h"

namespace mmfree::hw {
namespace {

constexpr int kRows = 5, kLanes = 64, kLatency = 5;
using Weights = std::array<std::array<std::int8_t, kLanes>, kRows>;
using Codes = std::array<std::int8_t, kLanes>;
using Sums = std::array<std::int64_t, kRows>;

template <class Tile>
constexpr bool kTernary = std::is_same_v<Tile, Vtile_ternary> ||
                          std::is_same_v<Tile, Vtile_pairs> || std::is_same_v<Tile, Vtile_carry>;

// How a tile takes weights: bytes of five trits, or a byte a weight.
template <class Tile>
void set_beat(Tile& tile, const Weights& weights) {
  if (!kTernary<Tile>) {
    std::memcpy(&tile.beat_i, weights.data(), std::min(sizeof weights, sizeof tile.beat_i));
    return;
  }
  for (int j = 0; j < kLanes; ++j) {
    std::int8_t trits[kRows];
    for (int r = 0; r < kRows; ++r) trits[r] = weights[r][j];
    reinterpret_cast<std::uint8_t*>(&tile.beat_i)[j] = encode_trits(trits);
  }
}

// Sums have 24 bits, of the int8 tiles 32.
template <class Tile>
std::int64_t row_sum(const Tile& tile, int row) {
  constexpr int kBytes = kTernary<Tile> ? 3 : 4, kShift = 32 - 8 * kBytes;
  std::uint32_t bits = 0;
  std::memcpy(&bits, reinterpret_cast<const std::uint8_t*>(&tile.sums_o) + kBytes * row, kBytes);
  return static_cast<std::int32_t>(bits << kShift) >> kShift;
}

template <class Tile>
struct Bench {
  VerilatedContext context;
  Tile tile{&context};
  std::int64_t cycle = 0;
  int groups = 0;
  std::deque<std::pair<std::int64_t, Sums>> expected;  // cycle of valid_o, sums

  Bench() {
    tile.rst_ni = 0;
    for (int k = 0; k < 2 * kLatency; ++k) clock(false);
    tile.rst_ni = 1;
  }
  void clock(bool valid) {
    tile.valid_i = valid;
    tile.clk_i = 0;
    tile.eval();
    tile.clk_i = 1;
    tile.eval();
    ++cycle;
    const bool due = !expected.empty() && expected.front().first == cycle;
    ASSERT_EQ(tile.valid_o != 0, due) << "cycle " << cycle;
    if (!due) return;
    for (int r = 0; r < kRows; ++r)
      ASSERT_EQ(row_sum(tile, r), expected.front().second[r]) << "group " << groups << " row " << r;
    expected.pop_front();
    ++groups;
  }
  // A group of `beats` from `next`, with `gap` idle cycles before a beat in 1 of 4 cases.
  template <class Next>
  void group(int beats, int gap, std::mt19937& random, Next next) {
    Sums sums{};
    for (int k = 0; k < beats; ++k) {
      Weights weights;
      Codes codes;
      next(weights, codes);
      for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < kLanes; ++j) sums[r] += weights[r][j] * codes[j];
      if (random() % 4 == 0)
        for (int g = 0; g < gap; ++g) {
          tile.first_i = random() % 2;
          tile.last_i = random() % 2;
          clock(false);
        }
      set_beat(tile, weights);
      std::memcpy(&tile.codes_i, codes.data(), kLanes);
      tile.first_i = k == 0;
      tile.last_i = k + 1 == beats;
      if (k + 1 == beats) expected.emplace_back(cycle + kLatency, sums);
      clock(true);
    }
  }
  void finish() {
    for (int k = 0; k < 2 * kLatency; ++k) clock(false);
    EXPECT_TRUE(expected.empty());
  }
};

template <class Tile>
class Tiles : public ::testing::Test {
 public:
  static constexpr bool kTrits = kTernary<Tile>;
  static std::vector<std::int8_t> corners() {
    if (kTrits) return {-1, 0, 1};
    return {-128, -127, -1, 0, 1, 2, 127};
  }
};
using AllTiles = ::testing::Types<Vtile_ternary, Vtile_pairs, Vtile_carry, Vtile_int8_0,
                                  Vtile_int8_1, Vtile_int8_2>;
TYPED_TEST_SUITE(Tiles, AllTiles);

TYPED_TEST(Tiles, RandomGroups) {
  Bench<TypeParam> bench;
  std::mt19937 random(1);
  for (int n = 0; n < 400; ++n)
    bench.group(1 + static_cast<int>(random() % 40), n % 3, random,
                [&](Weights& weights, Codes& codes) {
                  for (auto& row : weights)
                    for (auto& w : row)
                      w = TestFixture::kTrits ? static_cast<std::int8_t>(random() % 3) - 1
                                              : static_cast<std::int8_t>(random());
                  for (auto& c : codes) c = static_cast<std::int8_t>(random());
                });
  bench.finish();
  EXPECT_EQ(bench.groups, 400);
}

// The widest vector that a model may have, with every lane of a group at the same corner, so that
// sums are as large as they get.
TYPED_TEST(Tiles, LongestSumsOfCorners) {
  Bench<TypeParam> bench;
  std::mt19937 random(2);
  const std::vector<std::int8_t> weight_corners = this->corners(),
                                 code_corners = {-128, -127, -1, 0, 1, 127};
  for (const std::int8_t w : weight_corners)
    for (const std::int8_t c : code_corners)
      bench.group(16384 / kLanes, 0, random, [&](Weights& weights, Codes& codes) {
        for (auto& row : weights) row.fill(w);
        codes.fill(c);
      });
  bench.finish();
  EXPECT_EQ(bench.groups, static_cast<int>(weight_corners.size() * code_corners.size()));
}

// Single beats in which one lane of one row counts: each lane's place in the tree.
TYPED_TEST(Tiles, EveryLaneAlone) {
  Bench<TypeParam> bench;
  std::mt19937 random(3);
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kLanes; ++j)
      for (const std::int8_t w : this->corners())
        for (const std::int8_t c : {std::int8_t{-128}, std::int8_t{77}})
          bench.group(1, 0, random, [&](Weights& weights, Codes& codes) {
            for (auto& row : weights) row.fill(0);
            codes.fill(-3);
            weights[r][j] = w;
            codes[j] = c;
          });
  bench.finish();
}

// Mixed corners: every lane takes one of the corners by chance.
TYPED_TEST(Tiles, MixedCorners) {
  Bench<TypeParam> bench;
  std::mt19937 random(4);
  const std::vector<std::int8_t> weight_corners = this->corners();
  for (int n = 0; n < 300; ++n)
    bench.group(1 + static_cast<int>(random() % 4), 1, random, [&](Weights& weights, Codes& codes) {
      for (auto& row : weights)
        for (auto& w : row) w = weight_corners[random() % weight_corners.size()];
      for (auto& c : codes) c = random() % 2 ? -128 : 127;
    });
  bench.finish();
}

// Every byte, those that no encoder writes too, in one lane at a time: the digits of the simulator.
TEST(Trits, EveryByteDecodesAsInTheSimulator) {
  VerilatedContext context;
  Vtile_ternary tile{&context};
  tile.rst_ni = 1;
  tile.valid_i = tile.first_i = tile.last_i = 1;
  const std::int8_t zeros[kRows] = {};
  Codes codes;
  codes.fill(1);
  std::memcpy(&tile.codes_i, codes.data(), kLanes);
  for (int byte = 0; byte < 256; ++byte) {
    auto* beat = reinterpret_cast<std::uint8_t*>(&tile.beat_i);
    std::memset(beat, encode_trits(zeros), kLanes);
    beat[byte % kLanes] = static_cast<std::uint8_t>(byte);
    for (int k = 0; k < kLatency; ++k) {
      tile.clk_i = 0;
      tile.eval();
      tile.clk_i = 1;
      tile.eval();
    }
    std::int8_t trits[kRows];
    decode_trits(static_cast<std::uint8_t>(byte), trits);
    for (int r = 0; r < kRows; ++r) ASSERT_EQ(row_sum(tile, r), trits[r]) << byte << " row " << r;
  }
}

}  // namespace
}  // namespace mmfree::hw
