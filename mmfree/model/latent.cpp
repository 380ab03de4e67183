#include "mmfree/model/latent.h"

#include <fmt/core.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "mmfree/core/error.h"
#include "mmfree/model/gguf_keys.h"
#include "mmfree/model/weights.h"

namespace mmfree {
namespace {

constexpr idx kCheckGrain =
    idx{1} << 14;  // elements; large enough that a thread's share pays for its start

// All exponent bits set: infinity or NaN.
bool is_finite(DType dtype, const std::byte* p) {
  if (dtype == DType::f32) {
    std::uint32_t u;
    std::memcpy(&u, p, sizeof u);
    return (u & 0x7f800000U) != 0x7f800000U;
  }
  std::uint16_t u;
  std::memcpy(&u, p, sizeof u);
  const unsigned mask = dtype == DType::f16 ? 0x7c00U : 0x7f80U;
  return (u & mask) != mask;
}

void require_float(DType dtype, std::string_view file, std::string_view tensor) {
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16)
    fail(ErrorKind::format, fmt::format("{}: tensor {} is {}, expected F32, F16 or BF16", file,
                                        tensor, dtype_name(dtype)));
}

LatentModel open_directory(const std::filesystem::path& path) {
  LatentModel m;
  m.path = path.string();
  m.config = load_config(path);
  m.table = matmulfree_params(m.config);
  m.directory = std::make_shared<const SafetensorsSet>(path);
  check_tensors(*m.directory, m.table);
  for (const ParamInfo& p : m.table) m.tensors.push_back(m.directory->get(p.name));
  const std::filesystem::path tokenizer = path / "tokenizer.model";
  if (std::filesystem::exists(tokenizer))
    m.sentencepiece = read_text_file(tokenizer, kTokenizerLimitBytes);
  return m;
}

LatentModel open_gguf(const std::filesystem::path& path) {
  LatentModel m;
  m.path = path.string();
  m.gguf = std::make_shared<const GgufFile>(path);
  const GgufHeader& header = m.gguf->header();
  m.config = gguf_config(header);
  m.table = matmulfree_params(m.config);
  if (gguf_is_ternary(header, m.config))
    fail(
        ErrorKind::usage,
        fmt::format("{}: this file holds ternary codes; the latent weights they were made from are "
                    "not in it. Give the run directory, or a GGUF file written with --weights f32, "
                    "f16 or bf16",
                    m.path));
  std::unordered_set<std::string_view> known;
  for (const ParamInfo& p : m.table) {
    const GgufTensor& t = get_tensor(header, p.gguf_name);
    const std::optional<DType> dtype = ggml_dtype(t.type);
    if (!dtype)
      fail(ErrorKind::format, fmt::format("{}: tensor {} is {}, expected F32, F16 or BF16", m.path,
                                          t.name, ggml_type_name(t.type)));
    require_float(*dtype, m.path, t.name);
    require_shape(t.shape, p.shape, m.path, t.name);
    m.tensors.push_back(plain_view(t));
    known.insert(p.gguf_name);
  }
  for (const GgufTensor& t : header.tensors)
    if (!known.contains(t.name))
      fail(ErrorKind::format, fmt::format("{}: tensor {} {} does not belong to this model", m.path,
                                          t.name, shape_text(t.shape)));
  m.sentencepiece = gguf_sentencepiece(header);
  return m;
}

}  // namespace

LatentModel open_latent(const std::filesystem::path& path) {
  return std::filesystem::is_directory(path) ? open_directory(path) : open_gguf(path);
}

void release_pages(const LatentModel& model, std::size_t row) {
  if (model.directory) {
    model.directory->release_pages(model.directory->get(model.table[row].name));
  } else {
    model.gguf->release_pages(get_tensor(model.gguf->header(), model.table[row].gguf_name));
  }
}

void require_finite(const Ctx& ctx, const TensorView& tensor, std::string_view file) {
  const idx n = element_count(tensor.shape);
  const idx size = static_cast<idx>(dtype_size(tensor.dtype));
  constexpr idx kNone = std::numeric_limits<idx>::max();
  std::atomic<idx> first{kNone};
  parallel_for(ctx, n, kCheckGrain, [&](idx begin, idx end) {
    for (idx i = begin; i < end; ++i) {
      if (is_finite(tensor.dtype, tensor.data + i * size)) continue;
      idx seen = first.load();
      while (i < seen && !first.compare_exchange_weak(seen, i)) {
      }
      return;
    }
  });
  if (first == kNone) return;
  float value = 0;
  read_as_f32(tensor, &value, first, 1);
  fail(ErrorKind::format,
       fmt::format("{}: tensor {} {} holds {} at element {}, expected finite numbers", file,
                   tensor.name, shape_text(tensor.shape), value, first.load()));
}

void read_finite(const Ctx& ctx, const TensorView& tensor, std::string_view file, float* out) {
  require_finite(ctx, tensor, file);
  parallel_for(ctx, element_count(tensor.shape), kCheckGrain,
               [&](idx begin, idx end) { read_as_f32(tensor, out + begin, begin, end - begin); });
}

TensorView plain_view(const GgufTensor& tensor) {
  return {tensor.name, *ggml_dtype(tensor.type), tensor.shape, tensor.data, tensor.bytes};
}

void require_shape(const std::vector<idx>& found, const std::vector<idx>& expected,
                   std::string_view file, std::string_view tensor) {
  if (found != expected)
    fail(ErrorKind::format,
         fmt::format("{}: tensor {} has shape {}, expected {} by the configuration", file, tensor,
                     shape_text(found), shape_text(expected)));
}

}  // namespace mmfree
