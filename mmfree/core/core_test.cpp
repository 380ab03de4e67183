#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/cpu.h"
#include "mmfree/core/error.h"
#include "mmfree/core/fastmath.h"
#include "mmfree/core/file.h"
#include "mmfree/core/parallel.h"
#include "mmfree/core/rng.h"
#include "mmfree/core/share.h"
#include "mmfree/core/team.h"
#include "mmfree/core/types.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

TEST(Types, EveryHalfSurvivesTheRoundTripThroughFloat) {
  for (std::uint32_t v = 0; v < 65536; ++v) {
    const auto h = static_cast<std::uint16_t>(v);
    const float f = f16_to_float(h);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(f))));
    } else {
      EXPECT_EQ(float_to_f16(f), h);
    }
    const float b = bf16_to_float(h);
    if (!std::isnan(b)) {
      EXPECT_EQ(float_to_bf16(b), h);
    }
  }
}

TEST(Types, HalfRoundsToNearestEvenBetweenNeighbours) {
  for (std::uint32_t v = 0; v < 0x7bff; ++v) {
    const auto low = static_cast<std::uint16_t>(v);
    const auto high = static_cast<std::uint16_t>(v + 1);
    const float a = f16_to_float(low);
    const float b = f16_to_float(high);
    const float middle = (a + b) / 2;  // exact in float
    EXPECT_EQ(float_to_f16(middle), (v & 1U) == 0 ? low : high);
    EXPECT_EQ(float_to_f16(std::nextafter(middle, a)), low);
    EXPECT_EQ(float_to_f16(std::nextafter(middle, b)), high);
    EXPECT_EQ(float_to_f16(-std::nextafter(middle, b)), high | 0x8000U);
  }
  EXPECT_EQ(float_to_f16(65519.0F), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0F), 0x7c00);
  EXPECT_EQ(float_to_f16(1e30F), 0x7c00);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Share, TheOwnerTakesFromTheFrontAndOthersFromTheBack) {
  Share share;
  EXPECT_EQ(share.take_first(), -1);
  EXPECT_EQ(share.take_last(), -1);
  share.deal(3, 8);
  EXPECT_EQ(share.take_first(), 3);
  EXPECT_EQ(share.take_last(), 7);
  EXPECT_EQ(share.take_last(), 6);
  EXPECT_EQ(share.take_first(), 4);
  EXPECT_EQ(share.take_last(), 5);
  EXPECT_EQ(share.take_first(), -1);
  EXPECT_EQ(share.take_last(), -1);
  share.deal(0, 1);
  EXPECT_EQ(share.take_first(), 0);
  EXPECT_EQ(share.take_first(), -1);
  share.deal(5, 5);
  EXPECT_EQ(share.take_last(), -1);
}

// The owner and another thread at the same part at the same time, again and again.
TEST(Share, EveryPieceIsTakenOnceWhoeverIsQuicker) {
  constexpr idx kPieces = 100000;  // long enough for both to be at it
  constexpr int kRounds = 20;
  Share share;
  std::vector<std::atomic<int>> taken(kPieces);
  std::atomic<int> wrong{0};
  run_team(Ctx{2}, [&](const Team& team) {
    for (int round = 0; round < kRounds; ++round) {
      if (team.rank == 0) share.deal(0, kPieces);
      team.sync();
      const auto take = [&] { return team.rank == 0 ? share.take_first() : share.take_last(); };
      for (idx b = take(); b >= 0; b = take()) ++taken[static_cast<std::size_t>(b)];
      team.sync();
      if (team.rank == 0)
        for (std::atomic<int>& t : taken) wrong += t.exchange(0) != 1;
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST(Team, WhoWaitsCallsMeanwhileUntilTheLastOneArrives) {
  std::atomic<bool> called{false};
  std::atomic<int> arrived{0}, seen{0};
  run_team(Ctx{2}, [&](const Team& team) {
    if (team.rank == 0 && team.size == 2)
      while (!called) std::this_thread::yield();  // ends only if the other calls while it waits
    ++arrived;
    team.sync([&] { called = true; });
    if (arrived == team.size) ++seen;
    if (team.rank == 0 && team.size == 1) ++seen;
  });
  EXPECT_EQ(seen, 2);
}

TEST(Buffer, IsAlignedAndZeroAtEverySize) {
  for (const idx n : {idx{1}, idx{63}, idx{64}, idx{1} << 20, (idx{1} << 20) + 3}) {
    const Buffer<float> b(n);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % 64, 0U);
    for (const float v : b) ASSERT_EQ(v, 0.0F);
  }
  EXPECT_TRUE(Buffer<float>(0).empty());
}

TEST(Buffer, ImpossibleSizeIsAResourceError) {
  try {
    const Buffer<float> b(idx{1} << 50);
    FAIL() << "allocated a pebibyte";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::resource);
  }
}

TEST(Parallel, RangesCoverEverythingOnceForAnyThreadCount) {
  for (const int threads : {1, 2, 3, 7}) {
    for (const idx n : {idx{0}, idx{1}, idx{5}, idx{64}, idx{1001}}) {
      std::vector<int> hits(static_cast<std::size_t>(n), 0);
      parallel_for(Ctx{threads}, n, 4, [&](idx begin, idx end) {
        EXPECT_EQ(begin % 4, 0);
        for (idx i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
      });
      for (const int h : hits) EXPECT_EQ(h, 1);
    }
  }
}

TEST(Rng, HasTheMomentsOfItsDistributions) {
  const int n = 200000;
  double sum = 0, squares = 0, uniform = 0;
  for (int i = 0; i < n; ++i) {
    const double v = random_normal(7, 3, static_cast<std::uint64_t>(i));
    sum += v;
    squares += v * v;
    uniform += random_uniform(7, 4, static_cast<std::uint64_t>(i));
  }
  EXPECT_NEAR(sum / n, 0.0, 0.01);
  EXPECT_NEAR(squares / n, 1.0, 0.015);
  EXPECT_NEAR(uniform / n, 0.5, 0.005);
  EXPECT_NE(random_bits(1, 2, 3), random_bits(1, 3, 2));
}

TEST(AtomicFile, IsAbsentUntilCommittedAndLeavesNothingBehind) {
  const test::TempDir dir;
  const auto path = dir.path() / "a.bin";
  {
    AtomicFile f(path);
    f.write("hello");
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  AtomicFile f(path);
  f.write("hello");
  f.seek(1);
  f.write("E");
  f.commit();
  EXPECT_EQ(read_text_file(path), "hEllo");
  const MappedFile m(path);
  EXPECT_EQ(m.bytes().size(), 5U);
}

TEST(AtomicFile, FullDiskIsAnIoErrorThatKeepsTheOldFile) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full on this system";
  const test::TempDir dir;
  const auto path = dir.path() / "a.bin";
  write_file_atomically(path, "old");
  // The temporary name is a link to the device that is always full.
  std::filesystem::create_symlink("/dev/full", path.string() + ".tmp." + std::to_string(getpid()));
  try {
    write_file_atomically(path, "new");
    FAIL() << "wrote to a full disk";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
  }
  EXPECT_EQ(read_text_file(path), "old");
}

TEST(MappedFile, MissingFileAndFolderAreIoErrors) {
  const test::TempDir dir;
  EXPECT_THROW(MappedFile(dir.path() / "missing"), Error);
  EXPECT_THROW(MappedFile(dir.path()), Error);
}

// |got - want| in units of the last place of a float near `want`.
double ulps(float got, double want) {
  int exponent = 0;
  std::frexp(want, &exponent);
  return std::fabs(static_cast<double>(got) - want) / std::ldexp(1.0, exponent - 24);
}

TEST(FastMath, ExpAndSigmoidAreWithinTheStatedUlps) {
  for (const float sign : {1.0F, -1.0F}) {
    for (float m = 1e-6F; m < 87.0F; m = std::nextafter(m, 100.0F) + m * 3e-6F) {
      const float x = sign * m;
      const double exact = static_cast<double>(x);
      ASSERT_LE(ulps(exp_f32(x), std::exp(exact)), 2.0) << "exp of " << x;
      if (m < 80.0F) {
        ASSERT_LE(ulps(sigmoid_f32(x), 1.0 / (1.0 + std::exp(-exact))), 3.0) << "sigmoid of " << x;
      }
    }
  }
  EXPECT_EQ(exp_f32(0.0F), 1.0F);
  EXPECT_EQ(exp_f32(1e9F), exp_f32(88.0F));
  EXPECT_EQ(exp_f32(-std::numeric_limits<float>::infinity()), exp_f32(-87.0F));
}

TEST(Cpu, ForcedIsaIsActive) {
  const char* forced = std::getenv("MMFREE_ISA");
  if (forced == nullptr) {
    EXPECT_TRUE(cpu_has(active_isa()));
  } else {
    EXPECT_EQ(isa_name(active_isa()), forced);
  }
}

}  // namespace
}  // namespace mmfree
