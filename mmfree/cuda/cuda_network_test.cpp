// The network on the GPU against the network on the CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "mmfree/cuda/test_support.h"
#include "mmfree/cuda/training.h"
#include "mmfree/train/optimizer.h"
#include "tests/support/compare.h"
#include "tests/support/network_tensors.h"
#include "tests/support/random_tensor.h"

namespace mmfree {
namespace {

class GpuNetwork : public test::GpuTest {};

struct Case {
  const char* name;
  MatmulFreeConfig config;
  idx batch, length;
  bool mask;
  bool many_codes = false;  // some code of any input will round the other way
};

MatmulFreeConfig config_of(idx vocab, idx hidden, idx layers, idx mlp) {
  MatmulFreeConfig c;
  c.vocab_size = vocab;
  c.hidden_size = hidden;
  c.num_hidden_layers = layers;
  c.intermediate_size = mlp;
  return c;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  all.push_back({"multiples of 16", config_of(512, 64, 3, 96), 3, 70, false, true});
  all.push_back({"odd widths", config_of(83, 51, 3, 70), 2, 37, true});
  all.push_back({"one layer, one token", config_of(7, 6, 1, 5), 1, 1, false});
  all.push_back({"long sequence, many channels", config_of(96, 384, 2, 512), 2, 513, false, true});
  all.push_back({"wide MLP", config_of(64, 64, 1, 2816), 2, 150, false, true});
  all.push_back({"wide rows", config_of(64, 2120, 1, 64), 1, 30, false, true});
  all.push_back({"wide mixer without bounds", config_of(96, 48, 2, 64), 2, 20, false});
  all.back().config.use_lower_bound = false;
  all.back().config.expand_ratio = 2;
  all.push_back({"tied embeddings", config_of(128, 64, 2, 96), 2, 40, false});
  all.back().config.tie_word_embeddings = true;
  all.push_back({"padding id", config_of(64, 64, 2, 96), 2, 40, true});
  all.back().config.pad_token_id = 3;
  return all;
}

struct Tokens {
  Tokens(const Case& c, std::uint64_t stream) : batch(c.batch), length(c.length) {
    test::Random random(stream);
    ids = random.ids(batch * length, c.config.vocab_size);
    labels = random.ids(batch * length, c.config.vocab_size);
    for (std::size_t i = 0; i < labels.size(); i += 7) labels[i] = kIgnoreLabel;
    if (labels.size() == 1) labels[0] = 0;
    if (c.mask)
      for (idx i = 0; i < batch * length; ++i) mask.push_back(random.below(4) > 0 ? 1 : 0);
  }
  TokenBatch view() const {
    return {batch, length, ids.data(), labels.data(), mask.empty() ? nullptr : mask.data()};
  }
  idx batch, length;
  std::vector<std::int32_t> ids, labels;
  std::vector<std::uint8_t> mask;
};

Network random_network(const MatmulFreeConfig& config, std::uint64_t stream) {
  Network net(config);
  test::Random random(stream);
  for (const ParamInfo& p : net.table) {
    const bool gain = p.shape.size() == 1;
    const double width = static_cast<double>(p.shape.back());
    const std::vector<float> v =
        random.normals(p.size(), gain ? 0.2 : 1 / std::sqrt(width), gain ? 1 : 0);
    std::copy(v.begin(), v.end(), net.values.data() + p.offset);
  }
  ternarize_weights(Ctx{2}, net);
  return net;
}

GpuTraining on_gpu(const Network& net, GpuTrainingOptions o) {
  GpuTraining gpu(net.config, o);
  gpu.upload(net.values.data(), nullptr, nullptr);
  return gpu;
}

GpuTrainingOptions options_of(const Case& c, GpuPrecision precision) {
  GpuTrainingOptions o;
  o.precision = precision;
  o.rows = c.batch * c.length;
  return o;
}

std::vector<float> gradients(GpuTraining& gpu, const Network& net) {
  std::vector<float> g(static_cast<std::size_t>(net.values.size()));
  gpu.download_gradients(g.data());
  return g;
}

TEST_F(GpuNetwork, Float32LossAndGradientsAreThoseOfTheCpu) {
  for (const Case& c : cases()) {
    // Where a sum's last bit moves a value over a rounding boundary a code differs by one, and with
    // it everything after; most inputs must be free of that.
    int equal = 0;
    constexpr int kInputs = 6;
    for (std::uint64_t stream = 0; stream < kInputs; ++stream) {
      Network net = random_network(c.config, 10 + stream);
      const Tokens tokens(c, 20 + stream);
      const LossSum expected = forward_backward(Ctx{2}, net, tokens.view(), 0.01F);
      GpuTraining gpu = on_gpu(net, options_of(c, GpuPrecision::float32));
      gpu.forward_backward(tokens.view(), 0.01F, true);
      const double nll = gpu.wait().nll;
      EXPECT_NEAR(nll, expected.nll, 2e-3 * expected.nll) << c.name;
      const LossSum loss = gpu.forward_loss(tokens.view());
      EXPECT_EQ(loss.count, expected.count);
      EXPECT_NEAR(loss.nll, nll, 1e-9 * nll) << c.name;
      const std::vector<float> grads = gradients(gpu, net);
      bool close = true;
      for (const ParamInfo& p : net.table) {
        const std::vector<float> got(grads.begin() + p.offset, grads.begin() + p.offset + p.size());
        const std::vector<float> want(net.grads.data() + p.offset,
                                      net.grads.data() + p.offset + p.size());
        const double distance = test::relative_l2(got, want);
        EXPECT_LT(distance, c.many_codes ? 0.02 : 0.25) << c.name << ": " << p.name;
        close = close && distance < 5e-5;
      }
      equal += close ? 1 : 0;
    }
    EXPECT_GE(equal, c.many_codes ? 0 : 2)
        << c.name << ": rounding does not explain so many differences";
  }
}

TEST_F(GpuNetwork, WeightCodesScalesAndBoundsAreThoseOfTheCpu) {
  for (const Case& c : cases()) {
    const Network net = random_network(c.config, 3);
    GpuTraining gpu = on_gpu(net, options_of(c, GpuPrecision::bf16));
    Network image(c.config);
    gpu.download_ternary(image);
    const auto same = [&](const TernaryWeights& a, const TernaryWeights& b) {
      EXPECT_NEAR(a.scale, b.scale, 2e-7 * static_cast<double>(b.scale)) << c.name;
      idx different = 0;
      for (idx i = 0; i < b.codes.size(); ++i) different += a.codes[i] != b.codes[i] ? 1 : 0;
      EXPECT_LE(different, b.codes.size() / 10000) << c.name;
    };
    for (std::size_t l = 0; l < net.layers.size(); ++l) {
      same(image.layers[l].i, net.layers[l].i);
      same(image.layers[l].f, net.layers[l].f);
      same(image.layers[l].g, net.layers[l].g);
      same(image.layers[l].o, net.layers[l].o);
      same(image.layers[l].gate, net.layers[l].gate);
      same(image.layers[l].down, net.layers[l].down);
    }
    same(image.head, net.head);
    EXPECT_LT(test::max_abs_difference(test::vector_of(image.bounds, image.bounds.size()),
                                       test::vector_of(net.bounds, net.bounds.size())),
              1e-6);
  }
}

TEST_F(GpuNetwork, Bf16GradientsPointWhereThoseOfTheCpuDo) {
  for (const Case& c : cases()) {
    Network net = random_network(c.config, 30);
    const Tokens tokens(c, 31);
    const LossSum expected = forward_backward(Ctx{2}, net, tokens.view(), 0.01F);
    GpuTraining gpu = on_gpu(net, options_of(c, GpuPrecision::bf16));
    gpu.forward_backward(tokens.view(), 0.01F, true);
    EXPECT_NEAR(gpu.wait().nll, expected.nll, 0.02 * expected.nll) << c.name;
    const std::vector<float> grads = gradients(gpu, net);
    double dot = 0, a = 0, b = 0;
    for (idx i = 0; i < net.grads.size(); ++i) {
      const double x = static_cast<double>(grads[static_cast<std::size_t>(i)]);
      const double y = static_cast<double>(net.grads[i]);
      dot += x * y;
      a += x * x;
      b += y * y;
    }
    EXPECT_GT(dot / std::sqrt(a * b), 0.98) << c.name;
    EXPECT_NEAR(std::sqrt(a / b), 1, 0.05) << c.name;
  }
}

TEST_F(GpuNetwork, RecomputationGraphsAndAccumulationChangeNoBit) {
  const Case c{"", config_of(512, 128, 3, 192), 4, 96, false};
  const Network net = random_network(c.config, 40);
  const Tokens tokens(c, 41), more(c, 42);
  const auto run = [&](GpuTrainingOptions o) {
    GpuTraining gpu = on_gpu(net, o);
    for (int n = 0; n < 4; ++n) {  // the third and fourth replay graphs
      gpu.forward_backward(tokens.view(), 0.01F, true);
      gpu.forward_backward(more.view(), 0.01F, false);
    }
    return gradients(gpu, net);
  };
  GpuTrainingOptions o = options_of(c, GpuPrecision::bf16);
  const std::vector<float> expected = run(o);
  EXPECT_TRUE(test::same_bits(run(o), expected)) << "run again";
  o.graph = false;
  EXPECT_TRUE(test::same_bits(run(o), expected)) << "without graphs";
  const GpuTraining all(net.config, o);
  ASSERT_EQ(all.memory().kept_layers, 3);
  const idx gate_bytes = o.rows * 2 * c.config.mlp_width() * 2;  // of one layer, in bf16
  const idx state_bytes = 3 * o.rows * c.config.hidden_size * 2;
  const idx code_bytes = 4 * state_bytes;
  const idx weight_bytes = 2 * storage_size(matmulfree_params(c.config));
  o.memory_limit =
      all.memory().planned_bytes - static_cast<std::size_t>(weight_bytes + code_bytes / 3);
  EXPECT_TRUE(test::same_bits(run(o), expected)) << "with codes computed again";
  o.memory_limit = all.memory().planned_bytes -
                   static_cast<std::size_t>(weight_bytes + code_bytes + state_bytes + gate_bytes);
  GpuTraining less(net.config, o);
  EXPECT_LT(less.memory().kept_layers, 3);
  EXPECT_TRUE(test::same_bits(run(o), expected)) << "with recomputation";
}

TEST_F(GpuNetwork, Int8AndFloatingPointProductsGiveTheSameNumbers) {
  const Case c{"", config_of(512, 128, 3, 192), 4, 96, false};
  const Network net = random_network(c.config, 50);
  const Tokens tokens(c, 51);
  GpuTrainingOptions o = options_of(c, GpuPrecision::bf16);
  std::vector<float> grads[2];
  for (const bool int8 : {false, true}) {
    o.int8_products = int8;
    GpuTraining gpu = on_gpu(net, o);
    gpu.forward_backward(tokens.view(), 0.01F, true);
    grads[int8 ? 1 : 0] = gradients(gpu, net);
  }
  EXPECT_TRUE(test::same_bits(grads[0], grads[1]));
}

TEST_F(GpuNetwork, TwentyStepsFollowTheCpu) {
  const Case c{"", config_of(256, 64, 2, 96), 8, 32, false};
  for (const GpuPrecision precision : {GpuPrecision::float32, GpuPrecision::bf16}) {
    Network net = random_network(c.config, 60);
    OptimizerState state(net);
    GpuTraining gpu = on_gpu(net, options_of(c, precision));
    const float scale = 1.0F / static_cast<float>(c.batch * c.length);
    double first = 0, last = 0;
    for (idx step = 1; step <= 20; ++step) {
      const Tokens tokens(c, 61 + static_cast<std::uint64_t>(step % 2));
      zero_grads(Ctx{2}, net);
      const double expected = forward_backward(Ctx{2}, net, tokens.view(), scale).nll;
      const double norm = grad_norm(Ctx{2}, net);
      optimizer_step(Ctx{2}, net, state,
                     {.lr = 2e-3,
                      .weight_decay = 0.1,
                      .beta1 = 0.9,
                      .beta2 = 0.95,
                      .eps = 1e-8,
                      .grad_scale = norm > 1 ? 1 / norm : 1.0,
                      .step = step});
      ternarize_weights(Ctx{2}, net);
      gpu.forward_backward(tokens.view(), scale, true);
      gpu.update({.lr = 2e-3,
                  .weight_decay = 0.1,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .clip = 1,
                  .step = step});
      const GpuStepResult r = gpu.wait();
      EXPECT_NEAR(r.nll, expected, 0.02 * expected) << "step " << step;
      EXPECT_NEAR(r.grad_norm, norm, 0.1 * norm) << "step " << step;
      if (step == 1) first = r.nll;
      last = r.nll;
    }
    EXPECT_LT(last, 0.9 * first) << "it learns";
  }
}

TEST_F(GpuNetwork, AGradientThatIsNotFiniteChangesNothing) {
  const Case c{"", config_of(64, 32, 1, 32), 1, 8, false};
  Network net = random_network(c.config, 70);
  net.values[net.table[0].offset] = INFINITY;
  for (idx i = 0; i < c.config.vocab_size; ++i)
    net.values[net.table[0].offset + i * c.config.hidden_size] = INFINITY;
  const Tokens tokens(c, 71);
  GpuTraining gpu = on_gpu(net, options_of(c, GpuPrecision::bf16));
  gpu.forward_backward(tokens.view(), 1, true);
  gpu.update(
      {.lr = 1, .weight_decay = 0, .beta1 = 0.9, .beta2 = 0.9, .eps = 1e-8, .clip = 1, .step = 1});
  const GpuStepResult r = gpu.wait();
  EXPECT_FALSE(std::isfinite(r.nll));
  EXPECT_FALSE(std::isfinite(r.grad_norm));
  std::vector<float> after(static_cast<std::size_t>(net.values.size()));
  gpu.download(after.data(), nullptr, nullptr);
  EXPECT_TRUE(test::same_bits(after, test::vector_of(net.values, net.values.size())));
}

TEST_F(GpuNetwork, TooLittleMemoryIsAnErrorThatSaysHowMuchIsNeeded) {
  GpuTrainingOptions o;
  o.rows = 1024;
  o.memory_limit = 1 << 20;
  try {
    const GpuTraining gpu(config_of(512, 128, 3, 192), o);
    FAIL() << "expected an Error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::resource);
    EXPECT_NE(std::string(e.what()).find("GiB needed"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("--device-memory"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace mmfree
