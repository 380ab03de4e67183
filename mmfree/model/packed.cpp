#include "mmfree/model/packed.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <unordered_set>

#include "mmfree/core/error.h"
#include "mmfree/model/gguf_keys.h"
#include "mmfree/ops/lower_bounds/lower_bounds.h"
#include "mmfree/ternary/pack.h"
#include "mmfree/ternary/quantize.h"

namespace mmfree {
namespace {

constexpr const char* kEmbedding = "model.embeddings.weight";

// Where each parameter is in the table: the typed view of params.h over a storage in which every
// parameter has one element, its row number.
class Rows {
 public:
  Rows(std::vector<ParamInfo> table, const MatmulFreeConfig& config)
      : base_(static_cast<idx>(table.size())) {
    for (std::size_t i = 0; i < table.size(); ++i) table[i].offset = static_cast<idx>(i);
    views_ = view_params(table, config, base_.data());
  }
  const ParamViews& views() const { return views_; }
  std::size_t row(const float* p) const { return static_cast<std::size_t>(p - base_.data()); }

 private:
  Buffer<float> base_;
  ParamViews views_;
};

// Gains and raw lower bounds lie one after the other; elsewhere[i] is the place of row i, -1 for
// matrices and the embedding.
std::vector<idx> small_offsets(const std::vector<ParamInfo>& table, idx& total) {
  std::vector<idx> offsets;
  total = 0;
  for (const ParamInfo& p : table) {
    const bool is_small = !p.ternary && p.name != kEmbedding;
    offsets.push_back(is_small ? total : -1);
    if (is_small) total += (p.size() + 15) / 16 * 16;
  }
  return offsets;
}

// Points the named fields at the gains and matrices of the rows.
void connect(PackedModel& m, const std::vector<idx>& offsets) {
  const MatmulFreeConfig& c = m.config;
  MatmulFreeConfig untied = c;
  untied.tie_word_embeddings = false;
  const Rows rows(m.table, untied);
  const auto gain = [&](const float* p) {
    const idx offset = offsets[rows.row(p)];
    MMFREE_ASSERT(offset >= 0);
    return static_cast<const float*>(m.gains.data() + offset);
  };
  const auto matrix = [&](const float* p) {
    MMFREE_ASSERT(m.matrices[rows.row(p)].rows != nullptr);
    return m.matrices[rows.row(p)];
  };
  const ParamViews& v = rows.views();
  if (c.use_lower_bound) {
    m.bounds = Buffer<float>(c.num_hidden_layers * c.hidden_size);
    lower_bounds(c.num_hidden_layers, c.hidden_size, gain(v.lower_bounds), m.bounds.data());
  }
  m.layers.clear();
  for (idx l = 0; l < c.num_hidden_layers; ++l) {
    const LayerParams& p = v.layers[static_cast<std::size_t>(l)];
    m.layers.push_back(
        {.attn_norm = gain(p.attn_norm),
         .i_norm = gain(p.i_norm),
         .f_norm = gain(p.f_norm),
         .g_in_norm = gain(p.g_in_norm),
         // The reference leaves the first layer's forget gate as it is.
         .bound = c.use_lower_bound && l > 0 ? m.bounds.data() + l * c.hidden_size : nullptr,
         .g_norm = gain(p.g_norm),
         .o_norm = gain(p.o_norm),
         .mlp_norm = gain(p.mlp_norm),
         .gate_norm = gain(p.gate_norm),
         .down_norm = gain(p.down_norm),
         .i = matrix(p.i_w),
         .f = matrix(p.f_w),
         .g = matrix(p.g_w),
         .o = matrix(p.o_w),
         .gate = matrix(p.gate_w),
         .down = matrix(p.down_w)});
  }
  m.norm = gain(v.norm);
  m.head = matrix(v.head_w);
  m.head_norm = gain(v.head_norm);
}

struct Matrices {  // progress over the matrices, in bytes of the result
  std::uint64_t done = 0, total = 0;
};

PackedModel pack_latent(const Ctx& ctx, LatentModel opened, const Progress& progress) {
  PackedModel m;
  m.latent = std::make_shared<const LatentModel>(std::move(opened));
  const LatentModel& source = *m.latent;
  m.path = source.path;
  m.config = source.config;
  m.sentencepiece = source.sentencepiece;
  m.table = ternary_table(m.config);
  m.matrices.resize(m.table.size());
  idx total = 0;
  const std::vector<idx> offsets = small_offsets(m.table, total);
  m.gains = Buffer<float>(total);
  Matrices bytes;
  idx largest = 0;
  for (const ParamInfo& p : m.table) {
    if (!p.ternary) continue;
    largest = std::max(largest, p.size());
    const TernaryFormat format = usable_format(TernaryFormat::tq2_0, p.shape[1]);
    bytes.total += static_cast<std::uint64_t>(p.shape[0]) * ternary_row_bytes(format, p.shape[1]);
  }
  Buffer<float> values(largest);  // one latent matrix at a time
  for (std::size_t i = 0; i < m.table.size(); ++i) {
    const ParamInfo& p = m.table[i];
    const std::size_t row = latent_row(source, p);
    const TensorView& t = source.tensors[row];
    if (p.ternary) {
      const idx out = p.shape[0];
      const idx in = p.shape[1];
      const TernaryFormat format = usable_format(TernaryFormat::tq2_0, in);
      Buffer<std::byte> rows(out * static_cast<idx>(ternary_row_bytes(format, in)));
      read_finite(ctx, t, source.path, values.data());
      const float scale = pack_matrix(ctx, values.data(), out, in, format, rows.data());
      bytes.done += static_cast<std::uint64_t>(rows.size());
      m.matrices[i] = {out, in, format, scale, rows.data()};
      m.packed.push_back(std::move(rows));
      if (progress) progress("bytes", bytes.done, bytes.total);
    } else if (offsets[i] >= 0) {
      read_finite(ctx, t, source.path, m.gains.data() + offsets[i]);
    } else {
      require_finite(ctx, t, source.path);
      m.embedding = t;
    }
    release_pages(source, row);
  }
  connect(m, offsets);
  return m;
}

// The exact scale of a matrix.
float read_scale(const GgufHeader& header, const ParamInfo& p) {
  const GgufTensor& t = get_tensor(header, scale_name(p));
  if (t.type != GgmlType::f32)
    fail(ErrorKind::format, fmt::format("{}: tensor {} is {}, expected F32", header.name, t.name,
                                        ggml_type_name(t.type)));
  require_shape(t.shape, {1}, header.name, t.name);
  float scale = 0;
  read_as_f32(plain_view(t), &scale, 0, 1);
  if (!std::isfinite(scale) || scale <= 0)
    fail(ErrorKind::format, fmt::format("{}: tensor {} holds {}, expected a finite number above 0",
                                        header.name, t.name, scale));
  return scale;
}

// The file holds exactly the tensors of the table and the scales of its matrices, with their shapes
// and usable types.
void check_ternary_tensors(const GgufHeader& header, const std::vector<ParamInfo>& table) {
  std::unordered_set<std::string> known;
  for (const ParamInfo& p : table) {
    const GgufTensor& t = get_tensor(header, p.gguf_name);
    require_shape(t.shape, p.shape, header.name, t.name);
    known.insert(p.gguf_name);
    if (p.ternary) known.insert(scale_name(p));
    const std::optional<DType> dtype = ggml_dtype(t.type);
    const bool is_float = dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
    if (p.ternary ? !ggml_ternary_format(t.type) : !is_float)
      fail(ErrorKind::format,
           fmt::format("{}: tensor {} is {}, expected {}", header.name, t.name,
                       ggml_type_name(t.type),
                       p.ternary ? "TQ1_0, TQ2_0 or I8 as the other matrices of this file"
                                 : "F32, F16 or BF16"));
  }
  for (const GgufTensor& t : header.tensors)
    if (!known.contains(t.name))
      fail(ErrorKind::format, fmt::format("{}: tensor {} {} does not belong to this model",
                                          header.name, t.name, shape_text(t.shape)));
}

PackedModel map_ternary(const Ctx& ctx, std::shared_ptr<const GgufFile> file,
                        const MatmulFreeConfig& config, const Progress& progress) {
  PackedModel m;
  m.gguf = std::move(file);
  const GgufHeader& header = m.gguf->header();
  m.path = m.gguf->path();
  m.config = config;
  m.sentencepiece = gguf_sentencepiece(header);
  m.table = ternary_table(config);
  check_ternary_tensors(header,
                        m.table);  // before anything as large as the keys claim is allocated
  m.matrices.resize(m.table.size());
  idx total = 0;
  const std::vector<idx> offsets = small_offsets(m.table, total);
  m.gains = Buffer<float>(total);
  for (std::size_t i = 0; i < m.table.size(); ++i) {
    const ParamInfo& p = m.table[i];
    const GgufTensor& t = get_tensor(header, p.gguf_name);
    if (p.ternary) {
      m.matrices[i] = {p.shape[0], p.shape[1], *ggml_ternary_format(t.type), read_scale(header, p),
                       t.data};
    } else if (offsets[i] >= 0) {
      read_finite(ctx, plain_view(t), m.path, m.gains.data() + offsets[i]);
    } else {
      m.embedding = plain_view(t);
      require_finite(ctx, m.embedding, m.path);
      m.gguf->release_pages(t);
    }
  }
  // Whole matrices are dealt to the threads so that messages count rows from the matrix's first.
  // This is where a file comes from the disk. Progress is told by one thread, of all threads.
  const auto bytes_of = [](const PackedMatrix& w) {
    return static_cast<std::uint64_t>(w.out) * ternary_row_bytes(w.format, w.in);
  };
  std::uint64_t bytes = 0;
  for (const PackedMatrix& w : m.matrices) bytes += w.rows == nullptr ? 0 : bytes_of(w);
  std::atomic<std::uint64_t> done = 0;
  std::vector<std::exception_ptr> errors(m.table.size());
  parallel_for(ctx, static_cast<idx>(m.table.size()), 1, [&](idx begin, idx end) {
    for (idx k = begin; k < end; ++k) {
      const auto i = static_cast<std::size_t>(k);
      const PackedMatrix& w = m.matrices[i];
      if (w.rows == nullptr) continue;
      try {
        validate_rows(w.format, w.rows, w.out, w.in, float_to_f16(w.scale),
                      m.path + ": tensor " + m.table[i].gguf_name);
        done += bytes_of(w);
        if (progress && omp_get_thread_num() == 0) progress("bytes", done, bytes);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& e : errors)
    if (e) std::rethrow_exception(e);
  connect(m, offsets);
  return m;
}

}  // namespace

PackedModel load_packed(const Ctx& ctx, const std::filesystem::path& path,
                        const Progress& progress) {
  if (!std::filesystem::is_directory(path)) {
    auto file = std::make_shared<const GgufFile>(path);
    const MatmulFreeConfig config = gguf_config(file->header());
    if (gguf_is_ternary(file->header(), config))
      return map_ternary(ctx, std::move(file), config, progress);
  }
  return pack_latent(ctx, open_latent(path), progress);
}

float pack_matrix(const Ctx& ctx, const float* latent, idx out, idx in, TernaryFormat format,
                  std::byte* rows) {
  Buffer<std::int8_t> codes(out * in);
  const float scale = ternary_quantize(ctx, latent, out * in, codes.data());
  const std::uint16_t scale_f16 = float_to_f16(scale);
  const idx stride = static_cast<idx>(ternary_row_bytes(format, in));
  parallel_for(ctx, out, 1, [&](idx begin, idx end) {
    for (idx o = begin; o < end; ++o)
      pack_row(format, codes.data() + o * in, in, scale_f16, rows + o * stride);
  });
  return scale;
}

TernaryFormat usable_format(TernaryFormat wanted, idx in) {
  return ternary_format_allows(wanted, in) ? wanted : TernaryFormat::i8;
}

std::size_t latent_row(const LatentModel& model, const ParamInfo& p) {
  const auto named = [&](std::string_view name) {
    return std::find_if(model.table.begin(), model.table.end(),
                        [&](const ParamInfo& q) { return q.name == name; });
  };
  auto it = named(p.name);
  if (it == model.table.end()) it = named(kEmbedding);  // only a tied head has no row of its own
  return static_cast<std::size_t>(it - model.table.begin());
}

std::size_t weight_bytes(const PackedModel& model) {
  std::size_t bytes =
      model.embedding.bytes +
      static_cast<std::size_t>(model.gains.size() + model.bounds.size()) * sizeof(float);
  for (const PackedMatrix& w : model.matrices)
    if (w.rows != nullptr)
      bytes += static_cast<std::size_t>(w.out) * ternary_row_bytes(w.format, w.in);
  return bytes;
}

std::size_t state_bytes(const MatmulFreeConfig& config) {
  return static_cast<std::size_t>(config.num_hidden_layers * config.mixer_width()) * sizeof(float);
}

}  // namespace mmfree
