#include "mmfree/cli/progress_line.h"

#include <gtest/gtest.h>

namespace mmfree {
namespace {

TEST(ProgressText, TellsShareRateAndTimeLeft) {
  EXPECT_EQ(progress_text("loading", "bytes", 360'000'000, 800'000'000, 0.5),
            "loading  45.0 %  360.0 of 800.0 MB  720.0 MB/s  0.6 s left");
  EXPECT_EQ(progress_text("decoding", "tokens", 250, 1000, 2),
            "decoding  25.0 %  250 of 1000 tokens  125 tokens/s  6.0 s left");
}

TEST(ProgressText, ClaimsNothingItCannotKnow) {
  EXPECT_EQ(progress_text("loading", "bytes", 0, 10'000'000, 1),
            "loading   0.0 %  0.0 of 10.0 MB  0.0 MB/s");
  EXPECT_EQ(progress_text("reading", "lines", 30, 0, 3), "reading  30 lines  10 lines/s");
  EXPECT_EQ(progress_text("reading", "lines", 0, 4, 0), "reading   0.0 %  0 of 4 lines  0 lines/s");
}

}  // namespace
}  // namespace mmfree
