#include "mmfree/train/schedule.h"

#include <gtest/gtest.h>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {

TEST(Schedule, WarmUpIsLinearAndReachesThePeak) {
  const Schedule s{.kind = ScheduleKind::cosine, .steps = 100, .warmup_steps = 4, .peak_lr = 8};
  EXPECT_DOUBLE_EQ(learning_rate(s, 0), 2);
  EXPECT_DOUBLE_EQ(learning_rate(s, 1), 4);
  EXPECT_DOUBLE_EQ(learning_rate(s, 3), 8);
  EXPECT_DOUBLE_EQ(learning_rate(s, 4), 8);
  EXPECT_LT(learning_rate(s, 5), 8);
}

TEST(Schedule, CosineApproachesItsFloorAndKeepsItsDecay) {
  const Schedule s{.kind = ScheduleKind::cosine, .steps = 1000, .peak_lr = 1, .lr_floor = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate(s, 0), 1);
  EXPECT_NEAR(learning_rate(s, 500), 0.55, 1e-12);
  EXPECT_NEAR(learning_rate(s, 999), 0.1, 1e-5);
  EXPECT_GT(learning_rate(s, 999), 0.1);
  EXPECT_EQ(weight_decay(s, 0), 0.1);
  EXPECT_EQ(weight_decay(s, 999), 0.1);
}

TEST(Schedule, PaperHalvesTheRateAndEndsTheDecayAtTheMidpoint) {
  for (const idx n : {10, 11}) {
    const Schedule paper{.kind = ScheduleKind::paper, .steps = n, .warmup_steps = 2, .peak_lr = 1};
    Schedule cosine = paper;
    cosine.kind = ScheduleKind::cosine;
    const idx middle = (n + 1) / 2;  // the first k with 2 k >= n
    for (idx k = 0; k < n; ++k) {
      const bool second = k >= middle;
      EXPECT_DOUBLE_EQ(learning_rate(paper, k), learning_rate(cosine, k) * (second ? 0.5 : 1.0))
          << k;
      EXPECT_EQ(weight_decay(paper, k), second ? 0.0 : 0.1) << k;
    }
  }
}

TEST(Schedule, EveryStepOfEveryPresetMovesTheWeights) {
  for (const ScheduleKind kind : {ScheduleKind::paper, ScheduleKind::cosine})
    for (const idx n : {1, 2, 7}) {
      const Schedule s{.kind = kind, .steps = n, .peak_lr = 1, .lr_floor = default_lr_floor(kind)};
      for (idx k = 0; k < n; ++k) EXPECT_GT(learning_rate(s, k), 0) << k << " of " << n;
    }
}

TEST(Schedule, AnUnknownNameIsAUsageError) {
  EXPECT_EQ(find_schedule("paper"), ScheduleKind::paper);
  try {
    find_schedule("linear");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::usage);
  }
}

}  // namespace
}  // namespace mmfree
