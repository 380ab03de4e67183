#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "mmfree/cli/options.h"
#include "mmfree/core/error.h"
#include "mmfree/train/data.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;

// Progress on stderr: one line that is drawn over on a terminal, else a line every few seconds.
class ProgressLine {
 public:
  ~ProgressLine() { clear(); }

  void operator()(std::string_view what, std::uint64_t done, std::uint64_t total) {
    const Clock::time_point now = Clock::now();
    const bool begins = what != what_;
    const bool ends = total > 0 && done == total;
    if (begins) {
      what_ = what;
      begin_ = now;
    } else if (!ends && now - shown_ < interval_) {
      return;
    }
    // Without a terminal, short work shows nothing but its end.
    if (!terminal_ && total > 0 && !ends && begins) {
      shown_ = now;
      return;
    }
    shown_ = now;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    std::string line(what);
    if (total > 0) {
      line += fmt::format(": {:.1f} of {:.1f} MB", static_cast<double>(done) * 1e-6,
                          static_cast<double>(total) * 1e-6);
      if (done > 0 && seconds > 0.05) {
        const double rate = static_cast<double>(done) / seconds;
        line += fmt::format(", {:.1f} MB/s", rate * 1e-6);
        if (!ends)
          line +=
              fmt::format(", {:.0f} s left", std::ceil(static_cast<double>(total - done) / rate));
      }
    }
    if (terminal_) {
      fmt::print(stderr, "\r\033[K{}", line);
      std::fflush(stderr);
      drawn_ = true;
    } else {
      fmt::print(stderr, "{}\n", line);
    }
  }

  void clear() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
    drawn_ = false;
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  Clock::duration interval_ = std::chrono::milliseconds(terminal_ ? 100 : 10000);
  std::string what_;
  Clock::time_point begin_;
  Clock::time_point shown_;
  bool drawn_ = false;
};

nlohmann::json split_json(const SplitSummary& s) {
  return {{"tokens", s.tokens},
          {"documents", s.documents},
          {"text_bytes", s.text_bytes},
          {"shards", s.shards}};
}

void print_split(const char* name, idx tokens, idx documents, std::int64_t text_bytes) {
  fmt::print("{:<5} {:>12} tokens {:>9} documents {:>12} bytes of text", name, tokens, documents,
             text_bytes);
  if (tokens > 0)
    fmt::print(", {:.3f} bytes per token",
               static_cast<double>(text_bytes) / static_cast<double>(tokens));
  fmt::print("\n");
}

void prepare(const PrepareOptions& options, bool as_json) {
  ProgressLine line;
  const PrepareSummary s =
      prepare_data(options, [&](std::string_view what, std::uint64_t done, std::uint64_t total) {
        line(what, done, total);
      });
  line.clear();
  if (as_json) {
    const nlohmann::json summary = {{"out", options.out.string()},
                                    {"vocab_size", s.vocab_size},
                                    {"train", split_json(s.train)},
                                    {"val", split_json(s.val)}};
    // File names may be any bytes; JSON may not.
    fmt::print("{}\n", summary.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  fmt::print("{}: vocabulary of {}\n", options.out.string(), s.vocab_size);
  print_split("train", s.train.tokens, s.train.documents, s.train.text_bytes);
  print_split("val", s.val.tokens, s.val.documents, s.val.text_bytes);
}

void info(const std::string& directory, bool as_json) {
  const TokenData data(directory);
  if (as_json) {
    fmt::print("{}\n", nlohmann::json::parse(data.meta_json()).dump(2));
    return;
  }
  fmt::print("{}: vocabulary of {}, BOS {}, EOS {}\n", directory, data.vocab_size(),
             data.bos_id() < 0 ? "not used" : std::to_string(data.bos_id()), data.eos_id());
  print_split("train", data.train().size(), data.train().documents(), data.train().text_bytes());
  print_split("val", data.val().size(), data.val().documents(), data.val().text_bytes());
}

}  // namespace

int cmd_data(Args args) {
  CLI::App app("Prepares text for training", "mmfree data");
  app.require_subcommand(1);
  bool as_json = false;

  PrepareOptions o;
  o.vocab_size = 0;
  bool no_bos = false;
  CLI::App* prepare_app = app.add_subcommand("prepare", "text files to token shards");
  prepare_app->add_option("FILE", o.files, "UTF-8 text")->required();
  prepare_app->add_option("--out", o.out, "folder of the data set; appears when complete")
      ->required();
  CLI::Option* tokenizer = prepare_app->add_option("--tokenizer", o.tokenizer,
                                                   "tokenizer.model, or a folder that holds one");
  prepare_app
      ->add_option("--vocab-size", o.vocab_size, "train a tokenizer of so many pieces (4096)")
      ->excludes(tokenizer);
  CLI::Option* fraction = prepare_app
                              ->add_option("--val-fraction", o.val_fraction,
                                           "share of the documents kept for validation")
                              ->capture_default_str();
  prepare_app->add_option("--val", o.val_files, "validation text instead of a share of the files")
      ->excludes(fraction);
  prepare_app->add_option("--separator", o.separator, "text between documents")
      ->capture_default_str();
  prepare_app->add_flag("--split-paragraphs", o.split_paragraphs,
                        "blank lines separate documents too");
  prepare_app->add_flag("--no-bos", no_bos, "documents do not begin with BOS");
  prepare_app->add_option("--seed", o.seed, "chooses the validation documents")
      ->capture_default_str();
  prepare_app->add_option("--shard-tokens", o.shard_tokens, "tokens in one file")
      ->capture_default_str();
  add_threads_option(*prepare_app, o.threads);
  prepare_app->add_flag("--json", as_json, "print the summary as JSON");

  std::string directory;
  CLI::App* info_app = app.add_subcommand("info", "check a data set and tell its sizes");
  info_app->add_option("DIR", directory, "folder of the data set")->required();
  info_app->add_flag("--json", as_json, "print meta.json");
  if (!parse_options(app, args)) return 0;

  if (info_app->parsed()) {
    info(directory, as_json);
    return 0;
  }
  if (prepare_app->count("--vocab-size") > 0 && o.vocab_size <= 0)
    fail(ErrorKind::usage,
         fmt::format("--vocab-size {}: expected a positive number", o.vocab_size));
  o.bos = !no_bos;
  prepare(o, as_json);
  return 0;
}

}  // namespace mmfree
