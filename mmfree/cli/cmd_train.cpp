#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "mmfree/cli/network_sample.h"
#include "mmfree/cli/options.h"
#include "mmfree/cli/train_display.h"
#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/core/parallel.h"
#include "mmfree/model/params.h"
#include "mmfree/train/run_directory.h"
#include "mmfree/train/trainer.h"

namespace mmfree {
namespace {

// What was given on the command line; the rest comes from the run that is resumed, or from
// defaults.
struct Given {
  std::optional<std::string> preset, size, config, data, schedule, prompt;
  std::optional<idx> hidden, layers, intermediate;
  std::optional<idx> steps, batch_tokens, seq, micro_batch, warmup;
  std::optional<double> lr, lr_floor, weight_decay, clip, beta1, beta2, eps;
  std::optional<std::uint64_t> seed;
  std::optional<idx> checkpoint_every, keep, eval_every, eval_tokens, health_every, sample_every,
      sample_tokens;
  idx stop_after = 0;
  std::optional<std::string> device, precision, backward, moments;
  std::optional<double> device_memory;
  std::string out;
  int threads = 1;
  bool resume = false, quiet = false, json = false;
};

void add_options(CLI::App& app, Given& g) {
  app.add_option("--data", g.data, "folder made by mmfree data prepare");
  app.add_option("--out", g.out, "run directory to write")->required();
  app.add_flag("--resume", g.resume,
               "continue from the newest checkpoint in --out; options not given are the run's");

  app.add_option("--preset", g.preset, "architecture: mmfree [mmfree]")->group("Model");
  app.add_option("--size", g.size, "tiny, 8m, 30m, 100m, 370m, 1.3b or 2.7b [8m]")->group("Model");
  app.add_option("--hidden", g.hidden, "hidden size instead of the size's")->group("Model");
  app.add_option("--layers", g.layers, "number of layers instead of the size's")->group("Model");
  app.add_option("--intermediate", g.intermediate, "MLP width instead of the formula's")
      ->group("Model");
  app.add_option("--config", g.config, "config.json instead of a size")
      ->excludes("--size")
      ->group("Model");

  app.add_option("--steps", g.steps, "updates [1000]")->group("Recipe");
  app.add_option("--batch-tokens", g.batch_tokens, "tokens an update, a multiple of --seq [8192]")
      ->group("Recipe");
  app.add_option("--seq", g.seq, "tokens a sequence [512]")->group("Recipe");
  app.add_option("--micro-batch", g.micro_batch,
                 "sequences a forward and backward [as many as 256 MiB of activations hold; on a "
                 "GPU 32768 tokens]")
      ->group("Recipe");
  app.add_option("--schedule", g.schedule,
                 "paper (cosine to 0, halved and without weight decay from the midpoint on) or "
                 "cosine [paper]")
      ->group("Recipe");
  app.add_option("--lr", g.lr,
                 "peak learning rate [4e-3; 2.5e-3 from hidden size 2048 on, 1.5e-3 from 2560]")
      ->group("Recipe");
  app.add_option("--warmup", g.warmup, "steps of linear warm-up [steps / 10, at most 1000]")
      ->group("Recipe");
  app.add_option("--lr-floor", g.lr_floor,
                 "share of the peak that the cosine ends at [paper 0, cosine 0.1]")
      ->group("Recipe");
  app.add_option("--weight-decay", g.weight_decay, "of ternary weights [0.1]")->group("Recipe");
  app.add_option("--clip", g.clip, "largest gradient norm, 0 = no clipping [1]")->group("Recipe");
  app.add_option("--beta1", g.beta1, "AdamW [0.9]")->group("Recipe");
  app.add_option("--beta2", g.beta2, "AdamW [0.95]")->group("Recipe");
  app.add_option("--eps", g.eps, "AdamW [1e-8]")->group("Recipe");
  app.add_option("--seed", g.seed, "of the initial weights and the order of the data [1]")
      ->group("Recipe");

  app.add_option("--checkpoint-every", g.checkpoint_every, "steps between checkpoints [100]")
      ->group("Running");
  app.add_option("--keep", g.keep, "checkpoints kept [2]")->group("Running");
  app.add_option("--eval-every", g.eval_every, "steps between validations, 0 = never [100]")
      ->group("Running");
  app.add_option("--eval-tokens", g.eval_tokens, "validation tokens at most [65536]")
      ->group("Running");
  app.add_option("--health-every", g.health_every, "steps between health reports, 0 = never [50]")
      ->group("Running");
  app.add_option("--sample-every", g.sample_every, "steps between samples, 0 = never [0]")
      ->group("Running");
  app.add_option("--sample-tokens", g.sample_tokens, "tokens of a sample [64]")->group("Running");
  app.add_option("--prompt", g.prompt, "text that samples continue")->group("Running");
  app.add_option("--stop-after", g.stop_after,
                 "save and stop after so many steps of this call, 0 = do not")
      ->group("Running");
  app.add_option("--device", g.device, "cpu or cuda (an NVIDIA GPU) [cpu]")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->group("Running");
  app.add_option("--precision", g.precision,
                 "of activations and gradients on the GPU: bf16 or float32 [bf16]")
      ->check(CLI::IsMember({"bf16", "float32"}))
      ->group("Running");
  app.add_option("--backward", g.backward,
                 "operands of the layers' input gradients on the GPU: bf16, or fp8 (faster; needs "
                 "Hopper) [bf16]")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->group("Running");
  app.add_option(
         "--moments", g.moments,
         "AdamW's moments on the GPU: float32, or bf16 (4 bytes a parameter less) [float32]")
      ->check(CLI::IsMember({"float32", "bf16"}))
      ->group("Running");
  app.add_option("--device-memory", g.device_memory,
                 "GiB of the GPU to use at most; what does not fit is computed again [all free]")
      ->group("Running");
  add_threads_option(app, g.threads);
  app.add_flag("--quiet", g.quiet, "show nothing but errors");
  app.add_flag("--json", g.json, "print a summary object at the end");
}

template <class T>
void take(const std::optional<T>& given, T& value) {
  if (given) value = *given;
}

MatmulFreeConfig resolve_config(const Given& g, const TokenData& data,
                                const std::optional<TrainOptions>& run) {
  MatmulFreeConfig c;
  if (g.config) {
    c = config_from_json(read_text_file(*g.config), *g.config);
  } else if (g.size || !run) {
    c = size_preset(g.size.value_or("8m"), data.vocab_size());
    const auto id = [](std::int32_t i) { return i >= 0 ? std::optional<idx>(i) : std::nullopt; };
    c.bos_token_id = id(data.bos_id());
    c.eos_token_id = id(data.eos_id());
  } else {
    c = run->config;
  }
  take(g.hidden, c.hidden_size);
  take(g.layers, c.num_hidden_layers);
  if (g.intermediate) c.intermediate_size = *g.intermediate;
  validate(c, g.config.value_or("the model's options"));
  return c;
}

TrainOptions resolve_options(const Given& g, const TokenData& data, const std::string& data_path,
                             const std::optional<TrainOptions>& run) {
  TrainOptions o = run.value_or(TrainOptions{});
  Schedule& s = o.schedule;
  take(g.preset, o.preset);
  o.config = resolve_config(g, data, run);
  o.data = std::filesystem::absolute(data_path);  // a resume may come from another folder
  o.data_hash = hash_data(data);
  o.out = g.out;
  if (!run) s.steps = 1000;
  take(g.steps, s.steps);
  take(g.batch_tokens, o.batch_tokens);
  take(g.seq, o.seq);
  if (g.schedule) s.kind = find_schedule(*g.schedule);
  take(g.device, o.device);
  take(g.precision, o.precision);
  take(g.backward, o.backward);
  take(g.moments, o.moments);
  if (o.device == "cpu" && (g.backward || g.moments))
    fail(ErrorKind::usage, "train: --backward and --moments are for --device cuda");
  take(g.device_memory, o.device_memory_gib);
  if (!run) {
    s.peak_lr = default_peak_lr(o.config.hidden_size);
    s.warmup_steps = default_warmup_steps(s.steps);
    s.lr_floor = default_lr_floor(s.kind);
    o.micro_batch = o.seq > 0 && o.batch_tokens >= o.seq
                        ? (o.device == "cuda" ? default_gpu_micro_batch(o.seq, o.sequences())
                                              : default_micro_batch(o.config, o.seq, o.sequences()))
                        : 1;
  }
  take(g.lr, s.peak_lr);
  take(g.warmup, s.warmup_steps);
  take(g.lr_floor, s.lr_floor);
  take(g.weight_decay, s.weight_decay);
  take(g.micro_batch, o.micro_batch);
  take(g.clip, o.clip);
  take(g.beta1, o.beta1);
  take(g.beta2, o.beta2);
  take(g.eps, o.eps);
  take(g.seed, o.seed);
  take(g.checkpoint_every, o.checkpoint_every);
  take(g.keep, o.keep);
  take(g.eval_every, o.eval_every);
  take(g.eval_tokens, o.eval_tokens);
  take(g.health_every, o.health_every);
  take(g.sample_every, o.sample_every);
  take(g.sample_tokens, o.sample_tokens);
  take(g.prompt, o.sample_prompt);
  o.threads = g.threads;
  o.stop_after = g.stop_after;
  validate(o);
  return o;
}

volatile sig_atomic_t stop_signal = 0;

void on_signal(int signal) {
  stop_signal = signal;
  constexpr std::string_view text = "\nfinishing the step, then saving; once more stops at once\n";
  const ssize_t ignored = write(STDERR_FILENO, text.data(), text.size());
  static_cast<void>(ignored);
}

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);  // the second one acts as usual
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

std::string summary_json(const TrainOptions& o, const TrainSummary& s) {
  nlohmann::ordered_json j;
  j["run"] = o.out.string();
  j["preset"] = o.preset;
  j["parameters"] = parameter_count(matmulfree_params(o.config));
  j["threads"] = o.threads;
  j["device"] = o.device;
  j["step"] = s.step;
  j["steps"] = s.steps;
  j["finished"] = s.finished;
  j["loss"] = s.step > s.first_step ? nlohmann::json(s.loss) : nlohmann::json(nullptr);
  j["val_bits_per_byte"] =
      s.val_bits_per_byte ? nlohmann::json(*s.val_bits_per_byte) : nlohmann::json(nullptr);
  j["tokens"] = s.tokens;
  j["tokens_per_s"] = s.tokens_per_s;
  j["elapsed_s"] = s.elapsed_s;
  j["peak_bytes"] = peak_rss_bytes();
  return j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

int cmd_train(Args args) {
  Given g;
  CLI::App app("Trains a model on prepared text", "mmfree train");
  add_options(app, g);
  if (!parse_options(app, args)) return 0;

  const std::optional<TrainOptions> run = g.resume ? find_run_options(g.out) : std::nullopt;
  if (!g.data && !run)
    fail(ErrorKind::usage, "train: --data is required (a folder made by mmfree data prepare)");
  const std::string data_path = g.data ? *g.data : run->data.string();
  const TokenData data(data_path);
  const TrainOptions o = resolve_options(g, data, data_path, run);

  TrainDisplay display(o.schedule.steps, o.batch_tokens, g.quiet);
  TrainHooks hooks;
  hooks.on_message = [&](std::string_view text) { display.message(text); };
  hooks.on_step = [&](const MetricsRow& row) { display.step(row); };
  const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path());
  hooks.make_sample = [&](const Network& net) {
    return sample_network(Ctx{o.threads}, net, tokenizer, o.sample_prompt, o.sample_tokens, o.seed);
  };
  hooks.on_sample = [&](idx step, std::string_view text) {
    display.sample(step, o.sample_prompt + std::string(text));
  };
  hooks.stop_requested = [] { return stop_signal != 0; };
  const double tokens = static_cast<double>(o.schedule.steps) * static_cast<double>(o.batch_tokens);
  display.message(fmt::format(
      "{:.2f} M parameters; {} steps of {} tokens = {:.2f} passes over {:.2f} M tokens; {} threads",
      1e-6 * static_cast<double>(parameter_count(matmulfree_params(o.config))), o.schedule.steps,
      o.batch_tokens, tokens / static_cast<double>(data.train().size()),
      1e-6 * static_cast<double>(data.train().size()), o.threads));
  catch_stop_signals();
  const TrainSummary s = train(o, data, g.resume, hooks);
  display.finish();
  if (s.finished) {
    display.message(fmt::format("{}: {} of {} steps done", g.out, s.step, s.steps));
  } else {
    display.message(
        fmt::format("saved at step {} of {}; continue with: mmfree train --out {} --resume", s.step,
                    s.steps, g.out));
  }
  if (g.json) fmt::print("{}\n", summary_json(o, s));
  return 0;
}

}  // namespace mmfree
