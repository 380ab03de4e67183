#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <string>

#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/eval/text_eval.h"

namespace mmfree {

int cmd_eval(Args args) {
  std::string model_path, text_path;
  idx window = 0;
  bool json = false;
  Ctx ctx;
  CLI::App app("Measures how well a model predicts a text: bits per byte, perplexity, tokens/s",
               "mmfree eval");
  app.add_option("MODEL", model_path, "run directory or GGUF file")->required();
  app.add_option("--text", text_path, "file of UTF-8 text")->required();
  app.add_option("--window", window,
                 "forget everything every N tokens; 0: carry the state through the file")
      ->check(CLI::Range(idx{0}, idx{1} << 40))
      ->capture_default_str();
  app.add_flag("--json", json, "one JSON object");
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;

  const MappedFile file(text_path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  if (text.empty()) fail(ErrorKind::usage, text_path + ": the file is empty, expected text");
  const TiledModel model = load_with_progress(ctx, model_path);
  if (model.base.sentencepiece.empty())
    fail(ErrorKind::usage, model.base.path + ": there is no tokenizer.model, and text needs one");
  const Tokenizer tokenizer =
      Tokenizer::from_bytes(model.base.sentencepiece, model.base.path + ": tokenizer");
  TextScore score;
  {
    ProgressLine line("eval");
    score = score_text(ctx, model, tokenizer, text, window, line.sink());
  }
  if (json) {
    const nlohmann::ordered_json j = {{"model", model_path},
                                      {"text", text_path},
                                      {"window", window},
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
