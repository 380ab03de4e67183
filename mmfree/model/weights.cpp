#include "mmfree/model/weights.h"

#include <fmt/core.h>

#include <cmath>
#include <unordered_map>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/io/safetensors.h"

namespace mmfree {
namespace {

constexpr std::size_t kConfigLimitBytes = std::size_t{16} << 20;

void check_finite(const std::string& file, const ParamInfo& info, const float* w) {
  for (idx k = 0; k < info.size(); ++k)
    if (!std::isfinite(w[k]))
      fail(ErrorKind::format,
           fmt::format("{}: tensor {} holds {} at element {}, expected finite numbers", file,
                       info.name, w[k], k));
}

}  // namespace

MatmulFreeConfig load_config(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "config.json";
  return config_from_json(read_text_file(path, kConfigLimitBytes), path.string());
}

void check_tensors(const SafetensorsSet& set, const std::vector<ParamInfo>& table) {
  std::unordered_map<std::string_view, const ParamInfo*> expected;
  for (const ParamInfo& info : table) {
    expected[info.name] = &info;
    const TensorView* t = set.find(info.name);
    if (t == nullptr)
      fail(ErrorKind::format, fmt::format("{}: tensor {} is missing; the configuration asks for it",
                                          set.path(), info.name));
    if (t->shape != info.shape)
      fail(ErrorKind::format,
           fmt::format("{}: tensor {} has shape {}, expected {} by the configuration", set.path(),
                       info.name, shape_text(t->shape), shape_text(info.shape)));
    if (t->dtype != DType::f32 && t->dtype != DType::f16 && t->dtype != DType::bf16)
      fail(ErrorKind::format, fmt::format("{}: tensor {} is {}, expected F32, F16 or BF16",
                                          set.path(), info.name, dtype_name(t->dtype)));
  }
  for (const TensorView* t : set.tensors())
    if (!expected.contains(t->name))
      fail(ErrorKind::format,
           fmt::format("{}: tensor {} is not part of the configured model", set.path(), t->name));
}

Network load_network(const Ctx& ctx, const std::filesystem::path& directory) {
  const MatmulFreeConfig config = load_config(directory);
  const SafetensorsSet set(directory);
  const std::vector<ParamInfo> table = matmulfree_params(config);
  check_tensors(set, table);  // before anything as large as the configuration claims is allocated
  Network net(config);
  for (const ParamInfo& info : net.table) {
    const TensorView& t = set.get(info.name);
    float* w = net.values.data() + info.offset;
    read_as_f32(t, w, 0, info.size());
    set.release_pages(t);
    check_finite(set.path(), info, w);
  }
  ternarize_weights(ctx, net);
  return net;
}

void save_network(const Network& net, const std::filesystem::path& directory, DType dtype) {
  make_directories(directory);
  MatmulFreeConfig config = net.config;
  config.torch_dtype = dtype == DType::f16    ? "float16"
                       : dtype == DType::bf16 ? "bfloat16"
                                              : "float32";
  std::vector<TensorSpec> specs;
  for (const ParamInfo& info : net.table) specs.push_back({info.name, dtype, info.shape});
  SafetensorsWriter writer(directory / "model.safetensors", specs, {{"format", "pt"}});
  std::vector<std::uint16_t> half;
  for (const ParamInfo& info : net.table) {
    const float* w = net.values.data() + info.offset;
    const auto n = static_cast<std::size_t>(info.size());
    if (dtype == DType::f32) {
      writer.write(info.name, w, n * sizeof(float));
      continue;
    }
    half.resize(n);
    for (std::size_t k = 0; k < n; ++k)
      half[k] = dtype == DType::f16 ? float_to_f16(w[k]) : float_to_bf16(w[k]);
    writer.write(info.name, half.data(), n * sizeof(std::uint16_t));
  }
  writer.commit();
  write_file_atomically(directory / "config.json", config_to_json(config));
}

}  // namespace mmfree
