#include "mmfree/bench/roofline.h"

#include <gtest/gtest.h>

namespace mmfree {
namespace {

// Wide bounds that only a wrong unit or a loop that was optimised away leaves.
TEST(Roofline, LimitsArePlausible) {
  for (const int threads : {1, 2}) {
    const Ctx ctx{threads};
    MemoryProbe probe(ctx, idx{64} << 20);
    const double read = probe.read(ctx);
    EXPECT_GT(read, 1e8);
    EXPECT_LT(read, 1e13);
    EXPECT_GT(int8_ops_per_s(ctx), 1e8);
    EXPECT_LT(int8_ops_per_s(ctx), 1e14);
    EXPECT_GT(f32_ops_per_s(ctx), 1e7);
    EXPECT_LT(f32_ops_per_s(ctx), 1e14);
  }
}

TEST(Roofline, OwnWorkIsNotCountedAsOthers) {
  const Bystanders others;
  for (int i = 0; i < 4; ++i) int8_ops_per_s(Ctx{1});
  const auto share = others.share();
  if (!share) GTEST_SKIP() << "this system does not tell";
  EXPECT_LE(*share, 1.0);
}

}  // namespace
}  // namespace mmfree
