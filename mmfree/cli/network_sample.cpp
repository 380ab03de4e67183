#include "mmfree/cli/network_sample.h"

#include <vector>

#include "mmfree/generate/sampler.h"
#include "mmfree/generate/session.h"

namespace mmfree {
namespace {

PackedMatrix view(const TernaryWeights& w) {
  return {w.out, w.in, TernaryFormat::i8, w.scale,
          reinterpret_cast<const std::byte*>(w.codes.data())};
}

// Points into the network.
PackedModel view(const Network& net) {
  const MatmulFreeConfig& c = net.config;
  PackedModel m;
  m.path = "the network in training";
  m.config = c;
  m.embedding = {"model.embeddings.weight",
                 DType::f32,
                 {c.vocab_size, c.hidden_size},
                 reinterpret_cast<const std::byte*>(net.p.embedding),
                 static_cast<std::size_t>(c.vocab_size * c.hidden_size) * sizeof(float)};
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const LayerParams& p = net.p.layers[l];
    const LayerTernary& t = net.layers[l];
    const bool bounded = c.use_lower_bound && l > 0;  // as in the reference, not the first layer
    m.layers.push_back(
        {.attn_norm = p.attn_norm,
         .i_norm = p.i_norm,
         .f_norm = p.f_norm,
         .g_in_norm = p.g_in_norm,
         .bound = bounded ? net.bounds.data() + static_cast<idx>(l) * c.hidden_size : nullptr,
         .g_norm = p.g_norm,
         .o_norm = p.o_norm,
         .mlp_norm = p.mlp_norm,
         .gate_norm = p.gate_norm,
         .down_norm = p.down_norm,
         .i = view(t.i),
         .f = view(t.f),
         .g = view(t.g),
         .o = view(t.o),
         .gate = view(t.gate),
         .down = view(t.down)});
  }
  m.norm = net.p.norm;
  m.head = view(net.head);
  m.head_norm = net.p.head_norm;
  return m;
}

}  // namespace

std::string sample_network(const Ctx& ctx, const Network& net, const Tokenizer& tokenizer,
                           std::string_view prompt, idx tokens, std::uint64_t seed) {
  const TiledModel model = tile_model(ctx, view(net));
  std::vector<std::int32_t> ids;
  if (tokenizer.bos_id() >= 0) ids.push_back(tokenizer.bos_id());
  const std::vector<std::int32_t> words = tokenizer.encode(prompt);
  ids.insert(ids.end(), words.begin(), words.end());
  if (ids.empty()) ids.push_back(0);

  Session session(ctx, model);
  SamplerOptions options;
  options.seed = seed;
  RecentTokens recent(model.base.config.vocab_size, options.repetition_window);
  std::vector<Candidate> scratch;
  TextStream stream(tokenizer);
  std::span<const float> logits = session.prefill(ids);
  for (const std::int32_t id : ids) {
    recent.push(id);
    stream.put(id);  // so that a space between prompt and text is kept
  }
  std::string text;
  for (idx n = 0; n < tokens; ++n) {
    const std::int32_t id =
        sample(logits, options, &recent, static_cast<std::uint64_t>(n), scratch);
    if (id == tokenizer.eos_id()) break;
    recent.push(id);
    if (id < tokenizer.vocab_size()) text += stream.put(id);
    if (n + 1 < tokens) logits = session.step(id);
  }
  return text + stream.finish();
}

}  // namespace mmfree
