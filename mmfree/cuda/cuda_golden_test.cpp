// The network on the GPU in float32 against the reference implementation's loss, codes, gradients
// and training run (tests/golden).
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/cuda/test_support.h"
#include "mmfree/cuda/training.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"
#include "tests/support/network_tensors.h"
#include "tests/support/reference_network.h"

namespace mmfree {
namespace {

using test::Golden;

class GpuGolden : public test::GpuTest {
 protected:
  GpuGolden()
      : dir(test::golden_directory() / "g1"),
        config(config_from_json(read_text_file(dir / "config.json"), "config.json")),
        io(dir / "io.safetensors"),
        net(config) {
    const Golden weights(dir / "model.safetensors");
    test::Tensors<float> p;
    for (const TensorView& t : weights.file().tensors()) p[t.name] = weights.get<float>(t.name);
    test::set_params(net, p);
    ids = io.get<std::int32_t>("input_ids");
    batch = io.shape("input_ids")[0];
    length = io.shape("input_ids")[1];
    labels = test::next_token_labels(batch, length, ids);
  }
  GpuTraining on_gpu() const {
    GpuTrainingOptions o;
    o.precision = GpuPrecision::float32;
    o.rows = batch * length;
    GpuTraining gpu(config, o);
    gpu.upload(net.values.data(), nullptr, nullptr);
    return gpu;
  }
  TokenBatch tokens() const { return {batch, length, ids.data(), labels.data(), nullptr}; }
  double mean(double nll) const { return nll / static_cast<double>(batch * (length - 1)); }

  std::filesystem::path dir;
  MatmulFreeConfig config;
  Golden io;
  Network net;
  std::vector<std::int32_t> ids, labels;
  idx batch = 0, length = 0;
};

TEST_F(GpuGolden, LossAndEveryGradientEqualGolden) {
  GpuTraining gpu = on_gpu();
  EXPECT_NEAR(mean(gpu.forward_loss(tokens()).nll), io.scalar("loss"), 1e-5);
  gpu.forward_backward(tokens(), static_cast<float>(mean(1)), true);
  EXPECT_NEAR(mean(gpu.wait().nll), io.scalar("loss"), 1e-5);
  std::vector<float> g(static_cast<std::size_t>(net.values.size()));
  gpu.download_gradients(g.data());
  const Golden grads(dir / "grads.safetensors");
  const auto got = test::tensors(net.table, g.data());
  EXPECT_EQ(got.size(), grads.file().tensors().size());
  for (const auto& [name, gradient] : got)
    EXPECT_LT(test::relative_l2(gradient, grads.get<double>(name)), 2e-5) << name;
}

TEST_F(GpuGolden, WeightCodesAndScalesEqualGolden) {
  GpuTraining gpu = on_gpu();
  gpu.download_ternary(net);
  const Golden quant(dir / "quant.safetensors");
  const auto check = [&](const std::string& name, const TernaryWeights& w) {
    EXPECT_EQ(std::vector<std::int8_t>(w.codes.begin(), w.codes.end()),
              quant.get<std::int8_t>(name + ".weight_codes"))
        << name;
    const double scale = quant.scalar(name + ".weight_scale");
    EXPECT_NEAR(static_cast<double>(w.scale), scale, 2e-6 * scale) << name;
  };
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const std::string name = "model.layers." + std::to_string(l) + ".";
    const LayerTernary& w = net.layers[l];
    check(name + "attn.i_proj", w.i);
    check(name + "attn.f_proj", w.f);
    check(name + "attn.g_proj", w.g);
    check(name + "attn.o_proj", w.o);
    check(name + "mlp.gate_proj", w.gate);
    check(name + "mlp.down_proj", w.down);
  }
  check("lm_head", net.head);
}

// The logits themselves stay on the GPU: the loss of every single position stands for them.
TEST_F(GpuGolden, LossesOfLeftPaddedSequencesAreThoseOfTheGoldenLogits) {
  const auto padded = io.get<std::int32_t>("leftpad.input_ids");
  const auto mask = io.get<std::uint8_t>("leftpad.attention_mask");
  const auto logits = io.get<double>("leftpad.logits");
  const idx v = config.vocab_size;
  GpuTraining gpu = on_gpu();
  for (std::size_t r = 0; r < mask.size(); ++r) {
    if (mask[r] == 0) continue;
    std::vector<std::int32_t> only(mask.size(), kIgnoreLabel);
    const std::int32_t label = static_cast<std::int32_t>((r * 7) % static_cast<std::size_t>(v));
    only[r] = label;
    const double* row = logits.data() + static_cast<idx>(r) * v;
    double sum = 0;
    for (idx k = 0; k < v; ++k) sum += std::exp(row[k] - row[label]);
    const LossSum loss = gpu.forward_loss({batch, length, padded.data(), only.data(), mask.data()});
    EXPECT_EQ(loss.count, 1);
    EXPECT_NEAR(loss.nll, std::log(sum), 5e-5) << "row " << r;
  }
}

// From the third step on single codes round the other way. The golden run decays every parameter,
// this trainer the ternary matrices alone: what the others miss is taken off afterwards.
TEST_F(GpuGolden, TwentyAdamWStepsFollowGolden) {
  const Golden run(dir / "adamw_20steps.safetensors");
  const auto losses = run.get<double>("loss_per_step"),
             norms = run.get<double>("grad_norm_per_step");
  GpuTraining gpu = on_gpu();
  const auto n = static_cast<std::size_t>(net.values.size());
  std::vector<float> before(net.values.begin(), net.values.end()), w(n), m(n), v(n);
  for (idx step = 1; step <= 20; ++step) {
    const auto at = static_cast<std::size_t>(step - 1);
    gpu.forward_backward(tokens(), static_cast<float>(mean(1)), true);
    gpu.update({.lr = 2e-3,
                .weight_decay = 0.1,
                .beta1 = 0.9,
                .beta2 = 0.95,
                .eps = 1e-8,
                .clip = 0,
                .step = step});
    const GpuStepResult r = gpu.wait();
    EXPECT_NEAR(mean(r.nll), losses[at],
                step <= 2   ? 1e-4
                : step == 3 ? 3e-4
                            : 0.06)
        << "step " << step;
    EXPECT_NEAR(r.grad_norm / norms[at], 1, step <= 3 ? 1e-3 : 0.3) << "step " << step;
    gpu.download(w.data(), m.data(), v.data());
    for (const ParamInfo& p : net.table)
      for (idx i = p.offset; !p.decay && i < p.offset + p.size(); ++i)
        w[static_cast<std::size_t>(i)] -= 2e-3F * 0.1F * before[static_cast<std::size_t>(i)];
    gpu.upload(w.data(), m.data(), v.data());
    before = w;
  }
}

}  // namespace
}  // namespace mmfree
