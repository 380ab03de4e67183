#include "mmfree/model/matmulfree_infer.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "mmfree/core/error.h"
#include "mmfree/generate/session.h"
#include "mmfree/model/convert.h"
#include "mmfree/model/gguf_keys.h"
#include "mmfree/model/matmulfree_reference.h"
#include "mmfree/model/weights.h"
#include "mmfree/ops/gated_norm/gated_norm.h"
#include "mmfree/ops/mlgru/mlgru.h"
#include "mmfree/ops/swiglu/swiglu.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"
#include "tests/support/network_tensors.h"
#include "tests/support/random_model.h"
#include "tests/support/random_tensor.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

using test::Golden;
using test::max_abs_difference;
using test::relative_l2;
using test::same_bits;
using test::TempDir;

constexpr Ctx kOne{1};

struct Ids {
  idx batch = 0, length = 0;
  std::vector<std::int32_t> ids;
};

Ids read_ids(const std::filesystem::path& path) {
  std::ifstream file(path);
  Ids in;
  const nlohmann::json object = nlohmann::json::parse(file);
  for (const auto& row : object.at("input_ids")) {
    ++in.batch;
    in.length = static_cast<idx>(row.size());
    for (const auto& id : row) in.ids.push_back(id.get<std::int32_t>());
  }
  return in;
}

struct Outputs {
  std::vector<float> embedding, final_norm, logits;
  std::vector<std::vector<float>> block, state;  // L times
};

// All outputs for (B, T) tokens, in chunks of `rows`.
Outputs run(const Ctx& ctx, const TiledModel& model, const Ids& in, idx rows = prefill_rows(),
            const std::vector<std::uint8_t>& mask = {}) {
  const MatmulFreeConfig& c = model.base.config;
  const auto n = static_cast<std::size_t>(in.batch * in.length * c.hidden_size);
  const auto layers = static_cast<std::size_t>(c.num_hidden_layers);
  Outputs out;
  out.embedding.resize(n);
  out.final_norm.resize(n);
  out.block.assign(layers, std::vector<float>(n));
  out.state.resize(layers);
  InferScratch scratch(c, rows, rows, ctx.threads);
  SessionState state(c);
  for (idx b = 0; b < in.batch; ++b) {
    reset(state);
    const idx at = b * in.length * c.hidden_size;
    HiddenCapture hidden;
    hidden.embedding = out.embedding.data() + at;
    for (auto& v : out.block) hidden.block.push_back(v.data() + at);
    hidden.final_norm = out.final_norm.data() + at;
    ForwardCall call;
    call.tokens = {in.ids.data() + b * in.length, static_cast<std::size_t>(in.length)};
    call.mask = mask.empty() ? nullptr : mask.data() + b * in.length;
    call.logits = LogitRows::all;
    call.sink = [&](idx, idx count, const float* logits) {
      out.logits.insert(out.logits.end(), logits, logits + count * c.vocab_size);
    };
    call.hidden = &hidden;
    forward(ctx, model, call, state, scratch);
    for (std::size_t l = 0; l < layers; ++l) {
      const float* h = state.layer(static_cast<idx>(l));
      out.state[l].insert(out.state[l].end(), h, h + state.width);
    }
  }
  return out;
}

void expect_same_bits(const Outputs& a, const Outputs& b) {
  EXPECT_TRUE(same_bits(a.logits, b.logits));
  EXPECT_TRUE(same_bits(a.embedding, b.embedding));
  EXPECT_TRUE(same_bits(a.final_norm, b.final_norm));
  for (std::size_t l = 0; l < a.block.size(); ++l) {
    EXPECT_TRUE(same_bits(a.block[l], b.block[l])) << "block " << l;
    EXPECT_TRUE(same_bits(a.state[l], b.state[l])) << "state " << l;
  }
}

// A run directory with random weights: width 256 (packed rows) and MLP width 320 (rows kept as I8).
void write_random_model(const std::filesystem::path& path, DType dtype = DType::f32,
                        bool tied = false) {
  MatmulFreeConfig c;
  c.vocab_size = 131;
  c.hidden_size = 256;
  c.num_hidden_layers = 3;
  c.num_heads = 4;
  c.intermediate_size = 320;
  c.tie_word_embeddings = tied;
  test::write_random_model(path, c, dtype);
}

Ids random_ids(idx batch, idx length, idx vocab) {
  return {batch, length, test::Random(3).ids(batch * length, vocab)};
}

std::string file_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

class GoldenConfig : public testing::TestWithParam<const char*> {
 protected:
  std::filesystem::path path() const { return test::golden_directory() / "configs" / GetParam(); }
};

void expect_golden(const Golden& expected, const Outputs& got) {
  const auto near = [&](const std::string& name, const std::vector<float>& v) {
    EXPECT_LE(relative_l2(v, expected.get<double>(name)), 5e-6) << name;
  };
  EXPECT_LE(max_abs_difference(got.logits, expected.get<double>("logits")), 5e-5);
  near("logits", got.logits);
  near("hidden.embedding", got.embedding);
  near("hidden.final_norm", got.final_norm);
  for (std::size_t l = 0; l < got.block.size(); ++l) {
    near("hidden.block" + std::to_string(l), got.block[l]);
    near("state.layer" + std::to_string(l), got.state[l]);
  }
}

TEST_P(GoldenConfig, IntegerModeEqualsTheReference) {
  const TiledModel model = load_model(kOne, path());
  expect_golden(Golden(path() / "expected.safetensors"),
                run(kOne, model, read_ids(path() / "ids.json")));
}

TEST_P(GoldenConfig, GgufGivesTheBitsOfTheDirectory) {
  const Ids in = read_ids(path() / "ids.json");
  const Outputs expected = run(kOne, load_model(kOne, path()), in);
  const TempDir dir;
  for (const StoredWeights w : {StoredWeights::tq1_0, StoredWeights::tq2_0, StoredWeights::f32}) {
    const std::filesystem::path gguf = dir.path() / "m.gguf";
    write_gguf(kOne, open_latent(path()), gguf, {.weights = w, .overwrite = true});
    expect_same_bits(run(kOne, load_model(kOne, gguf), in), expected);
  }
}

TEST_P(GoldenConfig, ReferenceModeInFloatEqualsTheReference) {
  const Ids in = read_ids(path() / "ids.json");
  const ReferenceOutput<float> r =
      reference_forward<float>(kOne, open_latent(path()), {in.batch, in.length, in.ids.data()});
  expect_golden(Golden(path() / "expected.safetensors"),
                {r.embedding, r.final_norm, r.logits, r.block, r.state});
}

TEST_P(GoldenConfig, ReferenceModeInDoubleIsTheTruthToRounding) {
  const Ids in = read_ids(path() / "ids.json");
  const ReferenceOutput<double> r =
      reference_forward<double>(kOne, open_latent(path()), {in.batch, in.length, in.ids.data()});
  const Golden expected(path() / "expected.safetensors");  // float64 results stored as F32
  EXPECT_LE(relative_l2(r.logits, expected.get<double>("logits")), 1e-7);
  EXPECT_LE(relative_l2(r.final_norm, expected.get<double>("hidden.final_norm")), 1e-7);
}

TEST_P(GoldenConfig, ConfigurationSurvivesGguf) {
  const MatmulFreeConfig c = load_config(path());
  GgufHeader header;
  header.name = "test";
  header.kv = gguf_config_keys(c);
  for (std::size_t i = 0; i < header.kv.size(); ++i)
    EXPECT_TRUE(header.kv_index.emplace(header.kv[i].first, i).second);
  EXPECT_EQ(config_to_json(gguf_config(header)), config_to_json(c));
}

INSTANTIATE_TEST_SUITE_P(All, GoldenConfig,
                         testing::Values("heads_eps", "expand_2", "tied_pad", "one_layer_v131",
                                         "mlp_by_formula", "sharded"));

class GoldenModel : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    path_ = test::golden_directory() / GetParam();
    const auto full = test::full_golden_directory();
    if (full) path_ = *full / GetParam();
    if (!std::filesystem::exists(path_))
      GTEST_SKIP() << path_ << " is only in the full set (MMFREE_GOLDEN_DIR)";
  }
  std::filesystem::path path_;
};
INSTANTIATE_TEST_SUITE_P(All, GoldenModel, testing::Values("g1", "g2"));

TEST_P(GoldenModel, LogitsStatesAndStepwiseDecodingEqualTheReference) {
  const std::filesystem::path& path = path_;
  const Golden io(path / "io.safetensors");
  Ids in{io.shape("input_ids")[0], io.shape("input_ids")[1], io.get<std::int32_t>("input_ids")};
  const TiledModel model = load_model(kOne, path);
  for (const idx rows : {prefill_rows(), idx{1}}) {
    const Outputs got = run(kOne, model, in, rows);
    EXPECT_LE(max_abs_difference(got.logits, io.get<double>("logits")), 5e-5);
    if (io.has("logits_recurrent")) {
      EXPECT_LE(max_abs_difference(got.logits, io.get<double>("logits_recurrent")), 5e-5);
    }
    for (std::size_t l = 0; l < got.state.size(); ++l)
      EXPECT_LE(relative_l2(got.state[l], io.get<double>("state.layer" + std::to_string(l))), 5e-6);
  }
}

TEST_P(GoldenModel, LeftPaddedRowsEqualTheReferenceWhereNotMasked) {
  const std::filesystem::path& path = path_;
  const Golden io(path / "io.safetensors");
  const Ids in{io.shape("leftpad.input_ids")[0], io.shape("leftpad.input_ids")[1],
               io.get<std::int32_t>("leftpad.input_ids")};
  std::vector<std::uint8_t> mask;
  for (const std::int32_t m : io.get<std::int32_t>("leftpad.attention_mask"))
    mask.push_back(static_cast<std::uint8_t>(m));
  const TiledModel model = load_model(kOne, path);
  const Outputs got = run(kOne, model, in, 5, mask);
  const std::vector<double> expected = io.get<double>("leftpad.logits");
  const auto vocab = static_cast<std::size_t>(model.base.config.vocab_size);
  ASSERT_EQ(got.logits.size(), expected.size());
  std::size_t compared = 0;
  for (std::size_t r = 0; r < mask.size(); ++r)
    for (std::size_t v = 0; mask[r] != 0 && v < vocab; ++v, ++compared)
      ASSERT_NEAR(static_cast<double>(got.logits[r * vocab + v]), expected[r * vocab + v], 5e-5);
  EXPECT_EQ(compared, (mask.size() - 7) * vocab);
}

TEST(Infer, AnyChunkingAndAnyThreadCountGivesTheSameBits) {
  const TempDir dir;
  write_random_model(dir.path());
  const TiledModel model = load_model(kOne, dir.path());
  const Ids in = random_ids(2, 150, model.base.config.vocab_size);
  const Outputs expected = run(kOne, model, in);
  for (const idx rows : {1, 2, 7, 63, 150}) expect_same_bits(run(kOne, model, in, rows), expected);
  expect_same_bits(run(Ctx{2}, model, in), expected);
  expect_same_bits(run(Ctx{3}, load_model(Ctx{3}, dir.path()), in, 1), expected);
}

TEST(Infer, TrainingForwardGivesTheSameBits) {
  const TempDir dir;
  write_random_model(dir.path());
  Network net = load_network(kOne, dir.path());
  const Ids in = random_ids(2, 40, net.config.vocab_size);
  const std::vector<std::int32_t> labels(in.ids.size(), 1);
  forward_loss(
      kOne, net,
      {.batch = in.batch, .length = in.length, .inputs = in.ids.data(), .labels = labels.data()});
  const Outputs got = run(kOne, load_model(kOne, dir.path()), in);
  EXPECT_TRUE(same_bits(got.logits, test::last_logits(net)));
}

TEST(Infer, MaskedTokensAddNothingToTheState) {
  const TempDir dir;
  write_random_model(dir.path());
  const TiledModel model = load_model(kOne, dir.path());
  const Ids in = random_ids(1, 30, model.base.config.vocab_size);
  std::vector<std::uint8_t> mask(30, 1);
  std::fill_n(mask.begin(), 9, std::uint8_t{0});
  const Outputs padded = run(kOne, model, in, 8, mask);
  Ids tail{1, 21, {in.ids.begin() + 9, in.ids.end()}};
  const Outputs alone = run(kOne, model, tail);
  const auto skip = static_cast<std::ptrdiff_t>(9 * model.base.config.vocab_size);
  EXPECT_TRUE(same_bits(std::vector<float>(padded.logits.begin() + skip, padded.logits.end()),
                        alone.logits));
  EXPECT_FALSE(same_bits(run(kOne, model, in).logits, padded.logits));
}

TEST(Session, PrefillAndStepsAgreeAndRestartForgets) {
  const TempDir dir;
  write_random_model(dir.path());
  const TiledModel model = load_model(kOne, dir.path());
  const Ids in = random_ids(1, 90, model.base.config.vocab_size);
  Session session(kOne, model);
  const auto copy = [](std::span<const float> v) { return std::vector<float>(v.begin(), v.end()); };
  const std::vector<float> at_once = copy(session.prefill(in.ids));
  EXPECT_EQ(session.position(), 90);
  session.restart();
  session.prefill(std::span(in.ids).first(50));
  const SessionState snapshot = [&] {
    SessionState s(model.base.config);
    std::copy(session.state().h.begin(), session.state().h.end(), s.h.begin());
    return s;
  }();
  std::vector<float> stepped;
  for (std::size_t t = 50; t < 90; ++t) stepped = copy(session.step(in.ids[t]));
  EXPECT_TRUE(same_bits(stepped, at_once));
  session.restore(snapshot, 50);
  EXPECT_TRUE(same_bits(copy(session.prefill(std::span(in.ids).subspan(50))), at_once));
}

// The network op by op on the packed rows of the file, one token at a time: what the fused forward
// must equal.
std::vector<float> plain_logits(const PackedModel& model, std::span<const std::int32_t> tokens) {
  const MatmulFreeConfig& c = model.config;
  const idx d = c.hidden_size, m = c.mixer_width(), f = c.mlp_width();
  const idx stride = code_stride(std::max({d, m, f}));
  SessionState state(c);
  Buffer<std::int8_t> q(3 * stride);
  float scale[3];
  std::int32_t sum[3];
  std::vector<float> x(static_cast<std::size_t>(d)), logits;
  Buffer<float> i(m), fp(m), g(m), h(m), o(m), pq(2 * f), z(f), y(c.vocab_size);
  const auto codes = [&](int p) { return CodeRows{q.data() + p * stride, &scale[p], &sum[p]}; };
  const auto quantize = [&](const float* from, idx width, const float* outer,
                            std::vector<const float*> gains) {
    RmsnormQuant a{.rows = 1,
                   .width = width,
                   .x = from,
                   .outer = outer,
                   .outer_eps = static_cast<float>(c.rms_norm_eps),
                   .projections = static_cast<int>(gains.size()),
                   .gain = {},
                   .codes = {codes(0), codes(1), codes(2)},
                   .outer_rstd = nullptr,
                   .inner_rstd = nullptr};
    std::copy(gains.begin(), gains.end(), a.gain);
    rmsnorm_quant(kOne, a);
  };
  for (const std::int32_t token : tokens) {
    read_as_f32(model.embedding, x.data(), token * d, d);
    for (std::size_t l = 0; l < model.layers.size(); ++l) {
      const PackedLayer& w = model.layers[l];
      quantize(x.data(), d, w.attn_norm, {w.i_norm, w.f_norm, w.g_in_norm});
      bitlinear_packed(kOne, 1, codes(0), w.i, nullptr, i.data());
      bitlinear_packed(kOne, 1, codes(1), w.f, nullptr, fp.data());
      bitlinear_packed(kOne, 1, codes(2), w.g, nullptr, g.data());
      mlgru(kOne, {1, 1, m, i.data(), fp.data(), w.bound, nullptr, state.layer(static_cast<idx>(l)),
                   h.data()});
      gated_norm(
          kOne, {1, m, g.data(), h.data(), w.g_norm, static_cast<float>(c.rms_norm_eps), o.data()});
      quantize(o.data(), m, nullptr, {w.o_norm});
      bitlinear_packed(kOne, 1, codes(0), w.o, x.data(), x.data());
      quantize(x.data(), d, w.mlp_norm, {w.gate_norm});
      bitlinear_packed(kOne, 1, codes(0), w.gate, nullptr, pq.data());
      swiglu(kOne, 1, f, pq.data(), z.data());
      quantize(z.data(), f, nullptr, {w.down_norm});
      bitlinear_packed(kOne, 1, codes(0), w.down, x.data(), x.data());
    }
    quantize(x.data(), d, model.norm, {model.head_norm});
    bitlinear_packed(kOne, 1, codes(0), model.head, nullptr, y.data());
    logits.insert(logits.end(), y.begin(), y.end());
  }
  return logits;
}

constexpr TileFormat kTileFormats[] = {TileFormat::two_bit, TileFormat::base3};

TEST(Infer, BothTileFormatsGiveTheBitsOfThePlainPath) {
  const TempDir dir;
  write_random_model(dir.path());
  const Ids in = random_ids(1, 70, 131);
  const std::vector<float> expected = plain_logits(load_packed(kOne, dir.path()), in.ids);
  for (const TileFormat format : kTileFormats)
    for (const int threads : {1, 2, 5}) {
      const Ctx ctx{threads};
      const TiledModel model = load_model(ctx, dir.path(), {}, format);
      EXPECT_EQ(model.layers[1].down.format, format);
      for (const idx rows : {idx{1}, idx{3}, prefill_rows()})
        EXPECT_TRUE(same_bits(run(ctx, model, in, rows).logits, expected))
            << tile_format_name(format) << " " << threads << " threads, chunks of " << rows;
    }
}

TEST(Infer, CompanyInABatchChangesNothing) {
  const TempDir dir;
  write_random_model(dir.path());
  const Ctx ctx{2};
  const TiledModel model = load_model(ctx, dir.path());
  constexpr idx kSequences = 9, kSteps = 6;
  const auto vocab = static_cast<std::size_t>(model.base.config.vocab_size);
  const Ids in = random_ids(kSequences, kSteps, model.base.config.vocab_size);
  std::vector<SessionState> sessions;
  for (idx i = 0; i < kSequences; ++i) sessions.emplace_back(model.base.config);
  InferScratch scratch(model.base.config, kSequences, kSequences, ctx.threads);
  // Sequence i joins at step i / 2 and leaves after its tokens: every batch has other company.
  std::vector<std::vector<float>> got(kSequences);
  for (idx step = 0; step < kSteps + kSequences; ++step) {
    std::vector<std::int32_t> tokens;
    std::vector<SessionState*> states;
    std::vector<std::size_t> who;
    for (idx i = kSequences - 1; i >= 0; --i) {
      const idx t = step - i / 2;
      if (t < 0 || t >= kSteps) continue;
      tokens.push_back(in.ids[static_cast<std::size_t>(i * kSteps + t)]);
      states.push_back(&sessions[static_cast<std::size_t>(i)]);
      who.push_back(static_cast<std::size_t>(i));
    }
    step_batch(ctx, model, tokens, states, scratch);
    for (std::size_t k = 0; k < who.size(); ++k) {
      const float* row = scratch.logits.data() + k * vocab;
      got[who[k]].insert(got[who[k]].end(), row, row + vocab);
    }
  }
  const std::vector<float> expected = run(kOne, model, in).logits;
  const std::size_t each = kSteps * vocab;
  for (std::size_t i = 0; i < kSequences; ++i)
    EXPECT_TRUE(
        same_bits(got[i], std::vector<float>(expected.begin() + static_cast<long>(i * each),
                                             expected.begin() + static_cast<long>((i + 1) * each))))
        << "sequence " << i;
}

TEST(Session, AllocatesNothingAfterItsFirstToken) {
  const TempDir dir;
  write_random_model(dir.path());
  const TiledModel model = load_model(kOne, dir.path());
  Session session(kOne, model);
  const Ids in = random_ids(1, 200, model.base.config.vocab_size);
  session.prefill(in.ids);
  const auto in_use = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const std::size_t before = in_use();
  session.prefill(in.ids);
  for (const std::int32_t id : in.ids) session.step(id);
  EXPECT_EQ(in_use(), before);
}

TEST(Session, RefusesIdsOutsideTheVocabularyAndStaysAsItWas) {
  const TempDir dir;
  write_random_model(dir.path());
  const TiledModel model = load_model(kOne, dir.path());
  Session session(kOne, model), other(kOne, model);
  session.step(3);
  other.step(3);
  for (const std::int32_t bad : {-1, 131, INT32_MAX})
    EXPECT_THROW(session.prefill(std::vector<std::int32_t>{1, bad}), Error);
  EXPECT_THROW(session.prefill({}), Error);
  const std::span<const float> a = session.step(4);
  const std::span<const float> b = other.step(4);
  EXPECT_TRUE(same_bits(a, b));
}

TEST(Reference, HalfPrecisionRoundsWhatItStores) {
  const TempDir dir;
  write_random_model(dir.path(), DType::bf16);
  const LatentModel latent = open_latent(dir.path());
  const Ids in = random_ids(1, 24, latent.config.vocab_size);
  const ReferenceInput input{in.batch, in.length, in.ids.data()};
  const ReferenceOutput<double> truth = reference_forward<double>(kOne, latent, input);
  const ReferenceOutput<float> f16 = reference_forward<float>(kOne, latent, input, Rounding::f16);
  const ReferenceOutput<float> bf16 = reference_forward<float>(kOne, latent, input, Rounding::bf16);
  for (const float v : f16.block[1]) ASSERT_EQ(v, f16_to_float(float_to_f16(v)));
  for (const float v : f16.logits) ASSERT_EQ(v, f16_to_float(float_to_f16(v)));
  for (const float v : bf16.state[2]) ASSERT_EQ(v, bf16_to_float(float_to_bf16(v)));
  EXPECT_LE(relative_l2(f16.block[0], truth.block[0]), 0.02);
  EXPECT_GT(relative_l2(f16.block[0], truth.block[0]), 1e-5);
  EXPECT_LE(relative_l2(bf16.logits, truth.logits), 0.3);
}

TEST(Convert, LatentGgufGivesBackTheIdenticalTensors) {
  for (const bool tied : {false, true}) {
    const TempDir dir;
    write_random_model(dir.path() / "a", DType::bf16, tied);
    write_file_atomically(dir.path() / "a" / "note.txt", "not part of the model");
    for (const StoredWeights w : {StoredWeights::bf16, StoredWeights::f32}) {
      write_gguf(kOne, open_latent(dir.path() / "a"), dir.path() / "m.gguf",
                 {.weights = w, .overwrite = true});
      write_run_directory(kOne, open_latent(dir.path() / "m.gguf"), dir.path() / "b", true);
      const LatentModel a = open_latent(dir.path() / "a"), b = open_latent(dir.path() / "b");
      for (std::size_t i = 0; i < a.table.size(); ++i) {
        std::vector<float> x(static_cast<std::size_t>(a.table[i].size())), y(x.size());
        read_finite(kOne, a.tensors[i], "a", x.data());
        read_finite(kOne, b.tensors[i], "b", y.data());
        ASSERT_TRUE(same_bits(x, y)) << a.table[i].name;
      }
      if (w == StoredWeights::bf16) {
        EXPECT_EQ(file_bytes(dir.path() / "a" / "model.safetensors"),
                  file_bytes(dir.path() / "b" / "model.safetensors"));
        EXPECT_EQ(file_bytes(dir.path() / "a" / "config.json"),
                  file_bytes(dir.path() / "b" / "config.json"));
      } else {
        EXPECT_EQ(b.config.torch_dtype, "float32");
      }
    }
  }
}

ErrorKind kind_of(const std::function<void()>& f, std::string* message = nullptr) {
  try {
    f();
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.kind();
  }
  ADD_FAILURE() << "nothing was thrown";
  return ErrorKind::resource;
}

TEST(Convert, RefusesWhatLosesNumbersUnlessAsked) {
  const TempDir dir;
  write_random_model(dir.path() / "a", DType::f32);
  const LatentModel a = open_latent(dir.path() / "a");
  const std::filesystem::path out = dir.path() / "m.gguf";
  std::string message;
  EXPECT_EQ(kind_of([&] { write_gguf(kOne, a, out, {.weights = StoredWeights::bf16}); }, &message),
            ErrorKind::format);
  EXPECT_NE(message.find("--allow-rounding"), std::string::npos) << message;
  EXPECT_FALSE(std::filesystem::exists(out));
  write_gguf(kOne, a, out, {.weights = StoredWeights::bf16, .allow_rounding = true});
  EXPECT_EQ(kind_of([&] { write_gguf(kOne, a, out, {}); }), ErrorKind::usage);  // exists
  write_gguf(kOne, a, out, {.overwrite = true});
  EXPECT_EQ(kind_of([&] { open_latent(out); }, &message), ErrorKind::usage);
  EXPECT_NE(message.find("latent weights"), std::string::npos) << message;
  EXPECT_EQ(kind_of([&] { write_run_directory(kOne, a, dir.path() / "a", false); }),
            ErrorKind::usage);
}

// A ternary file with one thing changed.
struct Change {
  const char* what;
  std::function<void(std::vector<GgufTensorSpec>&, std::vector<std::vector<std::byte>>&,
                     std::vector<GgufKv>&)>
      apply;
  const char* message;
};

TEST(Packed, RefusesGgufFilesThatContradictThemselves) {
  const TempDir dir;
  write_random_model(dir.path() / "a");
  write_gguf(kOne, open_latent(dir.path() / "a"), dir.path() / "good.gguf",
             {.weights = StoredWeights::tq2_0});
  const GgufFile good(dir.path() / "good.gguf");
  const auto at = [](const std::vector<GgufTensorSpec>& specs, std::string_view name) {
    return static_cast<std::size_t>(
        std::find_if(specs.begin(), specs.end(),
                     [&](const GgufTensorSpec& s) { return s.name == name; }) -
        specs.begin());
  };
  const auto set_float = [&](std::string_view name, float v) {
    return [&at, name, v](auto& specs, auto& data, auto&) {
      std::memcpy(data[at(specs, name)].data(), &v, sizeof v);
    };
  };
  const auto set_key = [](const char* key, GgufValue v) {
    return [key, v](auto&, auto&, auto& kv) {
      for (GgufKv& k : kv)
        if (k.first == key) k.second = v;
    };
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<Change> changes = {
      {"nothing", [](auto&, auto&, auto&) {}, nullptr},
      {"missing tensor",
       [&](auto& s, auto& d, auto&) {
         const auto i = static_cast<std::ptrdiff_t>(at(s, "blk.1.ffn_norm.weight"));
         s.erase(s.begin() + i);
         d.erase(d.begin() + i);
       },
       "blk.1.ffn_norm.weight"},
      {"extra tensor",
       [&](auto& s, auto& d, auto&) {
         s.push_back({"blk.9.attn_i.weight", GgmlType::f32, {1}});
         d.emplace_back(4);
       },
       "does not belong"},
      {"scale is NaN", set_float("blk.0.attn_i.scale", nan), "blk.0.attn_i.scale"},
      {"scale is 0", set_float("blk.0.attn_i.scale", 0), "above 0"},
      {"scale differs from the blocks'", set_float("blk.0.attn_i.scale", 0.5F),
       "blk.0.attn_i.weight"},
      {"gain is NaN", set_float("blk.2.attn_gated_norm.weight", nan),
       "blk.2.attn_gated_norm.weight"},
      {"embedding is infinite",
       set_float("token_embd.weight", std::numeric_limits<float>::infinity()), "token_embd.weight"},
      {"code out of range",
       [&](auto& s, auto& d, auto&) { d[at(s, "blk.0.attn_f.weight")][70] = std::byte{0xff}; },
       "blk.0.attn_f.weight"},
      {"I8 code out of range",
       [&](auto& s, auto& d, auto&) { d[at(s, "blk.0.ffn_down.weight")][7] = std::byte{2}; },
       "blk.0.ffn_down.weight"},
      {"shape",
       [&](auto& s, auto&, auto&) {
         std::swap(s[at(s, "blk.0.ffn_down.weight")].shape[0],
                   s[at(s, "blk.0.ffn_down.weight")].shape[1]);
       },
       "expected [256, 320]"},
      {"vocabulary", set_key("mmfree.vocab_size", std::uint32_t{132}), "token_embd.weight"},
      {"enormous sizes",
       [&](auto& s, auto& d, auto& kv) {
         set_key("mmfree.embedding_length", std::uint32_t{1} << 22)(s, d, kv);
         set_key("mmfree.block_count", std::uint32_t{4096})(s, d, kv);
       },
       "token_embd.weight"},
      {"architecture", set_key("general.architecture", std::string("llama")),
       "general.architecture"},
      {"heads", set_key("mmfree.head_count", std::uint32_t{3}), "num_heads"},
      {"key type", set_key("mmfree.block_count", std::string("3")), "mmfree.block_count"},
      {"negative width", set_key("mmfree.embedding_length", std::int64_t{-256}), "hidden_size"},
  };
  for (const Change& change : changes) {
    std::vector<GgufTensorSpec> specs;
    std::vector<std::vector<std::byte>> data;
    std::vector<GgufKv> kv = good.header().kv;
    for (const GgufTensor& t : good.header().tensors) {
      specs.push_back({t.name, t.type, t.shape});
      data.emplace_back(t.data, t.data + t.bytes);
    }
    change.apply(specs, data, kv);
    const std::filesystem::path path = dir.path() / "changed.gguf";
    GgufWriter writer(path, kv, specs);
    for (std::size_t i = 0; i < specs.size(); ++i)
      writer.write(specs[i].name, data[i].data(), data[i].size());
    writer.commit();
    if (change.message == nullptr) {
      EXPECT_NO_THROW(load_packed(kOne, path));
      continue;
    }
    std::string message;
    const ErrorKind kind = kind_of([&] { load_packed(kOne, path); }, &message);
    EXPECT_TRUE(kind == ErrorKind::format || kind == ErrorKind::config)
        << change.what << ": " << message;
    EXPECT_NE(message.find(change.message), std::string::npos) << change.what << ": " << message;
    EXPECT_NE(message.find("changed.gguf"), std::string::npos) << change.what << ": " << message;
  }
}

TEST(Packed, ChangedBytesInTheHeaderAreRefusedOrHarmless) {
  const TempDir dir;
  write_random_model(dir.path() / "a");
  write_gguf(kOne, open_latent(dir.path() / "a"), dir.path() / "good.gguf", {});
  const std::string good = file_bytes(dir.path() / "good.gguf");
  const std::size_t header = GgufFile(dir.path() / "good.gguf").header().data_offset;
  test::Random random(23);
  int refused = 0;
  for (int n = 0; n < 400; ++n) {
    std::string bytes = good;
    const auto at = static_cast<std::size_t>(random.below(static_cast<idx>(header)));
    bytes[at] = static_cast<char>(bytes[at] ^ static_cast<char>(1 << random.below(8)));
    std::ofstream(dir.path() / "flipped.gguf", std::ios::binary) << bytes;
    try {
      const TiledModel model = load_model(kOne, dir.path() / "flipped.gguf");
      Session session(kOne, model);
      session.step(0);
    } catch (const Error& e) {
      EXPECT_NE(e.kind(), ErrorKind::resource) << "byte " << at << ": " << e.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 200);
}

TEST(Packed, RefusesDirectoriesWithNumbersThatAreNotFinite) {
  const TempDir dir;
  write_random_model(dir.path());
  for (const char* name : {"model.embeddings.weight", "model.layers.1.attn.i_proj.weight",
                           "lm_head.norm.weight", "model.lower_bounds"}) {
    Network net = load_network(kOne, dir.path());
    for (const ParamInfo& p : net.table)
      if (p.name == name)
        net.values[p.offset + p.size() - 1] = std::numeric_limits<float>::quiet_NaN();
    save_network(net, dir.path() / "bad");
    std::string message;
    EXPECT_EQ(kind_of([&] { load_packed(kOne, dir.path() / "bad"); }, &message), ErrorKind::format);
    EXPECT_NE(message.find(name), std::string::npos) << message;
  }
}

// What another device has begun is gone on with: the residual stream after a block stands for the
// tokens and the blocks before it.
TEST(Infer, GoesOnFromTheResidualStreamOfAnyBlock) {
  const TempDir dir;
  write_random_model(dir.path());
  const TiledModel model = load_model(kOne, dir.path());
  const MatmulFreeConfig& c = model.base.config;
  const Ids in = random_ids(1, 20, c.vocab_size);
  const Outputs whole = run(kOne, model, in);
  for (idx first = 1; first < c.num_hidden_layers; ++first) {
    InferScratch scratch(c, 7, 7, 1);  // chunks begin inside the stream
    SessionState state(c);
    std::vector<float> logits;
    ForwardCall call;
    call.tokens = in.ids;
    call.logits = LogitRows::all;
    call.residual = whole.block[static_cast<std::size_t>(first) - 1].data();
    call.first_layer = first;
    call.sink = [&](idx, idx rows, const float* values) {
      logits.insert(logits.end(), values, values + rows * c.vocab_size);
    };
    forward(kOne, model, call, state, scratch);
    EXPECT_TRUE(same_bits(whole.logits, logits)) << first;
  }
}

}  // namespace
}  // namespace mmfree
