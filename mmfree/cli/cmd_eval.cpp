#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "mmfree/cli/device_model.h"
#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/eval/text_eval.h"
#include "mmfree/hw/fixed_session.h"

namespace mmfree {

int cmd_eval(Args args) {
  std::string model_path, text_path, numerics = "integer";
  idx window = 0;
  bool json = false;
  DeviceOptions device;
  Ctx ctx;
  CLI::App app("Measures how well a model predicts a text: bits per byte, perplexity, tokens/s",
               "mmfree eval");
  app.add_option("MODEL", model_path, "run directory or GGUF file")->required();
  app.add_option("--text", text_path, "file of UTF-8 text")->required();
  app.add_option("--window", window,
                 "forget everything every N tokens; 0: carry the state through the file")
      ->check(CLI::Range(idx{0}, idx{1} << 40))
      ->capture_default_str();
  add_numerics_option(app, numerics);
  add_device_options(app, device);
  app.add_flag("--json", json, "one JSON object");
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;
  validate(device);
  if (numerics == "fixed" && device.device != "cpu")
    fail(ErrorKind::usage, "eval: --numerics fixed runs with --device cpu only");

  const MappedFile file(text_path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  if (text.empty()) fail(ErrorKind::usage, text_path + ": the file is empty, expected text");
  const auto score_with = [&](const PackedModel& base, const auto& network) {
    if (base.sentencepiece.empty())
      fail(ErrorKind::usage, base.path + ": there is no tokenizer.model, and text needs one");
    const Tokenizer tokenizer =
        Tokenizer::from_bytes(base.sentencepiece, base.path + ": tokenizer");
    ProgressLine line("eval");
    return network(tokenizer, line.sink());
  };
  TextScore score;
  if (numerics == "fixed") {
    const PackedModel model = load_packed(ctx, model_path);
    score = score_with(model, [&](const Tokenizer& tokenizer, const Progress& progress) {
      hw::FixedSession session(ctx, model);
      const LogitsFunction network = [&](std::span<const std::int32_t> tokens, bool restart,
                                         float* logits) {
        if (restart) session.restart();
        for (const std::int32_t token : tokens) {
          const std::span<const float> row = session.step(token);
          logits = std::copy(row.begin(), row.end(), logits);
        }
      };
      return score_text(ctx, model.config, model.path, network, tokenizer, text, window, progress);
    });
  } else {
    DeviceModel model;
    load_on_device(ctx, model_path, device, model);
    score = score_with(model.base(), [&](const Tokenizer& tokenizer, const Progress& progress) {
      if (!model.gpu) return score_text(ctx, *model.tiled, tokenizer, text, window, progress);
      return with_gpu_session(ctx, model, [&](const auto& open) {
        auto session = open();
        const LogitsFunction network = [&](std::span<const std::int32_t> tokens, bool restart,
                                           float* logits) {
          if (restart) session.restart();
          ForwardCall call;
          call.tokens = tokens;
          call.logits = LogitRows::all;
          call.sink = [&](idx, idx rows, const float* values) {
            logits = std::copy_n(values, rows * model.base().config.vocab_size, logits);
          };
          session.forward(call);
        };
        return score_text(ctx, model.base().config, model.base().path, network, tokenizer, text,
                          window, progress);
      });
    });
  }
  if (json) {
    const nlohmann::ordered_json j = {{"model", model_path},
                                      {"text", text_path},
                                      {"window", window},
                                      {"numerics", numerics},
                                      {"device", device.device},
                                      {"bytes", score.bytes},
                                      {"tokens", score.tokens},
                                      {"nll", score.nll},
                                      {"bits_per_byte", score.bits_per_byte()},
                                      {"perplexity", score.perplexity()},
                                      {"tokens_per_s", score.tokens_per_second()},
                                      {"threads", ctx.threads},
                                      {"peak_rss_bytes", peak_rss_bytes()}};
    fmt::print("{}\n", j.dump(2));
  } else {
    fmt::print(
        "bits per byte   {:.4f}\nperplexity      {:.3f} per token\ntokens          {} ({} bytes)\n"
        "tokens/s        {:.1f}\n",
        score.bits_per_byte(), score.perplexity(), score.tokens, score.bytes,
        score.tokens_per_second());
  }
  return 0;
}

}  // namespace mmfree
