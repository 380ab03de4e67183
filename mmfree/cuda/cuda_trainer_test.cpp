// Whole runs of the trainer on the GPU.
#include <gtest/gtest.h>

#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/core/rng.h"
#include "mmfree/cuda/test_support.h"
#include "mmfree/train/data.h"
#include "mmfree/train/metrics.h"
#include "mmfree/train/run_directory.h"
#include "mmfree/train/trainer.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

class GpuTrainer : public test::GpuTest {
 protected:
  void SetUp() override {
    test::GpuTest::SetUp();
    if (IsSkipped()) return;
    std::string text;
    for (std::uint64_t i = 0; i < 4000; ++i) {
      static constexpr const char* kWords[] = {"the ", "cat ",   "sat ",         "on ",
                                               "a ",   "mat.\n", "<|endoftext|>"};
      text += kWords[random_bits(3, 0, i) % 7];
    }
    write_file_atomically(dir_.path() / "text.txt", text);
    PrepareOptions prepare;
    prepare.files = {dir_.path() / "text.txt"};
    prepare.out = dir_.path() / "data";
    prepare.vocab_size = 280;
    prepare.val_fraction = 0.3;
    prepare_data(prepare, [](std::string_view, std::uint64_t, std::uint64_t) {});
  }

  TrainOptions options(const TokenData& data, const char* out) const {
    TrainOptions o;
    o.config.vocab_size = data.vocab_size();
    o.config.hidden_size = 64;
    o.config.num_hidden_layers = 2;
    o.config.intermediate_size = 96;
    o.data = dir_.path() / "data";
    o.data_hash = hash_data(data);
    o.out = dir_.path() / out;
    o.schedule.steps = 12;
    o.schedule.warmup_steps = 2;
    o.schedule.peak_lr = 4e-3;
    o.batch_tokens = 512;
    o.seq = 32;
    o.micro_batch = 8;  // two a step
    o.device = "cuda";
    o.checkpoint_every = 4;
    o.eval_every = 6;
    o.eval_tokens = 640;
    o.health_every = 5;
    return o;
  }

  test::TempDir dir_;
};

TEST_F(GpuTrainer, ARunThatIsStoppedAndResumedIsTheSameToTheBit) {
  const TokenData data(dir_.path() / "data");
  const TrainOptions whole = options(data, "whole");
  const TrainSummary summary = train(whole, data, false, {});
  EXPECT_TRUE(summary.finished);

  TrainOptions parts = options(data, "parts");
  parts.stop_after = 5;
  for (int i = 0; i < 3; ++i) train(parts, data, true, {});

  const std::vector<MetricsRow> a = read_metrics(metrics_path(whole.out));
  const std::vector<MetricsRow> b = read_metrics(metrics_path(parts.out));
  ASSERT_EQ(a.size(), 12U);
  ASSERT_EQ(b.size(), 12U);
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].loss, b[i].loss) << "step " << a[i].step;
    EXPECT_EQ(a[i].grad_norm, b[i].grad_norm) << "step " << a[i].step;
    EXPECT_EQ(a[i].val_loss, b[i].val_loss) << "step " << a[i].step;
  }
  EXPECT_LT(a.back().loss, a.front().loss);
  EXPECT_EQ(read_text_file(whole.out / "model.safetensors"),
            read_text_file(parts.out / "model.safetensors"));
}

TEST_F(GpuTrainer, FollowsTheCpu) {
  const TokenData data(dir_.path() / "data");
  TrainOptions o = options(data, "gpu");
  train(o, data, false, {});
  const std::vector<MetricsRow> gpu = read_metrics(metrics_path(o.out));
  o.out = dir_.path() / "cpu";
  o.device = "cpu";
  o.threads = 2;
  train(o, data, false, {});
  const std::vector<MetricsRow> cpu = read_metrics(metrics_path(o.out));
  ASSERT_EQ(gpu.size(), cpu.size());
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    EXPECT_NEAR(gpu[i].loss, cpu[i].loss, 0.02 * cpu[i].loss) << "step " << cpu[i].step;
    ASSERT_EQ(gpu[i].health.has_value(), cpu[i].health.has_value());
    if (!cpu[i].health) continue;
    EXPECT_NEAR(gpu[i].health->all.zero, cpu[i].health->all.zero, 0.01);
    for (std::size_t l = 0; l < cpu[i].health->layers.size(); ++l) {
      const LayerSaturation& g = gpu[i].health->layers[l].saturation;
      const LayerSaturation& c = cpu[i].health->layers[l].saturation;
      EXPECT_NEAR(g.mixer_in, c.mixer_in, 0.01);
      EXPECT_NEAR(g.mixer_out, c.mixer_out, 0.01);
      EXPECT_NEAR(g.mlp_in, c.mlp_in, 0.01);
      EXPECT_NEAR(g.mlp_out, c.mlp_out, 0.01);
    }
  }
}

}  // namespace
}  // namespace mmfree
