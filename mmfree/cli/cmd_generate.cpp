#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "mmfree/cli/device_model.h"
#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/generate/sampler.h"
#include "mmfree/generate/session.h"
#include "mmfree/generate/session_file.h"
#include "mmfree/hw/fixed_session.h"
#include "mmfree/tokenizer/tokenizer.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options {
  std::string model, prompt, prompt_ids, numerics = "integer";
  std::string load_state, save_state;  // files; empty: none
  idx tokens = 128;
  DeviceOptions device;
  SamplerOptions sampler;
  bool ignore_eos = false;
  bool json = false;
  bool verbose = false;
  bool echo = false;
};

struct Result {
  std::vector<std::int32_t> past, prompt, generated;  // past: of the loaded state
  std::string text;
  bool stopped_at_eos = false;
  double load_s = 0, prefill_s = 0, decode_s = 0;
};

std::vector<std::int32_t> parse_ids(const std::string& text) {
  std::vector<std::int32_t> ids;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    std::int32_t id = 0;
    const auto [rest, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc{} || rest != word.data() + word.size())
      fail(ErrorKind::usage,
           fmt::format("--prompt-ids holds '{}' at position {}, expected a token id", word,
                       ids.size()));
    ids.push_back(id);
    begin = end + 1;
  }
  return ids;
}

std::string read_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

// Text as it comes, at once; a closed pipe ends the program quietly as it does other filters.
void put_text(const std::string& text) {
  if (text.empty()) return;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    fail_errno("write", "standard output");
}

// `open` makes the session of some device, or a hw::FixedSession (which has no states in files, so
// `identity` may be null), when the prompt is known to be good. `saved`: what to go on from, or
// null.
template <class Open>
Result run_session(const Options& o, const PackedModel& model, const ModelIdentity* identity,
                   const SavedSession* saved, Clock::time_point start, const Open& open) {
  Result r;
  if (saved != nullptr) r.past = saved->tokens;
  const MatmulFreeConfig& c = model.config;
  std::optional<Tokenizer> tokenizer;
  if (!model.sentencepiece.empty()) {
    tokenizer.emplace(Tokenizer::from_bytes(model.sentencepiece, model.path + ": tokenizer"));
    if (tokenizer->vocab_size() > c.vocab_size)
      fail(ErrorKind::config,
           fmt::format(
               "{}: the tokenizer has {} tokens, the model {}; expected no more than the model",
               model.path, tokenizer->vocab_size(), c.vocab_size));
  }
  if (!o.prompt_ids.empty()) {
    r.prompt = parse_ids(o.prompt_ids);
  } else if (saved == nullptr || !o.prompt.empty()) {
    if (!tokenizer)
      fail(ErrorKind::usage,
           fmt::format("{}: there is no tokenizer.model, and text needs one; --prompt-ids 1,2,3 "
                       "generates token ids without it",
                       model.path));
    if (c.bos_token_id && saved == nullptr)
      r.prompt.push_back(static_cast<std::int32_t>(*c.bos_token_id));
    const std::vector<std::int32_t> ids =
        tokenizer->encode(o.prompt == "-" ? read_stdin() : o.prompt);
    r.prompt.insert(r.prompt.end(), ids.begin(), ids.end());
    if (r.prompt.empty() && saved == nullptr)
      fail(ErrorKind::usage,
           "the prompt is empty and the model has no beginning-of-text token; give some text");
  }
  auto session = open();
  RecentTokens recent(c.vocab_size, o.sampler.repetition_window);
  std::vector<Candidate> scratch;
  r.load_s = seconds_since(start);

  const Clock::time_point prefill = Clock::now();
  std::span<const float> logits;
  constexpr bool kKeepsState = !std::is_same_v<decltype(session), hw::FixedSession>;
  if constexpr (kKeepsState)
    if (saved != nullptr) {
      session.restore(saved->state, static_cast<idx>(saved->tokens.size()));
      logits = saved->logits;
    }
  if (!r.prompt.empty()) logits = session.prefill(r.prompt);
  r.prefill_s = seconds_since(prefill);
  for (const std::int32_t id : r.past) recent.push(id);
  for (const std::int32_t id : r.prompt) recent.push(id);

  std::optional<TextStream> stream;
  if (tokenizer) stream.emplace(*tokenizer);
  const auto show = [&](const std::string& text) {
    r.text += text;
    if (!o.json) put_text(text);
  };
  // What came before goes through the stream as well, so that a space between it and the first word
  // is kept; the prompt is shown by --echo.
  if (stream) {
    const auto put = [&](std::int32_t id) {
      return id < tokenizer->vocab_size() ? stream->put(id) : std::string();
    };
    for (const std::int32_t id : r.past) put(id);
    for (const std::int32_t id : r.prompt) {
      const std::string text = put(id);
      if (o.echo) show(text);
    }
  }
  const Clock::time_point decode = Clock::now();
  // Where nothing but the most likely token is asked for, a GPU goes on by itself for a while.
  std::vector<std::int32_t> ahead;
  std::size_t used = 0;
  for (idx n = 0; n < o.tokens; ++n) {
    std::int32_t id = 0;
    if constexpr (!kKeepsState) {
      id = session.draw(hw::sampling(o.sampler.temperature, o.sampler.seed));
    } else if (used < ahead.size()) {
      id = ahead[used++];
    } else {
      id = sample(logits, o.sampler, &recent, static_cast<std::uint64_t>(session.position()),
                  scratch);
    }
    if (!o.ignore_eos && c.eos_token_id && id == *c.eos_token_id) {
      r.stopped_at_eos = true;
      break;
    }
    r.generated.push_back(id);
    recent.push(id);
    if (!stream) {
      show(fmt::format("{}{}", n > 0 ? "," : "", id));
    } else if (id < tokenizer->vocab_size()) {  // ids beyond the tokenizer's have no text
      show(stream->put(id));
    }
    if (used < ahead.size()) continue;
    if constexpr (std::is_same_v<decltype(session), GpuSession>) {
      constexpr idx kAhead = 32;
      const idx more = std::min(kAhead, o.tokens - n - 1);
      if (more > 1 && o.sampler.temperature == 0 && o.sampler.repetition_penalty == 1 &&
          o.save_state.empty()) {
        const auto eos = static_cast<std::int32_t>(o.ignore_eos ? -1 : c.eos_token_id.value_or(-1));
        ahead = session.decode(id, more, eos);
        used = 0;
        continue;
      }
    }
    if (n + 1 < o.tokens || !o.save_state.empty()) logits = session.step(id);
  }
  r.decode_s = seconds_since(decode);
  if (stream) show(stream->finish());
  if (!o.json) put_text("\n");
  if constexpr (kKeepsState)
    if (!o.save_state.empty()) {
      std::vector<std::int32_t> all = r.past;
      all.insert(all.end(), r.prompt.begin(), r.prompt.end());
      all.insert(all.end(), r.generated.begin(), r.generated.end());
      write_session(o.save_state, *identity, session.state(), logits, all);
    }
  return r;
}

Result run(const Ctx& ctx, const Options& o) {
  const Clock::time_point start = Clock::now();
  if (o.numerics == "fixed") {
    const PackedModel model = load_packed(ctx, o.model);
    return run_session(o, model, nullptr, nullptr, start,
                       [&] { return hw::FixedSession(ctx, model); });
  }
  DeviceModel model;
  load_on_device(ctx, o.model, o.device, model);
  const ModelIdentity id = model.tiled ? identity(*model.tiled) : identity(*model.packed);
  std::optional<SavedSession> saved;
  if (!o.load_state.empty()) saved = read_session(o.load_state, id);
  return with_session(ctx, model, [&](const auto& open) {
    return run_session(o, model.base(), &id, saved ? &*saved : nullptr, start, open);
  });
}

double rate(std::size_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void print_json(const Ctx& ctx, const Options& o, const Result& r) {
  nlohmann::ordered_json j = {{"text", r.text},
                              {"prompt_ids", r.prompt},
                              {"ids", r.generated},
                              {"stopped_at_eos", r.stopped_at_eos},
                              {"seed", o.sampler.seed},
                              {"threads", ctx.threads},
                              {"device", o.device.device},
                              {"loaded_tokens", r.past.size()},
                              {"prompt_tokens", r.prompt.size()},
                              {"generated_tokens", r.generated.size()},
                              {"load_s", r.load_s},
                              {"prefill_s", r.prefill_s},
                              {"decode_s", r.decode_s},
                              {"prompt_tokens_per_s", rate(r.prompt.size(), r.prefill_s)},
                              {"tokens_per_s", rate(r.generated.size(), r.decode_s)},
                              {"peak_rss_bytes", peak_rss_bytes()}};
  put_text(j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace

int cmd_generate(Args args) {
  Options o;
  Ctx ctx;
  CLI::App app("Continues a text", "mmfree generate");
  app.add_option("MODEL", o.model, "run directory or GGUF file")->required();
  CLI::Option* prompt =
      app.add_option("--prompt", o.prompt, "text to continue; - reads it from standard input");
  app.add_option("--prompt-ids", o.prompt_ids,
                 "token ids instead of text: 1,2,3 (no tokenizer needed)")
      ->excludes(prompt);
  app.add_option("-n,--tokens", o.tokens, "most tokens to generate")
      ->check(CLI::Range(idx{0}, idx{1} << 40))
      ->capture_default_str();
  app.add_option("--temp", o.sampler.temperature,
                 "temperature; 0 always takes the most likely token")
      ->capture_default_str();
  CLI::Option* filters[5];
  filters[0] = app.add_option("--top-k", o.sampler.top_k, "only the k most likely tokens; 0: all")
                   ->capture_default_str();
  filters[1] = app.add_option("--top-p", o.sampler.top_p,
                              "only the most likely tokens that together reach p")
                   ->capture_default_str();
  filters[2] = app.add_option("--min-p", o.sampler.min_p,
                              "only tokens with this share of the largest probability")
                   ->capture_default_str();
  filters[3] = app.add_option("--repetition-penalty", o.sampler.repetition_penalty,
                              "above 1 makes repeated tokens less likely")
                   ->capture_default_str();
  filters[4] = app.add_option("--repetition-window", o.sampler.repetition_window,
                              "tokens looked back for that; 0: all")
                   ->capture_default_str();
  app.add_option("--seed", o.sampler.seed, "the same seed gives the same text")
      ->capture_default_str();
  add_numerics_option(app, o.numerics);
  add_device_options(app, o.device);
  app.add_option("--load-state", o.load_state,
                 "go on from this file, as --save-state wrote it; the prompt, if any, follows it");
  app.add_option("--save-state", o.save_state,
                 "write the state after the last token; -n 0 keeps just the prompt's");
  app.add_flag("--ignore-eos", o.ignore_eos, "go on after the end-of-text token");
  app.add_flag("--echo", o.echo, "print the prompt too");
  app.add_flag("--json", o.json, "one JSON object with text, ids and measurements");
  app.add_flag("--verbose", o.verbose, "measurements on standard error, as on a terminal");
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;
  validate(o.sampler);
  validate(o.device);
  if (o.numerics == "fixed") {
    if (o.device.device != "cpu")
      fail(ErrorKind::usage, "generate: --numerics fixed runs with --device cpu only");
    hw::sampling(o.sampler.temperature, o.sampler.seed);  // checks it
    for (const CLI::Option* filter : filters)
      if (filter->count() > 0)
        fail(ErrorKind::usage,
             fmt::format("generate: {} cannot be used with --numerics fixed: the accelerator draws "
                         "from the whole vocabulary, by --temp and --seed alone",
                         filter->get_name()));
  }
  if (o.numerics == "fixed" && !(o.load_state.empty() && o.save_state.empty()))
    fail(ErrorKind::usage,
         "generate: --load-state and --save-state hold the state of --numerics integer; fixed has "
         "another");

  const Result r = run(ctx, o);
  if (o.json) print_json(ctx, o, r);
  if (!o.json && (o.verbose || isatty(STDERR_FILENO) != 0))
    fmt::print(stderr,
               "\nloaded in {:.2f} s; prompt {} tokens at {:.1f} tokens/s; generated {} at {:.1f} "
               "tokens/s; "
               "peak memory {:.1f} MB; seed {}\n",
               r.load_s, r.prompt.size(), rate(r.prompt.size(), r.prefill_s), r.generated.size(),
               rate(r.generated.size(), r.decode_s), static_cast<double>(peak_rss_bytes()) / 1e6,
               o.sampler.seed);
  return 0;
}

}  // namespace mmfree
