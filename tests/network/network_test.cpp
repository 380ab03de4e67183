// The trainable network against the double-precision network of tests/support on configurations
// that the golden files lack.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/network_tensors.h"
#include "tests/support/random_tensor.h"
#include "tests/support/reference_network.h"

namespace mmfree {
namespace {

struct Case {
  const char* name;
  MatmulFreeConfig config;
};

MatmulFreeConfig small_config() {
  MatmulFreeConfig c;
  c.vocab_size = 7;
  c.hidden_size = 6;
  c.num_hidden_layers = 3;
  c.intermediate_size = 5;
  return c;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  all.push_back({"plain", small_config()});
  all.push_back({"one layer", small_config()});
  all.back().config.num_hidden_layers = 1;
  all.push_back({"wide mixer without lower bounds, several heads", small_config()});
  all.back().config.use_lower_bound = false;
  all.back().config.expand_ratio = 2;
  all.back().config.num_heads = 3;
  all.push_back({"large epsilon of the outer norms", small_config()});
  all.back().config.rms_norm_eps = 0.25;
  all.push_back({"tied embeddings", small_config()});
  all.back().config.tie_word_embeddings = true;
  all.push_back({"padding id", small_config()});
  all.back().config.pad_token_id = 3;
  return all;
}

// Values of ordinary size for every parameter, gains and lower bounds included.
test::Tensors<double> random_params(const MatmulFreeConfig& config, std::uint64_t stream) {
  test::Random random(stream);
  test::Tensors<double> p;
  for (const ParamInfo& info : matmulfree_params(config)) {
    const bool gain = info.shape.size() == 1;
    p[info.name] =
        test::convert<double>(random.normals(info.size(), gain ? 0.3 : 0.5, gain ? 1 : 0));
  }
  return p;
}

struct Tokens {
  Tokens(idx b, idx t, idx vocab, bool with_mask, std::uint64_t stream) : batch(b), length(t) {
    test::Random random(stream);
    ids = random.ids(b * t, vocab);
    labels = test::next_token_labels(b, t, ids);
    if (with_mask)
      for (idx i = 0; i < b * t; ++i) mask.push_back(random.below(4) > 0 ? 1 : 0);
  }
  TokenBatch view() const {
    return {batch, length, ids.data(), labels.data(), mask.empty() ? nullptr : mask.data()};
  }
  idx batch, length;
  std::vector<std::int32_t> ids, labels;
  std::vector<std::uint8_t> mask;
};

TEST(ReferenceNetwork, GradientsFollowFiniteDifferencesWithFrozenQuantisers) {
  // Small: a norm of a short row that happens to be near zero bends sharply.
  constexpr double kStep = 3e-5;
  for (const Case& c : cases())
    for (const bool with_mask : {false, true}) {
      const Tokens tokens(2, 4, c.config.vocab_size, with_mask, 1);
      const auto params = random_params(c.config, 2);
      test::ReferenceNetwork<double> net(c.config, params);
      const auto tape = net.forward(2, 4, tokens.ids, tokens.mask);
      const auto grads = net.backward(tape, tokens.labels, 0.7);
      for (auto& [name, values] : net.params) {
        // A tied table is used twice, as numbers and as ternary codes; the padding row is a rule,
        // not a derivative.
        if (name == "model.embeddings.weight" && c.config.pad_token_id) continue;
        const auto slope = test::central_differences(
            values,
            [&] {
              return 0.7 * net.nll(net.forward(2, 4, tokens.ids, tokens.mask, &tape, &params),
                                   tokens.labels);
            },
            kStep);
        EXPECT_LT(test::relative_l2(grads.at(name), slope), 1e-6) << c.name << ": " << name;
      }
    }
}

TEST(ReferenceNetwork, ThePaddingRowGetsNoGradient) {
  MatmulFreeConfig config = small_config();
  const Tokens tokens(2, 9, config.vocab_size, false, 3);
  const auto params = random_params(config, 4);
  const auto gradient = [&](const MatmulFreeConfig& c) {
    const test::ReferenceNetwork<double> net(c, params);
    return net.backward(net.forward(2, 9, tokens.ids), tokens.labels, 1)
        .at("model.embeddings.weight");
  };
  const auto without = gradient(config);
  config.pad_token_id = tokens.ids[0];
  auto expected = without;
  for (idx k = 0; k < 6; ++k) expected[static_cast<std::size_t>(tokens.ids[0] * 6 + k)] = 0;
  EXPECT_EQ(gradient(config), expected);
  EXPECT_NE(without, expected);
}

// Compares with the codes of the network itself equal; where a value near a tie rounds the other
// way there is nothing to compare.
bool codes_are_equal(const Network& net, const test::ReferenceTape<double>& tape) {
  const idx rows = net.acts->rows;
  const idx d = net.config.hidden_size, m = net.config.mixer_width(), f = net.config.mlp_width();
  bool same = test::unpadded(net.acts->head, rows, d) == tape.head.q;
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const LayerActivations& a = net.acts->layers[l];
    const auto& t = tape.layers[l];
    same = same && test::unpadded(a.u_i, rows, d) == t.i_proj.q &&
           test::unpadded(a.u_f, rows, d) == t.f_proj.q &&
           test::unpadded(a.u_g, rows, d) == t.g_proj.q &&
           test::unpadded(a.o, rows, m) == t.o_proj.q &&
           test::unpadded(a.v, rows, d) == t.gate_proj.q &&
           test::unpadded(a.z, rows, f) == t.down_proj.q;
  }
  return same;
}

TEST(Network, EqualsTheDoubleReferenceOnOtherConfigurations) {
  int compared = 0;
  for (Case& c : cases()) {
    // Widths that are no multiple of any vector, and the small ones of the cases.
    for (const bool larger : {false, true}) {
      if (larger) {
        c.config.vocab_size = 83;
        c.config.hidden_size = 51;
        c.config.intermediate_size = 70;
      }
      int found = 0;
      for (std::uint64_t stream = 0; stream < 40 && found < 2; ++stream) {
        const Tokens tokens(2, 5, c.config.vocab_size, stream % 2 == 1, 100 + stream);
        const test::ReferenceNetwork<double> reference(c.config,
                                                       random_params(c.config, 200 + stream));
        const auto tape = reference.forward(2, 5, tokens.ids, tokens.mask);
        Network net(c.config);
        test::set_params(net, reference.params);
        ternarize_weights(Ctx{1}, net);
        forward_loss(Ctx{1}, net, tokens.view());
        if (!codes_are_equal(net, tape)) continue;
        ++found;
        ++compared;
        EXPECT_LT(test::relative_l2(test::last_logits(net), tape.logits), 5e-6) << c.name;
        const LossSum loss = forward_backward(Ctx{1}, net, tokens.view(), 0.25F);
        EXPECT_NEAR(loss.nll, reference.nll(tape, tokens.labels), 1e-4) << c.name;
        const auto grads = reference.backward(tape, tokens.labels, 0.25);
        for (const auto& [name, got] : test::tensors(net.table, net.grads.data()))
          EXPECT_LT(test::relative_l2(got, grads.at(name)), 2e-5) << c.name << ": " << name;
      }
      EXPECT_EQ(found, 2) << c.name
                          << ": most inputs flip a code, which float rounding does not explain";
    }
  }
  EXPECT_EQ(compared, 24);
}

TEST(Network, GradientsAccumulateUntilTheyAreCleared) {
  const MatmulFreeConfig config = small_config();
  const Tokens a(2, 5, 7, false, 5), b(1, 8, 7, false, 6);
  Network net(config);
  test::set_params(net, random_params(config, 7));
  const Ctx ctx{2};
  ternarize_weights(ctx, net);
  const auto run = [&](const Tokens& t) { forward_backward(ctx, net, t.view(), 0.1F); };
  const auto grads = [&] { return test::vector_of(net.grads, net.grads.size()); };
  run(a);
  const auto of_a = grads();
  zero_grads(ctx, net);
  run(b);
  const auto of_b = grads();
  run(a);
  std::vector<double> sum(of_a.size());
  for (std::size_t i = 0; i < sum.size(); ++i)
    sum[i] = static_cast<double>(of_a[i]) + static_cast<double>(of_b[i]);
  EXPECT_LT(test::relative_l2(grads(), sum), 1e-6);
  zero_grads(ctx, net);
  run(a);
  EXPECT_TRUE(test::same_bits(grads(), of_a)) << "after another batch in between";
}

TEST(Network, MoreRowsThanTheHeadKeepsAtOnceGiveTheSameGradients) {
  MatmulFreeConfig config = small_config();
  const Tokens tokens(3, 100, 7, false, 8);  // 300 rows
  const auto params = random_params(config, 9);
  Network net(config);
  test::set_params(net, params);
  const Ctx ctx{2};
  ternarize_weights(ctx, net);
  const LossSum whole = forward_backward(ctx, net, tokens.view(), 0.01F);
  const auto expected = test::vector_of(net.grads, net.grads.size());
  zero_grads(ctx, net);
  LossSum sum;
  for (idx b = 0; b < 3; ++b) {
    const LossSum part = forward_backward(
        ctx, net, {1, 100, tokens.ids.data() + b * 100, tokens.labels.data() + b * 100}, 0.01F);
    sum.nll += part.nll;
    sum.count += part.count;
  }
  EXPECT_EQ(sum.count, whole.count);
  EXPECT_NEAR(sum.nll, whole.nll, 1e-9 * whole.nll);
  EXPECT_LT(test::relative_l2(test::vector_of(net.grads, net.grads.size()), expected), 1e-6);
  EXPECT_NEAR(forward_loss(ctx, net, tokens.view()).nll, whole.nll, 1e-9 * whole.nll);
}

TEST(Network, AnEmptyBatchHasNoLoss) {
  Network net(small_config());
  const LossSum loss = forward_backward(Ctx{1}, net, {0, 5, nullptr, nullptr}, 1);
  EXPECT_EQ(loss.count, 0);
  EXPECT_EQ(loss.nll, 0.0);
}

}  // namespace
}  // namespace mmfree
