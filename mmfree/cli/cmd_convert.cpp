#include <fmt/core.h>

#include <filesystem>
#include <string>

#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/model/convert.h"

namespace mmfree {
namespace {

StoredWeights parse_weights(const std::string& name) {
  if (name == "tq2_0") return StoredWeights::tq2_0;
  if (name == "f32") return StoredWeights::f32;
  if (name == "f16") return StoredWeights::f16;
  if (name == "bf16") return StoredWeights::bf16;
  return StoredWeights::tq1_0;
}

}  // namespace

int cmd_convert(Args args) {
  std::string source, target, weights;
  ConvertOptions options;
  bool force = false;
  Ctx ctx;
  CLI::App app(
      "Turns a run directory into a GGUF file, or a GGUF file of latent weights back into a run "
      "directory",
      "mmfree convert");
  app.add_option("SRC", source, "run directory or GGUF file")->required();
  app.add_option("DST", target, "a name that ends in .gguf: GGUF; otherwise a run directory")
      ->required();
  app.add_option("--weights", weights,
                 "what the GGUF file stores: ternary codes as tq1_0 (default, smallest) or tq2_0; "
                 "latent weights as "
                 "f32, f16 or bf16")
      ->check(CLI::IsMember({"tq1_0", "tq2_0", "f32", "f16", "bf16"}));
  app.add_flag("--allow-rounding", options.allow_rounding,
               "let f16 and bf16 round weights that do not fit them");
  app.add_flag("--force", force, "replace DST if it exists");
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;

  const bool to_gguf = std::filesystem::path(target).extension() == ".gguf";
  if (!to_gguf && std::filesystem::is_directory(source))
    fail(
        ErrorKind::usage,
        fmt::format("convert: {} is a run directory already; a DST that ends in .gguf makes a GGUF "
                    "file of it",
                    source));
  if (!to_gguf && !weights.empty())
    fail(ErrorKind::usage,
         "convert: --weights says what a GGUF file stores; a run directory keeps the types of SRC");
  const LatentModel model = open_latent(source);
  if (model.sentencepiece.empty())
    fmt::print(
        stderr,
        "mmfree: warning: {} has no tokenizer.model, so the result works with token ids only\n",
        source);
  ProgressLine line("convert");
  if (to_gguf) {
    options.weights = parse_weights(weights);
    options.overwrite = force;
    write_gguf(ctx, model, target, options, line.sink());
  } else {
    write_run_directory(ctx, model, target, force, line.sink());
  }
  return 0;
}

}  // namespace mmfree
