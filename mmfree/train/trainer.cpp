#include "mmfree/train/trainer.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/cuda/training.h"
#include "mmfree/model/weights.h"
#include "mmfree/train/checkpoint.h"
#include "mmfree/train/health.h"
#include "mmfree/train/optimizer.h"
#include "mmfree/train/run_directory.h"
#include "mmfree/train/validation.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A batch's first micro-batch, drawn while the GPU still works on the batch before.
struct Prefetched {
  idx step = -1;
  std::vector<std::int32_t> inputs, labels;
};

// All that a step reads and changes. With a GPU the network's weights and moments live there; net
// and optimizer are their images on the host, brought up to date before they are read.
struct Run {
  const TrainOptions& options;
  const ValidationSet& validation;
  const TrainHooks& hooks;
  Ctx ctx;
  Network net;
  OptimizerState optimizer;
  BatchSampler sampler;
  RunState state;
  std::optional<idx> saved_step;  // of the newest checkpoint
  HealthMonitor health;
  LineLog metrics;
  std::unique_ptr<GpuTraining> gpu;
  double gpu_peak_flops = 0;  // 0: not known
  Prefetched prefetched;
};

void say(const TrainHooks& hooks, std::string_view text) {
  if (hooks.on_message) hooks.on_message(text);
}

void check_data(const TrainOptions& o, const TokenData& data) {
  if (data.train().windows(o.seq) == 0)
    fail(ErrorKind::usage, fmt::format("{} has {} training tokens, expected more than --seq {}",
                                       o.data.string(), data.train().size(), o.seq));
  if (o.config.vocab_size < data.vocab_size())
    fail(ErrorKind::usage, fmt::format("vocab_size is {}, expected at least the {} ids of {}",
                                       o.config.vocab_size, data.vocab_size(), o.data.string()));
}

Network start_network(const Ctx& ctx, const TrainOptions& o) {
  Network net(o.config);
  initialize_params(net.table, net.config, o.seed, net.values.data());
  ternarize_weights(ctx, net);
  return net;
}

Network resume_network(const Ctx& ctx, const TrainOptions& o, const Checkpoint& c) {
  Network net = load_network(ctx, c.directory);
  if (config_to_json(net.config) != config_to_json(o.config))
    fail(ErrorKind::config,
         fmt::format("{}: its config.json is not the one of the run", c.directory.string()));
  return net;
}

std::unique_ptr<GpuTraining> open_gpu(const TrainOptions& o) {
  GpuTrainingOptions g;
  g.precision = o.precision == "float32" ? GpuPrecision::float32 : GpuPrecision::bf16;
  g.rows = o.micro_batch * o.seq;
  g.fp8_backward = o.backward == "fp8";
  g.bf16_moments = o.moments == "bf16";
  g.memory_limit = static_cast<std::size_t>(o.device_memory_gib * 0x1p30);
  return std::make_unique<GpuTraining>(o.config, g);
}

std::string gpu_message(const GpuMemory& m, idx layers) {
  std::string text = fmt::format("{}: {:.2f} of {:.2f} GiB planned", m.device,
                                 static_cast<double>(m.planned_bytes) / 0x1p30,
                                 static_cast<double>(m.total_bytes) / 0x1p30);
  if (m.kept_layers < layers)
    text += fmt::format(
        "; the gate projections of {} of {} layers are computed again in the "
        "backward to save memory",
        layers - m.kept_layers, layers);
  return text;
}

void download_weights(Run& run) {
  if (run.gpu == nullptr) return;
  run.gpu->download(run.net.values.data(), nullptr, nullptr);
  run.gpu->download_ternary(run.net);
}

// Loss and gradients of batch `state.step`, summed over micro-batches in a fixed order. Mean nats
// per token.
double accumulate_gradients(Run& run) {
  const TrainOptions& o = run.options;
  const std::size_t micro_tokens = static_cast<std::size_t>(o.micro_batch * o.seq);
  std::vector<std::int32_t> inputs(micro_tokens), labels(micro_tokens);
  const float scale = static_cast<float>(1.0 / static_cast<double>(o.batch_tokens));
  zero_grads(run.ctx, run.net);
  double nll = 0;
  for (idx b = 0; b < o.sequences(); b += o.micro_batch) {
    const idx rows = std::min(o.micro_batch, o.sequences() - b);
    run.sampler.fill_rows(static_cast<std::uint64_t>(run.state.step * o.sequences() + b), rows,
                          o.seq, inputs.data(), labels.data());
    nll +=
        forward_backward(run.ctx, run.net, {rows, o.seq, inputs.data(), labels.data()}, scale).nll;
  }
  return nll / static_cast<double>(o.batch_tokens);
}

void require_finite(const Run& run, std::string_view what, double value) {
  if (std::isfinite(value)) return;
  fail(ErrorKind::numeric,
       fmt::format("step {}: the {} is {}, expected a finite number; the checkpoint of step {} is "
                   "intact. A smaller --lr or longer --warmup may help",
                   run.state.step + 1, what, value, run.saved_step.value_or(0)));
}

bool due(idx every, idx step, idx steps) {
  return every > 0 && (step % every == 0 || step == steps);
}

void prefetch(Run& run, idx step) {
  const TrainOptions& o = run.options;
  const auto tokens = static_cast<std::size_t>(o.micro_batch * o.seq);
  run.prefetched.inputs.resize(tokens);
  run.prefetched.labels.resize(tokens);
  run.sampler.fill_rows(static_cast<std::uint64_t>(step * o.sequences()), o.micro_batch, o.seq,
                        run.prefetched.inputs.data(), run.prefetched.labels.data());
  run.prefetched.step = step;
}

// The whole update on the GPU; the host draws the next batch meanwhile.
void gpu_step(Run& run, MetricsRow& row) {
  const TrainOptions& o = run.options;
  if (run.prefetched.step != run.state.step) prefetch(run, run.state.step);
  const float scale = static_cast<float>(1.0 / static_cast<double>(o.batch_tokens));
  const bool health = due(o.health_every, run.state.step + 1, o.schedule.steps);
  std::vector<std::int32_t> inputs = std::move(run.prefetched.inputs);
  std::vector<std::int32_t> labels = std::move(run.prefetched.labels);
  for (idx b = 0; b < o.sequences(); b += o.micro_batch) {
    const idx rows = std::min(o.micro_batch, o.sequences() - b);
    const bool last = b + rows == o.sequences();
    if (b > 0)
      run.sampler.fill_rows(static_cast<std::uint64_t>(run.state.step * o.sequences() + b), rows,
                            o.seq, inputs.data(), labels.data());
    run.gpu->forward_backward({rows, o.seq, inputs.data(), labels.data()}, scale, b == 0,
                              health && last);
  }
  run.gpu->update({.lr = row.lr,
                   .weight_decay = row.weight_decay,
                   .beta1 = o.beta1,
                   .beta2 = o.beta2,
                   .eps = o.eps,
                   .clip = o.clip,
                   .step = run.state.step + 1});
  if (run.state.step + 1 < o.schedule.steps) prefetch(run, run.state.step + 1);
  const GpuStepResult result = run.gpu->wait();
  row.loss = result.nll / static_cast<double>(o.batch_tokens);
  require_finite(run, "loss", row.loss);
  row.grad_norm = result.grad_norm;
  require_finite(run, "norm of the gradient", row.grad_norm);
}

void cpu_step(Run& run, MetricsRow& row) {
  const TrainOptions& o = run.options;
  row.loss = accumulate_gradients(run);
  require_finite(run, "loss", row.loss);
  row.grad_norm = grad_norm(run.ctx, run.net);
  require_finite(run, "norm of the gradient", row.grad_norm);
  const bool clipped = o.clip > 0 && row.grad_norm > o.clip;
  optimizer_step(run.ctx, run.net, run.optimizer,
                 {.lr = row.lr,
                  .weight_decay = row.weight_decay,
                  .beta1 = o.beta1,
                  .beta2 = o.beta2,
                  .eps = o.eps,
                  .grad_scale = clipped ? o.clip / row.grad_norm : 1.0,
                  .step = run.state.step + 1});
  ternarize_weights(run.ctx, run.net);
}

MetricsRow train_step(Run& run) {
  const TrainOptions& o = run.options;
  const Clock::time_point start = Clock::now();
  MetricsRow row;
  row.lr = learning_rate(o.schedule, run.state.step);
  row.weight_decay = weight_decay(o.schedule, run.state.step);
  if (run.gpu != nullptr) {
    gpu_step(run, row);
  } else {
    cpu_step(run, row);
  }

  run.state.step += 1;
  run.state.tokens += o.batch_tokens;
  const double took = seconds_since(start);
  row.step = run.state.step;
  row.tokens = run.state.tokens;
  row.tokens_per_s = static_cast<double>(o.batch_tokens) / took;
  if (run.gpu_peak_flops > 0)
    row.mfu = training_flops_a_token(o.config) * row.tokens_per_s / run.gpu_peak_flops;
  return row;
}

// What a step measures besides itself, in the order health, validation: health reads the batch's
// activations.
void measure(Run& run, MetricsRow& row, bool first) {
  const TrainOptions& o = run.options;
  if (run.gpu != nullptr && (first || due(o.health_every, row.step, o.schedule.steps)))
    row.device_bytes = static_cast<idx>(run.gpu->memory().used_bytes);
  if (due(o.health_every, row.step, o.schedule.steps)) {
    if (run.gpu != nullptr) run.gpu->download_ternary(run.net);
    row.health = run.health.report(
        run.ctx, run.net,
        run.gpu != nullptr ? run.gpu->saturation() : activation_saturation(run.net), row.step);
  }
  if (run.validation.empty() || !due(o.eval_every, row.step, o.schedule.steps)) return;
  const auto forward = [&](const TokenBatch& batch) {
    return run.gpu != nullptr ? run.gpu->forward_loss(batch)
                              : forward_loss(run.ctx, run.net, batch);
  };
  const Validation v = run.validation.measure(forward, o.micro_batch);
  require_finite(run, "validation loss", v.loss);
  row.val_loss = v.loss;
  row.val_bits_per_byte = v.bits_per_byte;
  run.state.val_bits_per_byte = v.bits_per_byte;
}

void sample(Run& run, LineLog& log) {
  download_weights(run);
  const std::string text = run.hooks.make_sample(run.net);
  nlohmann::ordered_json o;
  o["step"] = run.state.step;
  o["prompt"] = run.options.sample_prompt;
  o["text"] = text;
  log.append(o.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  if (run.hooks.on_sample) run.hooks.on_sample(run.state.step, text);
}

void save(Run& run) {
  if (run.saved_step == run.state.step) return;
  if (run.gpu != nullptr && run.state.step > 0)
    run.gpu->download(run.net.values.data(), run.optimizer.m.data(), run.optimizer.v.data());
  run.metrics.sync();  // a checkpoint must not outlive the rows before it
  save_checkpoint(run.options.out, run.net, run.optimizer, run.state, run.options.keep);
  run.saved_step = run.state.step;
}

TrainSummary step_loop(Run& run) {
  const TrainOptions& o = run.options;
  TrainSummary summary;
  summary.first_step = run.state.step;
  summary.steps = o.schedule.steps;
  const double elapsed_before = run.state.elapsed_s;
  const Clock::time_point start = Clock::now();
  std::optional<LineLog> samples;
  if (run.hooks.make_sample && o.sample_every > 0) samples.emplace(samples_path(o.out));

  bool stop = false;
  while (run.state.step < o.schedule.steps && !stop) {
    MetricsRow row = train_step(run);
    measure(run, row, row.step == summary.first_step + 1);
    run.state.elapsed_s = elapsed_before + seconds_since(start);
    row.elapsed_s = run.state.elapsed_s;
    run.metrics.append(metrics_line(row));
    summary.loss = row.loss;
    if (run.hooks.on_step) run.hooks.on_step(row);
    if (samples && due(o.sample_every, row.step, o.schedule.steps)) sample(run, *samples);

    stop = (run.hooks.stop_requested && run.hooks.stop_requested()) ||
           (o.stop_after > 0 && row.step - summary.first_step >= o.stop_after);
    if (stop || due(o.checkpoint_every, row.step, o.schedule.steps)) save(run);
  }
  summary.step = run.state.step;
  summary.finished = run.state.step == o.schedule.steps;
  summary.val_bits_per_byte = run.state.val_bits_per_byte;
  summary.tokens = run.state.tokens;
  summary.elapsed_s = run.state.elapsed_s;
  const double took = run.state.elapsed_s - elapsed_before;
  const idx done = (summary.step - summary.first_step) * o.batch_tokens;
  summary.tokens_per_s = took > 0 ? static_cast<double>(done) / took : 0;
  return summary;
}

}  // namespace

TrainSummary train(const TrainOptions& o, const TokenData& data, bool resume,
                   const TrainHooks& hooks) {
  validate(o);
  validate(o.config, "the configuration");
  check_data(o, data);
  check_run_directory(o, resume);
  const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path());
  const ValidationSet validation(data, tokenizer, o.seq, o.eval_tokens);
  std::unique_ptr<GpuTraining> gpu = o.device == "cuda" ? open_gpu(o) : nullptr;
  make_directories(o.out / "trainer" / "checkpoints");
  const RunLock lock(o.out);
  check_run_directory(o, resume);  // again: another process may have started here meanwhile
  remove_leftovers(o.out);
  write_run_files(o, tokenizer);

  const Ctx ctx{o.threads};
  const std::vector<Checkpoint> checkpoints = list_checkpoints(o.out);
  const bool fresh = checkpoints.empty();
  const idx first = fresh ? 0 : checkpoints.back().step;
  truncate_lines_after(metrics_path(o.out), first);
  truncate_lines_after(samples_path(o.out), first);
  Network net = fresh ? start_network(ctx, o) : resume_network(ctx, o, checkpoints.back());
  OptimizerState optimizer(net);
  Run run{o,
          validation,
          hooks,
          ctx,
          std::move(net),
          std::move(optimizer),
          BatchSampler{data.train(), o.seed},
          {},
          {},
          {},
          LineLog(metrics_path(o.out)),
          nullptr,
          0,
          {}};
  if (validation.empty()) say(hooks, "the data set has no validation split: no validation");
  if (fresh) {
    if (resume)
      say(hooks, fmt::format("{} has no checkpoint yet: starting at step 0", o.out.string()));
    save(run);
  } else {
    run.state = load_run_state(checkpoints.back());
    load_optimizer(checkpoints.back(), run.net, run.optimizer);
    run.saved_step = run.state.step;
    publish_weights(o.out, checkpoints.back());
    say(hooks, fmt::format("resuming {} at step {}", o.out.string(), run.state.step));
  }
  if (gpu != nullptr) {
    run.gpu = std::move(gpu);
    run.gpu->upload(run.net.values.data(), run.optimizer.m.data(), run.optimizer.v.data());
    run.gpu_peak_flops = run.gpu->memory().peak_flops;
    say(hooks, gpu_message(run.gpu->memory(), o.config.num_hidden_layers));
  }
  if (o.health_every > 0) run.health.set_baseline(ctx, run.net, run.state.step);
  return step_loop(run);
}

}  // namespace mmfree
