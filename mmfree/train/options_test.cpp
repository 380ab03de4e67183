#include "mmfree/train/options.h"

#include <gtest/gtest.h>

#include <limits>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {

TrainOptions some_options() {
  TrainOptions o;
  o.config = size_preset("tiny", 500);
  o.config.hidden_size = 128;
  o.data_hash = "00ff";
  o.schedule = {.kind = ScheduleKind::cosine, .steps = 30, .warmup_steps = 3, .peak_lr = 0.1 + 0.2};
  o.batch_tokens = 256;
  o.seq = 64;
  o.micro_batch = 2;
  o.seed = 0xffffffffffffffffULL;
  o.sample_prompt = "O \"Romeo\"";
  return o;
}

TEST(TrainOptions, SurviveTheirFile) {
  const TrainOptions o = some_options();
  const TrainOptions back = options_from_json(options_to_json(o), "options.json");
  EXPECT_EQ(options_to_json(back), options_to_json(o));
  EXPECT_EQ(back.schedule.peak_lr, o.schedule.peak_lr);
  EXPECT_EQ(back.seed, o.seed);
  EXPECT_TRUE(differing_options(o, back).empty());
}

TEST(TrainOptions, HowTheGpuComputesMayChangeAndOlderRunsDoNotNameIt) {
  const TrainOptions run = some_options();
  TrainOptions now = run;
  now.device = "cuda";
  now.backward = "fp8";
  now.moments = "bf16";
  EXPECT_TRUE(differing_options(run, now).empty());
  const TrainOptions back = options_from_json(options_to_json(now), "options.json");
  EXPECT_EQ(back.backward, "fp8");
  EXPECT_EQ(back.moments, "bf16");
  std::string older = options_to_json(now);
  for (const char* line : {"  \"backward\": \"fp8\",\n", "  \"moments\": \"bf16\",\n"}) {
    const std::size_t at = older.find(line);
    ASSERT_NE(at, std::string::npos) << older;
    older.erase(at, std::string(line).size());
  }
  EXPECT_EQ(options_from_json(older, "options.json").backward, "bf16");
}

TEST(TrainOptions, WhatChangesTheResultIsNamedAndTheRestIsNot) {
  const TrainOptions run = some_options();
  TrainOptions now = run;
  now.threads = 7;
  now.checkpoint_every = 3;
  now.eval_every = 1;
  now.data = "elsewhere";
  EXPECT_TRUE(differing_options(run, now).empty());
  now.batch_tokens = 512;
  now.config.hidden_size = 192;
  now.data_hash = "11ff";
  const std::vector<std::string> list = differing_options(run, now);
  ASSERT_EQ(list.size(), 3U);
  EXPECT_EQ(list[0], "batch_tokens is 256 in the run and 512 now");
  EXPECT_EQ(list[1], "config.hidden_size is 128 in the run and 192 now");
  EXPECT_EQ(list[2], "data_hash is \"00ff\" in the run and \"11ff\" now");
}

TEST(TrainOptions, ABadFileIsAFormatError) {
  for (const char* text :
       {"", "[]", "{\"fixed\":{}}", "{\"fixed\":{\"preset\":7},\"changeable\":{}}"}) {
    try {
      options_from_json(text, "options.json");
      FAIL() << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::format) << text;
    }
  }
}

TEST(TrainOptions, ValuesOutsideTheirRangeAreUsageErrors) {
  EXPECT_NO_THROW(validate(some_options()));
  const auto refused = [](const auto& change) {
    TrainOptions o = some_options();
    change(o);
    try {
      validate(o);
    } catch (const Error& e) {
      return e.kind() == ErrorKind::usage;
    }
    return false;
  };
  EXPECT_TRUE(refused([](TrainOptions& o) { o.batch_tokens = 100; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.seq = 0; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.micro_batch = 5; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.schedule.warmup_steps = 30; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.schedule.peak_lr = -1; }));
  EXPECT_TRUE(refused(
      [](TrainOptions& o) { o.schedule.peak_lr = std::numeric_limits<double>::quiet_NaN(); }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.beta2 = 1; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.preset = "hgrn"; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.keep = 0; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.backward = "fp4"; }));
  EXPECT_TRUE(refused([](TrainOptions& o) { o.moments = "fp8"; }));
}

TEST(TrainOptions, TheDefaultMicroBatchDividesTheBatch) {
  const MatmulFreeConfig c = size_preset("8m", 4096);
  for (const idx sequences : {1, 7, 12, 16, 1000}) {
    const idx micro = default_micro_batch(c, 512, sequences);
    EXPECT_GE(micro, 1);
    EXPECT_EQ(sequences % micro, 0) << sequences;
  }
  EXPECT_EQ(default_micro_batch(size_preset("2.7b", 32000), 2048, 256), 1);
}

}  // namespace
}  // namespace mmfree
