// Inference on the GPU gives the CPU's bits: logits, hidden states, recurrent states, for any way
// of feeding the tokens.
#include "mmfree/cuda/inference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/test_support.h"
#include "mmfree/cuda/tile_layout.h"
#include "mmfree/generate/session.h"
#include "tests/support/compare.h"
#include "tests/support/random_model.h"
#include "tests/support/random_tensor.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

using test::same_bits;

constexpr Ctx kCtx{2};

class GpuInference : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      cuda::select_device(75);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
};

struct Shape {
  idx hidden, mlp, layers, vocab, expand;
  bool bounds;
};

MatmulFreeConfig config_of(const Shape& s) {
  MatmulFreeConfig c;
  c.vocab_size = s.vocab;
  c.hidden_size = s.hidden;
  c.num_hidden_layers = s.layers;
  c.num_heads = 1;
  c.expand_ratio = static_cast<double>(s.expand);
  c.intermediate_size = s.mlp;
  c.use_lower_bound = s.bounds;
  return c;
}

// Odd widths, tails of tiles and chunks, one block and many, widths beyond one chunk a half-warp.
const Shape kShapes[] = {{64, 96, 2, 131, 1, true},     {40, 72, 1, 50, 1, true},
                         {200, 328, 3, 257, 1, true},   {136, 264, 2, 97, 2, false},
                         {512, 1408, 4, 1000, 1, true}, {2048, 4600, 2, 333, 1, true},
                         {4224, 8456, 1, 64, 1, true}};

// All that a pass gives, on either device.
struct Outputs {
  std::vector<float> embedding, final_norm, logits, state;
  std::vector<std::vector<float>> block;
};

template <class Forward>
Outputs capture(const MatmulFreeConfig& c, std::span<const std::int32_t> ids,
                const std::uint8_t* mask, const Forward& run) {
  const auto n = ids.size() * static_cast<std::size_t>(c.hidden_size);
  Outputs out;
  out.embedding.resize(n);
  out.final_norm.resize(n);
  out.block.assign(static_cast<std::size_t>(c.num_hidden_layers), std::vector<float>(n));
  HiddenCapture hidden;
  hidden.embedding = out.embedding.data();
  hidden.final_norm = out.final_norm.data();
  for (auto& b : out.block) hidden.block.push_back(b.data());
  ForwardCall call;
  call.tokens = ids;
  call.mask = mask;
  call.logits = LogitRows::all;
  call.hidden = &hidden;
  call.sink = [&](idx, idx rows, const float* logits) {
    out.logits.insert(out.logits.end(), logits, logits + rows * c.vocab_size);
  };
  run(call, out);
  return out;
}

Outputs on_cpu(const TiledModel& model, std::span<const std::int32_t> ids,
               const std::uint8_t* mask = nullptr) {
  return capture(model.base.config, ids, mask, [&](const ForwardCall& call, Outputs& out) {
    InferScratch scratch(model.base.config, kLogitRows, kLogitRows, kCtx.threads);
    SessionState state(model.base.config);
    forward(kCtx, model, call, state, scratch);
    out.state.assign(state.h.begin(), state.h.end());
  });
}

Outputs on_gpu(GpuModel& model, std::span<const std::int32_t> ids,
               const std::uint8_t* mask = nullptr) {
  return capture(model.config(), ids, mask, [&](const ForwardCall& call, Outputs& out) {
    GpuSession session(model);
    session.forward(call);
    const SessionState state = session.state();
    out.state.assign(state.h.begin(), state.h.end());
  });
}

// Where the first difference is, for the message of a failed comparison.
std::string difference(const std::vector<float>& a, const std::vector<float>& b,
                       std::size_t width) {
  if (a.size() != b.size()) return "sizes differ";
  std::size_t count = 0, first = 0;
  for (std::size_t i = a.size(); i-- > 0;)
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      ++count;
      first = i;
    }
  return std::to_string(count) + " differ, the first in row " + std::to_string(first / width) +
         ", column " + std::to_string(first % width) + ": " + std::to_string(a[first]) + " and " +
         std::to_string(b[first]);
}

void expect_same(const Outputs& cpu, const Outputs& gpu, idx width) {
  EXPECT_TRUE(same_bits(cpu.embedding, gpu.embedding));
  for (std::size_t l = 0; l < cpu.block.size(); ++l)
    EXPECT_TRUE(same_bits(cpu.block[l], gpu.block[l]))
        << "block " << l << ": "
        << difference(cpu.block[l], gpu.block[l], static_cast<std::size_t>(width));
  EXPECT_TRUE(same_bits(cpu.final_norm, gpu.final_norm));
  EXPECT_TRUE(same_bits(cpu.state, gpu.state));
  EXPECT_TRUE(same_bits(cpu.logits, gpu.logits));
}

struct Models {
  explicit Models(const Shape& s, DType dtype = DType::f32) {
    test::write_random_model(dir.path(), config_of(s), dtype);
    cpu = load_model(kCtx, dir.path());
    gpu.emplace(kCtx, load_packed(kCtx, dir.path()), s.layers);
  }
  test::TempDir dir;
  TiledModel cpu;
  std::optional<GpuModel> gpu;
};

std::vector<float> row(const std::vector<float>& logits, idx r, idx vocab) {
  return {logits.begin() + r * vocab, logits.begin() + (r + 1) * vocab};
}
std::vector<float> copy(std::span<const float> v) {
  return {v.begin(), v.end()};
}
std::int32_t most_likely(std::span<const float> v) {
  return static_cast<std::int32_t>(std::max_element(v.begin(), v.end()) - v.begin());
}

// Every place of a tile holds one weight.
TEST(GpuTileLayout, EachWeightHasItsPlace) {
  std::vector<int> seen(cuda::kTileBytes * 4);
  for (idx o = 0; o < cuda::kTileOutputs; ++o)
    for (idx k = 0; k < cuda::kTileInputs; ++k) {
      const cuda::TilePlace at = cuda::tile_place(o, k);
      ++seen[static_cast<std::size_t>(at.byte * 4 + at.shift / 2)];
    }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), cuda::kTileBytes * 4);
}

// The order of codes that Hopper's products read: within each plane of a tile by half, lane, byte.
TEST(GpuTileLayout, HopperWordsMeetTheirWeights) {
  for (int k = 0; k < cuda::kTileInputs; ++k) {
    const cuda::TilePlace at = cuda::tile_place(0, k);
    const auto lane = static_cast<int>(at.byte / 16), word = static_cast<int>(at.byte % 16 / 4);
    const int slot =
        32 * (at.shift / 2) + 16 * (word / 2) + 4 * lane + static_cast<int>(at.byte % 4);
    EXPECT_EQ(4 * cuda::hopper_word(k / 4) + k % 4, slot) << k;
  }
}

TEST_F(GpuInference, RowsGiveTheCpusBits) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(s.hidden);
    Models m(s);
    for (const idx length : {1, 2, 7, 33, 70, 300}) {
      SCOPED_TRACE(length);
      const std::vector<std::int32_t> ids = test::Random(3).ids(length, s.vocab);
      expect_same(on_cpu(m.cpu, ids), on_gpu(*m.gpu, ids), s.hidden);
    }
  }
}

// More rows at a time than passes that give all logits have: the largest products.
TEST_F(GpuInference, LongPromptsGiveTheCpusBits) {
  for (const Shape& s : kShapes) {
    if (s.hidden > 2048) continue;
    SCOPED_TRACE(s.hidden);
    Models m(s);
    const std::vector<std::int32_t> ids =
        test::Random(12).ids(s.hidden < 2048 ? 1100 : 600, s.vocab);
    Session cpu(kCtx, m.cpu);
    const std::vector<float> expected = copy(cpu.prefill(ids));
    GpuSession gpu(*m.gpu);
    EXPECT_TRUE(same_bits(expected, copy(gpu.prefill(ids))));
    const SessionState state = gpu.state();
    EXPECT_TRUE(same_bits(std::vector<float>(cpu.state().h.begin(), cpu.state().h.end()),
                          std::vector<float>(state.h.begin(), state.h.end())));
  }
}

TEST_F(GpuInference, StepsGiveTheCpusBits) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(s.hidden);
    Models m(s);
    const std::vector<std::int32_t> ids = test::Random(4).ids(12, s.vocab);
    const Outputs cpu = on_cpu(m.cpu, ids);
    GpuSession session(*m.gpu);
    for (idx t = 0; t < 12; ++t)
      EXPECT_TRUE(same_bits(row(cpu.logits, t, s.vocab),
                            copy(session.step(ids[static_cast<std::size_t>(t)]))))
          << t;
    const SessionState state = session.state();
    EXPECT_TRUE(same_bits(cpu.state, std::vector<float>(state.h.begin(), state.h.end())));
  }
}

TEST_F(GpuInference, MaskAndHalfPrecisionEmbeddings) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    Models m({200, 328, 3, 257, 1, true}, dtype);
    const std::vector<std::int32_t> ids = test::Random(5).ids(50, 257);
    std::vector<std::uint8_t> mask(50, 1);
    for (std::size_t t = 0; t < 9; ++t) mask[t] = t % 3 == 0 ? 1 : 0;
    expect_same(on_cpu(m.cpu, ids, mask.data()), on_gpu(*m.gpu, ids, mask.data()), 200);
  }
}

TEST_F(GpuInference, ChunksOfAPromptChangeNothing) {
  const Shape s{512, 1408, 4, 1000, 1, true};
  Models m(s);
  const std::vector<std::int32_t> ids = test::Random(6).ids(150, s.vocab);
  GpuSession whole(*m.gpu);
  const std::vector<float> expected = copy(whole.prefill(ids));
  for (const std::size_t part : {1, 2, 31, 64, 149}) {
    GpuSession session(*m.gpu);
    std::span<const float> logits;
    for (std::size_t t = 0; t < ids.size(); t += part)
      logits = session.prefill(std::span(ids).subspan(t, std::min(part, ids.size() - t)));
    EXPECT_TRUE(same_bits(expected, copy(logits))) << part;
    EXPECT_EQ(session.position(), 150);
  }
}

TEST_F(GpuInference, DecodeFeedsBackTheMostLikelyToken) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(s.hidden);
    Models m(s);
    Session cpu(kCtx, m.cpu);
    std::vector<std::int32_t> expected;
    std::int32_t token = 7;
    for (int n = 0; n < 40; ++n) {
      token = most_likely(cpu.step(token));
      expected.push_back(token);
    }
    GpuSession gpu(*m.gpu);
    EXPECT_EQ(gpu.decode(7, 40), expected);
    EXPECT_EQ(gpu.position(), 40);
    // In two calls, and stopping at a token.
    gpu.restart();
    std::vector<std::int32_t> parts = gpu.decode(7, 13);
    const std::vector<std::int32_t> rest = gpu.decode(parts.back(), 27);
    parts.insert(parts.end(), rest.begin(), rest.end());
    EXPECT_EQ(parts, expected);
    gpu.restart();
    const std::int32_t eos = expected[5];
    const auto first = std::find(expected.begin(), expected.end(), eos);
    EXPECT_EQ(gpu.decode(7, 40, eos), std::vector<std::int32_t>(expected.begin(), first + 1));
  }
}

TEST_F(GpuInference, CompanyInABatchChangesNothing) {
  const Shape s{512, 1408, 4, 1000, 1, true};
  Models m(s);
  for (const std::size_t n : {1, 3, 8, 17, 33, 100}) {
    SCOPED_TRACE(n);
    std::vector<GpuSession> sessions;
    std::vector<GpuSession*> pointers;
    const std::vector<std::int32_t> first = test::Random(7).ids(static_cast<idx>(n), s.vocab);
    for (std::size_t k = 0; k < n; ++k) sessions.emplace_back(*m.gpu);
    for (GpuSession& session : sessions) pointers.push_back(&session);
    const std::vector<std::int32_t> together = decode_batch(*m.gpu, pointers, first, 6);
    for (std::size_t k = 0; k < n; k += n / 3 + 1) {
      GpuSession alone(*m.gpu);
      const std::vector<std::int32_t> ids = alone.decode(first[k], 6);
      for (std::size_t t = 0; t < 6; ++t) EXPECT_EQ(together[t * n + k], ids[t]) << k << ' ' << t;
      const SessionState a = alone.state(), b = sessions[k].state();
      EXPECT_TRUE(same_bits(std::vector<float>(a.h.begin(), a.h.end()),
                            std::vector<float>(b.h.begin(), b.h.end())));
    }
  }
}

TEST_F(GpuInference, SessionsJoinAndLeaveABatch) {
  const Shape s{200, 328, 3, 257, 1, true};
  Models m(s);
  const std::vector<std::int32_t> a = test::Random(8).ids(40, s.vocab),
                                  b = test::Random(9).ids(25, s.vocab);
  GpuSession first(*m.gpu), second(*m.gpu);
  std::vector<float> logits(2 * static_cast<std::size_t>(s.vocab));
  first.prefill(std::span(a).first(30));
  const GpuPart parts[] = {{&first, std::span(a).subspan(30, 1)},
                           {&second, std::span(b).first(20)}};
  forward_parts(*m.gpu, parts, logits.data());
  const GpuPart more[] = {{&second, std::span(b).subspan(20)}, {&first, std::span(a).subspan(31)}};
  forward_parts(*m.gpu, more, logits.data());
  EXPECT_TRUE(same_bits(row(logits, 0, s.vocab), row(on_cpu(m.cpu, b).logits, 24, s.vocab)));
  EXPECT_TRUE(same_bits(row(logits, 1, s.vocab), row(on_cpu(m.cpu, a).logits, 39, s.vocab)));
}

TEST_F(GpuInference, StatesMoveBetweenDevices) {
  const Shape s{512, 1408, 4, 1000, 1, true};
  Models m(s);
  const std::vector<std::int32_t> ids = test::Random(10).ids(60, s.vocab);
  Session cpu(kCtx, m.cpu);
  cpu.prefill(std::span(ids).first(30));
  GpuSession gpu(*m.gpu);
  gpu.restore(cpu.state(), cpu.position());
  GpuSession fork(*m.gpu);
  fork.restore(gpu.state(), gpu.position());
  const std::vector<float> expected = copy(cpu.prefill(std::span(ids).subspan(30)));
  EXPECT_TRUE(same_bits(expected, copy(gpu.prefill(std::span(ids).subspan(30)))));
  EXPECT_TRUE(same_bits(expected, copy(fork.prefill(std::span(ids).subspan(30)))));
  Session back(kCtx, m.cpu);
  back.restore(gpu.state(), gpu.position());
  EXPECT_TRUE(same_bits(copy(back.step(3)), copy(gpu.step(3))));
}

TEST_F(GpuInference, PartOfTheBlocksGivesTheirHiddenStates) {
  const Shape s{200, 328, 3, 257, 1, true};
  Models m(s);
  const std::vector<std::int32_t> ids = test::Random(11).ids(40, s.vocab);
  const Outputs cpu = on_cpu(m.cpu, ids);
  for (const idx layers : {0, 1, 2, 3}) {
    SCOPED_TRACE(layers);
    GpuModel part(kCtx, load_packed(kCtx, m.dir.path()), layers);
    const std::vector<float>& expected =
        layers == 0 ? cpu.embedding : cpu.block[static_cast<std::size_t>(layers) - 1];
    std::vector<float> x(expected.size());
    GpuSession session(part);
    session.hidden(ids, nullptr, x.data());
    EXPECT_TRUE(same_bits(expected, x));
    session.restart();
    for (std::size_t t = 0; t < ids.size(); ++t)
      session.hidden(std::span(ids).subspan(t, 1), nullptr,
                     x.data() + t * static_cast<std::size_t>(s.hidden));
    EXPECT_TRUE(same_bits(expected, x));
    if (layers < 3) {
      EXPECT_THROW(session.step(1), Error);
    }
  }
}

TEST_F(GpuInference, BadInputIsRefusedAndChangesNothing) {
  Models m({64, 96, 2, 131, 1, true});
  GpuSession session(*m.gpu);
  const std::vector<float> before = copy(session.step(3));
  EXPECT_THROW(session.step(131), Error);
  EXPECT_THROW(session.step(-1), Error);
  EXPECT_THROW(session.prefill({}), Error);
  EXPECT_THROW(session.decode(200, 3), Error);
  EXPECT_EQ(session.position(), 1);
  EXPECT_THROW(session.restore(SessionState(config_of({64, 96, 3, 131, 1, true})), 1), Error);
  GpuSession other(*m.gpu);
  EXPECT_TRUE(same_bits(before, copy(other.step(3))));
}

// 100,000 tokens in one session: the state stays what the CPU's would be, and finite.
TEST_F(GpuInference, ALongStreamStaysExact) {
  const Shape s{64, 96, 2, 131, 1, true};
  Models m(s);
  constexpr idx kTokens = 100000;
  GpuSession gpu(*m.gpu);
  std::vector<std::int32_t> ids = gpu.decode(1, kTokens);
  ASSERT_EQ(static_cast<idx>(ids.size()), kTokens);
  std::vector<std::int32_t> fed = {1};
  fed.insert(fed.end(), ids.begin(), ids.end() - 1);
  Session cpu(kCtx, m.cpu);
  EXPECT_EQ(most_likely(cpu.prefill(fed)), ids.back());
  const SessionState state = gpu.state();
  EXPECT_TRUE(same_bits(std::vector<float>(cpu.state().h.begin(), cpu.state().h.end()),
                        std::vector<float>(state.h.begin(), state.h.end())));
}

}  // namespace
}  // namespace mmfree
