#include <fmt/core.h>

#include <array>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "mmfree/cli/device_model.h"
#include "mmfree/cli/ids_file.h"
#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/hw/fixed_session.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/model/matmulfree_infer.h"
#include "mmfree/model/matmulfree_reference.h"

namespace mmfree {
namespace {

struct Wanted {
  bool hidden = false;
  bool states = false;
};

std::vector<TensorSpec> output_tensors(const MatmulFreeConfig& c, const IdsFile& in,
                                       const Wanted& wanted) {
  std::vector<TensorSpec> specs = {{"logits", DType::f32, {in.batch, in.length, c.vocab_size}}};
  const auto hidden = [&](std::string name) {
    specs.push_back({std::move(name), DType::f32, {in.batch, in.length, c.hidden_size}});
  };
  if (wanted.hidden) {
    hidden("hidden.embedding");
    for (idx l = 0; l < c.num_hidden_layers; ++l) hidden(fmt::format("hidden.block{}", l));
    hidden("hidden.final_norm");
  }
  if (wanted.states)
    for (idx l = 0; l < c.num_hidden_layers; ++l)
      specs.push_back({fmt::format("state.layer{}", l),
                       DType::f32,
                       {in.batch, c.num_heads, c.mixer_width() / c.num_heads}});
  return specs;
}

void write_floats(SafetensorsWriter& out, const std::string& name, const float* values, idx n) {
  out.write(name, values, static_cast<std::size_t>(n) * sizeof(float));
}

// `forward_row` computes one sequence from an empty state, which it leaves in the state.
using ForwardRow = std::function<void(const ForwardCall& call, SessionState& state)>;

void run_integer(const MatmulFreeConfig& c, const ForwardRow& forward_row, const IdsFile& in,
                 const Wanted& wanted, const std::filesystem::path& out_path) {
  const idx rows = in.batch * in.length;
  const idx d = c.hidden_size;
  SafetensorsWriter out(out_path, output_tensors(c, in, wanted));
  SessionState state(c);
  Buffer<float> hidden(wanted.hidden ? (c.num_hidden_layers + 2) * rows * d : 0);  // (L+2, B*T, D)
  Buffer<float> states(wanted.states ? c.num_hidden_layers * in.batch * state.width
                                     : 0);  // (L, B, M)
  for (idx b = 0; b < in.batch; ++b) {
    reset(state);
    HiddenCapture capture;
    if (wanted.hidden) {
      const auto place = [&](idx k) { return hidden.data() + (k * rows + b * in.length) * d; };
      capture.embedding = place(0);
      for (idx l = 0; l < c.num_hidden_layers; ++l) capture.block.push_back(place(l + 1));
      capture.final_norm = place(c.num_hidden_layers + 1);
    }
    ForwardCall call;
    call.tokens = {in.ids.data() + b * in.length, static_cast<std::size_t>(in.length)};
    call.mask = in.mask.empty() ? nullptr : in.mask.data() + b * in.length;
    call.logits = LogitRows::all;
    call.sink = [&](idx, idx n, const float* logits) {
      write_floats(out, "logits", logits, n * c.vocab_size);
    };
    if (wanted.hidden) call.hidden = &capture;
    forward_row(call, state);
    if (wanted.states)
      for (idx l = 0; l < c.num_hidden_layers; ++l)
        std::copy_n(state.layer(l), state.width, states.data() + (l * in.batch + b) * state.width);
  }
  if (wanted.hidden) {
    write_floats(out, "hidden.embedding", hidden.data(), rows * d);
    for (idx l = 0; l < c.num_hidden_layers; ++l)
      write_floats(out, fmt::format("hidden.block{}", l), hidden.data() + (l + 1) * rows * d,
                   rows * d);
    write_floats(out, "hidden.final_norm", hidden.data() + (c.num_hidden_layers + 1) * rows * d,
                 rows * d);
  }
  if (wanted.states)
    for (idx l = 0; l < c.num_hidden_layers; ++l)
      write_floats(out, fmt::format("state.layer{}", l), states.data() + l * in.batch * state.width,
                   in.batch * state.width);
  out.commit();
}

void run_reference(const Ctx& ctx, const LatentModel& model, const IdsFile& in,
                   const Wanted& wanted, Rounding rounding, const std::filesystem::path& out_path) {
  ReferenceInput input{.batch = in.batch,
                       .length = in.length,
                       .ids = in.ids.data(),
                       .mask = in.mask.empty() ? nullptr : in.mask.data()};
  SafetensorsWriter out(out_path, output_tensors(model.config, in, wanted));
  const ReferenceOutput<float> r = reference_forward<float>(ctx, model, input, rounding);
  const auto write = [&](const std::string& name, const std::vector<float>& v) {
    write_floats(out, name, v.data(), static_cast<idx>(v.size()));
  };
  write("logits", r.logits);
  if (wanted.hidden) {
    write("hidden.embedding", r.embedding);
    for (std::size_t l = 0; l < r.block.size(); ++l)
      write(fmt::format("hidden.block{}", l), r.block[l]);
    write("hidden.final_norm", r.final_norm);
  }
  if (wanted.states)
    for (std::size_t l = 0; l < r.state.size(); ++l)
      write(fmt::format("state.layer{}", l), r.state[l]);
  out.commit();
}

void run_fixed(const Ctx& ctx, const PackedModel& model, const IdsFile& in, const Wanted& wanted,
               const std::filesystem::path& out_path) {
  if (wanted.hidden || wanted.states || !in.mask.empty())
    fail(ErrorKind::usage,
         "logits: --numerics fixed gives logits only, without --hidden, --states and "
         "attention_mask");
  hw::FixedSession session(ctx, model);
  SafetensorsWriter out(out_path, output_tensors(model.config, in, wanted));
  for (idx b = 0; b < in.batch; ++b) {
    session.restart();
    for (idx t = 0; t < in.length; ++t) {
      const std::span<const float> row =
          session.step(in.ids[static_cast<std::size_t>(b * in.length + t)]);
      write_floats(out, "logits", row.data(), static_cast<idx>(row.size()));
    }
  }
  out.commit();
}

// float32 files are re-enacted in float32; others as the reference's inference script runs them, in
// half.
Rounding reference_rounding(const std::string& dtype, const LatentModel& model) {
  if (dtype == "float32") return Rounding::none;
  if (dtype == "float16") return Rounding::f16;
  if (dtype == "bfloat16") return Rounding::bf16;
  return model.tensors.front().dtype == DType::f32 ? Rounding::none : Rounding::f16;
}

}  // namespace

int cmd_logits(Args args) {
  std::string model_path, ids_path, out_path, numerics = "integer", reference_dtype, size;
  idx vocab = 32000;
  bool random = false;
  DeviceOptions device;
  Wanted wanted;
  Ctx ctx;
  CLI::App app(
      "Computes logits, and optionally hidden states and recurrent states, for given token ids",
      "mmfree logits");
  CLI::Option* model_option = app.add_option("MODEL", model_path, "run directory or GGUF file");
  CLI::Option* random_option =
      app.add_flag("--random", random, "random weights instead of a model, the ones of bench")
          ->excludes(model_option);
  app.add_option("--size", size, "of the random weights: tiny, 8m, 30m, 100m, 370m, 1.3b, 2.7b")
      ->needs(random_option);
  app.add_option("--vocab-size", vocab, "of the random weights")
      ->check(CLI::Range(idx{1}, idx{1} << 24))
      ->needs(random_option)
      ->capture_default_str();
  app.add_option("--ids", ids_path,
                 "JSON: {\"input_ids\": [[...], ...]}, optionally \"attention_mask\"")
      ->required();
  app.add_option("--out", out_path, "safetensors file to write")->required();
  app.add_flag("--hidden", wanted.hidden,
               "also write hidden.embedding, hidden.blockN, hidden.final_norm");
  app.add_flag("--states", wanted.states, "also write the final state.layerN");
  app.add_option("--numerics", numerics,
                 "integer: int8 times ternary, exact; reference: the reference implementation's "
                 "rounding points; fixed: integers only, as the accelerator")
      ->check(CLI::IsMember({"integer", "reference", "fixed"}))
      ->capture_default_str();
  app.add_option(
         "--reference-dtype", reference_dtype,
         "type that --numerics reference computes in: float32 | float16 | bfloat16 (default: "
         "float32 for F32 files, else float16)")
      ->check(CLI::IsMember({"float32", "float16", "bfloat16"}));
  add_device_options(app, device);
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;
  validate(device);
  if (numerics != "integer" && device.device != "cpu")
    fail(ErrorKind::usage,
         fmt::format("logits: --numerics {} runs with --device cpu only", numerics));
  if (wanted.hidden && device.gpu_layers)
    fail(ErrorKind::usage,
         "logits: --hidden needs the whole model on one device, without "
         "--gpu-layers");
  if (!reference_dtype.empty() && numerics != "reference")
    fail(ErrorKind::usage, "logits: --reference-dtype needs --numerics reference");
  if (random == !model_path.empty() || random == size.empty())
    fail(ErrorKind::usage, "logits: expected either MODEL or --random --size");
  if (random && numerics != "integer")
    fail(ErrorKind::usage,
         fmt::format("logits: --random has no weights for --numerics {}, expected integer",
                     numerics));

  if (numerics == "reference") {
    const LatentModel model = open_latent(model_path);
    const IdsFile in = read_ids_file(ids_path, model.config.vocab_size);
    run_reference(ctx, model, in, wanted, reference_rounding(reference_dtype, model), out_path);
  } else if (numerics == "fixed") {
    const PackedModel model = load_packed(ctx, model_path);
    run_fixed(ctx, model, read_ids_file(ids_path, model.config.vocab_size), wanted, out_path);
  } else {
    DeviceModel model;
    if (random) {
      model.tiled = random_model(ctx, size_preset(size, vocab), 0);
      if (device.device == "cuda")
        model.gpu.emplace(ctx, *model.tiled,
                          device.gpu_layers.value_or(model.tiled->base.config.num_hidden_layers));
    } else {
      load_on_device(ctx, model_path, device, model);
    }
    const MatmulFreeConfig& c = model.base().config;
    const IdsFile in = read_ids_file(ids_path, c.vocab_size);
    if (!model.gpu) {
      InferScratch scratch(c, kLogitRows, kLogitRows, ctx.threads);
      run_integer(
          c,
          [&](const ForwardCall& call, SessionState& state) {
            forward(ctx, *model.tiled, call, state, scratch);
          },
          in, wanted, out_path);
    } else {
      with_gpu_session(ctx, model, [&](const auto& open) {
        auto session = open();
        run_integer(
            c,
            [&](const ForwardCall& call, SessionState& state) {
              session.restart();
              session.forward(call);
              if (wanted.states) state = session.state();
            },
            in, wanted, out_path);
      });
    }
  }
  return 0;
}

}  // namespace mmfree
