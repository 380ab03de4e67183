#pragma once
// --device cpu|cuda and --gpu-layers N, as generate, eval and logits share them: a model on the
// CPU, on the GPU, or its first blocks on the GPU and the others on the CPU.
#include <filesystem>
#include <optional>
#include <string>

#include "mmfree/cli/options.h"
#include "mmfree/cuda/inference.h"
#include "mmfree/generate/offload_session.h"
#include "mmfree/generate/session.h"

namespace mmfree {

struct DeviceOptions {
  std::string device = "cpu";
  std::optional<idx> gpu_layers;
};
void add_device_options(CLI::App& app, DeviceOptions& o);
// --gpu-layers without a GPU is a usage Error.
void validate(const DeviceOptions& o);

struct DeviceModel {
  std::optional<PackedModel> packed;  // whole on the GPU: what is not on it (tokenizer, gains)
  std::optional<TiledModel> tiled;    // what the CPU computes
  std::optional<GpuModel> gpu;
  const PackedModel& base() const { return tiled ? tiled->base : *packed; }
};
// Loads with a progress line. `m` must be empty and stay where it is.
void load_on_device(const Ctx& ctx, const std::filesystem::path& path, const DeviceOptions& o,
                    DeviceModel& m);

// Calls f with a function that opens a session: a GpuSession or OffloadSession; with_session: or a
// Session.
template <class F>
auto with_gpu_session(const Ctx& ctx, DeviceModel& m, const F& f) {
  if (m.gpu->whole()) return f([&] { return GpuSession(*m.gpu); });
  return f([&] { return OffloadSession(ctx, *m.gpu, *m.tiled); });
}
template <class F>
auto with_session(const Ctx& ctx, DeviceModel& m, const F& f) {
  if (!m.gpu) return f([&] { return Session(ctx, *m.tiled); });
  return with_gpu_session(ctx, m, f);
}

}  // namespace mmfree
