#include "mmfree/train/run_directory.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/train/metrics.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

bool is_there(const fs::path& path) {
  std::error_code ec;
  return fs::exists(path, ec);
}

void check_fresh(const TrainOptions& o) {
  if (is_there(options_path(o.out)) || !list_checkpoints(o.out).empty() ||
      is_there(metrics_path(o.out)))
    fail(ErrorKind::usage,
         fmt::format("{} holds a training run already; continue it with --resume or choose another "
                     "directory for --out",
                     o.out.string()));
  if (is_there(o.out / "trainer")) return;  // killed before it began
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json"})
    if (is_there(o.out / name))
      fail(ErrorKind::usage,
           fmt::format(
               "{} holds {}, which a run would overwrite; choose another directory for --out",
               o.out.string(), name));
}

void check_resume(const TrainOptions& o) {
  const std::optional<TrainOptions> run = find_run_options(o.out);
  const std::vector<Checkpoint> checkpoints = list_checkpoints(o.out);
  if (!run) {
    if (!checkpoints.empty() || is_there(metrics_path(o.out)))
      fail(ErrorKind::usage, fmt::format("{}: the run's options are missing; expected them in {}",
                                         o.out.string(), options_path(o.out).string()));
    check_fresh(o);
    return;
  }
  const std::vector<std::string> differences = differing_options(*run, o);
  if (!differences.empty())
    fail(ErrorKind::usage, fmt::format("{} cannot be resumed with other options: {}",
                                       o.out.string(), fmt::join(differences, "; ")));
  // The first checkpoint is written before the first row, so rows without one mean that it was
  // deleted.
  if (checkpoints.empty() && is_there(metrics_path(o.out)) &&
      !read_metrics(metrics_path(o.out)).empty())
    fail(ErrorKind::usage,
         fmt::format("{} has metrics but no checkpoint to resume from; expected one in {}",
                     o.out.string(), (o.out / "trainer" / "checkpoints").string()));
}

std::string piece_or_null(const Tokenizer& t, std::int32_t id) {
  return id >= 0 && id < t.vocab_size() ? t.piece(id) : std::string();
}

std::string tokenizer_config_json(const Tokenizer& t) {
  ordered_json o;
  o["tokenizer_class"] = "LlamaTokenizer";
  const auto special = [&](const char* key, std::int32_t id) {
    const std::string piece = piece_or_null(t, id);
    if (!piece.empty()) o[key] = piece;
  };
  special("bos_token", t.bos_id());
  special("eos_token", t.eos_id());
  special("unk_token", t.unk_id());
  o["pad_token"] = nullptr;
  o["add_bos_token"] = true;
  o["add_eos_token"] = false;
  o["clean_up_tokenization_spaces"] = false;
  o["legacy"] = true;
  return o.dump(2) + "\n";
}

std::string generation_config_json(const MatmulFreeConfig& c) {
  ordered_json o;
  o["_from_model_config"] = true;
  if (c.bos_token_id) o["bos_token_id"] = *c.bos_token_id;
  if (c.eos_token_id) o["eos_token_id"] = *c.eos_token_id;
  return o.dump(2) + "\n";
}

}  // namespace

fs::path metrics_path(const fs::path& run) {
  return run / "trainer" / "metrics.jsonl";
}
fs::path samples_path(const fs::path& run) {
  return run / "trainer" / "samples.jsonl";
}
fs::path options_path(const fs::path& run) {
  return run / "trainer" / "options.json";
}

std::optional<TrainOptions> find_run_options(const fs::path& run) {
  const fs::path path = options_path(run);
  if (!is_there(path)) return std::nullopt;
  TrainOptions o = options_from_json(read_text_file(path), path.string());
  o.out = run;
  return o;
}

void check_run_directory(const TrainOptions& o, bool resume) {
  if (is_there(o.out) && !fs::is_directory(o.out))
    fail(ErrorKind::usage, fmt::format("--out {} is a file, expected a directory", o.out.string()));
  if (resume) {
    check_resume(o);
  } else {
    check_fresh(o);
  }
}

void write_run_files(const TrainOptions& o, const Tokenizer& tokenizer) {
  // The options come first: whatever else is there, they say whose it is.
  write_file_atomically(options_path(o.out), options_to_json(o));
  write_file_atomically(o.out / "config.json", config_to_json(o.config));
  write_file_atomically(o.out / "tokenizer.model", tokenizer.serialized());
  write_file_atomically(o.out / "tokenizer_config.json", tokenizer_config_json(tokenizer));
  write_file_atomically(o.out / "generation_config.json", generation_config_json(o.config));
}

}  // namespace mmfree
