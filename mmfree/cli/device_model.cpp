#include "mmfree/cli/device_model.h"

#include <fmt/core.h>

#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"

namespace mmfree {

void add_device_options(CLI::App& app, DeviceOptions& o) {
  app.add_option("--device", o.device, "cpu, or cuda: an NVIDIA GPU")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--gpu-layers", o.gpu_layers,
                 "only the first N blocks on the GPU, the others on the CPU [all]")
      ->check(CLI::Range(idx{0}, idx{1} << 20));
}

void validate(const DeviceOptions& o) {
  if (o.gpu_layers && o.device != "cuda")
    fail(ErrorKind::usage, "--gpu-layers needs --device cuda");
}

void load_on_device(const Ctx& ctx, const std::filesystem::path& path, const DeviceOptions& o,
                    DeviceModel& m) {
  if (o.device == "cpu") {
    m.tiled = load_with_progress(ctx, path);
    return;
  }
  ProgressLine line("loading");
  m.packed = load_packed(ctx, path, line.sink());
  const idx blocks = m.packed->config.num_hidden_layers;
  const idx layers = o.gpu_layers.value_or(blocks);
  if (layers > blocks)
    fail(ErrorKind::usage, fmt::format("--gpu-layers is {}, expected at most {} (the blocks of {})",
                                       layers, blocks, path.string()));
  m.gpu.emplace(ctx, *m.packed, layers, line.sink());
  if (m.gpu->whole()) return;
  m.tiled = tile_model(ctx, std::move(*m.packed), line.sink());
  m.packed.reset();
}

}  // namespace mmfree
