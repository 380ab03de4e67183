#include "mmfree/train/options.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// What the activations of one micro-batch may take: enough rows to reuse each weight many times;
// more were not faster.
constexpr double kActivationBudgetBytes = 256.0 * 1024 * 1024;

constexpr idx kGpuMicroTokens = 32768;
constexpr idx kMaxSteps = idx{1} << 40;
constexpr idx kMaxBatchTokens = idx{1} << 30;
constexpr idx kMaxSeq = idx{1} << 24;

ordered_json maths_json(const TrainOptions& o) {
  ordered_json j;
  j["preset"] = o.preset;
  j["config"] = ordered_json::parse(config_to_json(o.config));
  j["data_hash"] = o.data_hash;
  j["schedule"] = schedule_name(o.schedule.kind);
  j["steps"] = o.schedule.steps;
  j["warmup_steps"] = o.schedule.warmup_steps;
  j["lr"] = o.schedule.peak_lr;
  j["lr_floor"] = o.schedule.lr_floor;
  j["weight_decay"] = o.schedule.weight_decay;
  j["batch_tokens"] = o.batch_tokens;
  j["seq"] = o.seq;
  j["micro_batch"] = o.micro_batch;
  j["clip"] = o.clip;
  j["beta1"] = o.beta1;
  j["beta2"] = o.beta2;
  j["eps"] = o.eps;
  j["seed"] = o.seed;
  return j;
}

ordered_json run_json(const TrainOptions& o) {
  ordered_json j;
  j["data"] = o.data.string();
  j["threads"] = o.threads;
  j["device"] = o.device;
  j["precision"] = o.precision;
  j["backward"] = o.backward;
  j["moments"] = o.moments;
  j["device_memory_gib"] = o.device_memory_gib;
  j["checkpoint_every"] = o.checkpoint_every;
  j["keep"] = o.keep;
  j["eval_every"] = o.eval_every;
  j["eval_tokens"] = o.eval_tokens;
  j["health_every"] = o.health_every;
  j["sample_every"] = o.sample_every;
  j["sample_tokens"] = o.sample_tokens;
  j["sample_prompt"] = o.sample_prompt;
  return j;
}

void check(std::string_view option, idx value, idx low, idx high) {
  if (value < low || value > high)
    fail(ErrorKind::usage, fmt::format("--{} is {}, expected {} to {}", option, value, low, high));
}

void check(std::string_view option, double value, double low, double high) {
  if (!(value >= low && value <= high))
    fail(ErrorKind::usage, fmt::format("--{} is {}, expected {} to {}", option, value, low, high));
}

}  // namespace

std::string hash_data(const TokenData& data) {
  std::uint64_t h = mix64(static_cast<std::uint64_t>(data.vocab_size()));
  std::vector<std::int32_t> ids(idx{1} << 16);
  for (const TokenStream* stream : {&data.train(), &data.val()}) {
    h = mix64(h ^ static_cast<std::uint64_t>(stream->size()));
    for (idx begin = 0; begin < stream->size(); begin += static_cast<idx>(ids.size())) {
      const idx n = std::min(static_cast<idx>(ids.size()), stream->size() - begin);
      stream->read(begin, n, ids.data());
      for (idx i = 0; i < n; ++i)
        h = mix64(h ^ static_cast<std::uint64_t>(ids[static_cast<std::size_t>(i)]));
    }
  }
  return fmt::format("{:016x}", h);
}

double default_peak_lr(idx d) {
  if (d >= 2560) return 1.5e-3;
  if (d >= 2048) return 2.5e-3;
  return 4e-3;
}

idx default_warmup_steps(idx steps) {
  return std::min<idx>(1000, steps / 10);
}

idx default_micro_batch(const MatmulFreeConfig& c, idx seq, idx sequences) {
  // Per token at most (measured: a fifth less): in each layer six rows of the mixer's and four of
  // the MLP's width, at the end two rows of logits.
  const double widths = 6.0 * static_cast<double>(std::max(c.hidden_size, c.mixer_width())) +
                        4.0 * static_cast<double>(c.mlp_width());
  const double floats_a_token =
      widths * static_cast<double>(c.num_hidden_layers) + 2.0 * static_cast<double>(c.vocab_size);
  const double fit = kActivationBudgetBytes / (4.0 * floats_a_token * static_cast<double>(seq));
  idx micro = std::clamp<idx>(static_cast<idx>(fit), 1, sequences);
  while (sequences % micro != 0) --micro;  // equal micro-batches
  return micro;
}

idx default_gpu_micro_batch(idx seq, idx sequences) {
  idx micro = std::clamp<idx>(kGpuMicroTokens / seq, 1, sequences);
  while (sequences % micro != 0) --micro;  // equal micro-batches
  return micro;
}

void validate(const TrainOptions& o) {
  const Schedule& s = o.schedule;
  if (o.preset != "mmfree")
    fail(ErrorKind::usage, fmt::format("unknown preset '{}'; expected mmfree", o.preset));
  check("steps", s.steps, 1, kMaxSteps);
  check("warmup", s.warmup_steps, 0, s.steps - 1);
  check("lr", s.peak_lr, 0.0, 1e3);
  check("lr-floor", s.lr_floor, 0.0, 1.0);
  check("weight-decay", s.weight_decay, 0.0, 1e3);
  check("seq", o.seq, 1, kMaxSeq);
  check("batch-tokens", o.batch_tokens, 1, kMaxBatchTokens);
  if (o.batch_tokens % o.seq != 0)
    fail(ErrorKind::usage, fmt::format("--batch-tokens is {}, expected a multiple of --seq {}",
                                       o.batch_tokens, o.seq));
  check("micro-batch", o.micro_batch, 1, o.sequences());
  check("clip", o.clip, 0.0, 1e9);
  check("beta1", o.beta1, 0.0, 0.9999999);
  check("beta2", o.beta2, 0.0, 0.9999999);
  check("eps", o.eps, 1e-30, 1.0);
  if (o.device != "cpu" && o.device != "cuda")
    fail(ErrorKind::usage, fmt::format("--device is '{}', expected cpu or cuda", o.device));
  if (o.precision != "bf16" && o.precision != "float32")
    fail(ErrorKind::usage,
         fmt::format("--precision is '{}', expected bf16 or float32", o.precision));
  if (o.backward != "bf16" && o.backward != "fp8")
    fail(ErrorKind::usage, fmt::format("--backward is '{}', expected bf16 or fp8", o.backward));
  if (o.moments != "float32" && o.moments != "bf16")
    fail(ErrorKind::usage, fmt::format("--moments is '{}', expected float32 or bf16", o.moments));
  check("device-memory", o.device_memory_gib, 0.0, 1e6);
  check("threads", static_cast<idx>(o.threads), 1, 4096);
  check("checkpoint-every", o.checkpoint_every, 1, kMaxSteps);
  check("keep", o.keep, 1, 1000000);
  check("eval-every", o.eval_every, 0, kMaxSteps);
  check("eval-tokens", o.eval_tokens, 1, kMaxSteps);
  check("health-every", o.health_every, 0, kMaxSteps);
  check("sample-every", o.sample_every, 0, kMaxSteps);
  check("sample-tokens", o.sample_tokens, 1, 1 << 20);
  check("stop-after", o.stop_after, 0, kMaxSteps);
}

std::string options_to_json(const TrainOptions& o) {
  ordered_json j;
  j["fixed"] = maths_json(o);
  j["changeable"] = run_json(o);
  return j.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

TrainOptions options_from_json(std::string_view text, std::string_view name) {
  const json j = json::parse(text, nullptr, /*allow_exceptions=*/false);
  TrainOptions o;
  try {
    const json& m = j.at("fixed");
    o.preset = m.at("preset").get<std::string>();
    o.config = config_from_json(m.at("config").dump(), name);
    o.data_hash = m.at("data_hash").get<std::string>();
    o.schedule.kind = find_schedule(m.at("schedule").get<std::string>());
    m.at("steps").get_to(o.schedule.steps);
    m.at("warmup_steps").get_to(o.schedule.warmup_steps);
    m.at("lr").get_to(o.schedule.peak_lr);
    m.at("lr_floor").get_to(o.schedule.lr_floor);
    m.at("weight_decay").get_to(o.schedule.weight_decay);
    m.at("batch_tokens").get_to(o.batch_tokens);
    m.at("seq").get_to(o.seq);
    m.at("micro_batch").get_to(o.micro_batch);
    m.at("clip").get_to(o.clip);
    m.at("beta1").get_to(o.beta1);
    m.at("beta2").get_to(o.beta2);
    m.at("eps").get_to(o.eps);
    m.at("seed").get_to(o.seed);
    const json& r = j.at("changeable");
    o.data = r.at("data").get<std::string>();
    r.at("threads").get_to(o.threads);
    if (r.contains("device")) {  // not in the options of older runs
      r.at("device").get_to(o.device);
      r.at("precision").get_to(o.precision);
      r.at("device_memory_gib").get_to(o.device_memory_gib);
    }
    if (r.contains("backward")) {  // likewise
      r.at("backward").get_to(o.backward);
      r.at("moments").get_to(o.moments);
    }
    r.at("checkpoint_every").get_to(o.checkpoint_every);
    r.at("keep").get_to(o.keep);
    r.at("eval_every").get_to(o.eval_every);
    r.at("eval_tokens").get_to(o.eval_tokens);
    r.at("health_every").get_to(o.health_every);
    r.at("sample_every").get_to(o.sample_every);
    r.at("sample_tokens").get_to(o.sample_tokens);
    r.at("sample_prompt").get_to(o.sample_prompt);
  } catch (const json::exception& e) {
    fail(ErrorKind::format, fmt::format("{}: not the options of a run: {}", name, e.what()));
  }
  return o;
}

std::vector<std::string> differing_options(const TrainOptions& run, const TrainOptions& now) {
  std::vector<std::string> list;
  const json a = json(maths_json(run)).flatten();
  const json b = json(maths_json(now)).flatten();
  const auto name =
      [](const std::string& pointer) {  // "/config/hidden_size" -> "config.hidden_size"
        std::string s = pointer.substr(1);
        std::replace(s.begin(), s.end(), '/', '.');
        return s;
      };
  for (const auto& [key, value] : a.items())
    if (!b.contains(key) || b[key] != value)
      list.push_back(fmt::format("{} is {} in the run and {} now", name(key), value.dump(),
                                 b.contains(key) ? b[key].dump() : "absent"));
  for (const auto& [key, value] : b.items())
    if (!a.contains(key))
      list.push_back(fmt::format("{} is absent in the run and {} now", name(key), value.dump()));
  return list;
}

}  // namespace mmfree
