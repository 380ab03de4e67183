#include "mmfree/cuda/device_weights.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/cuda/tile_layout.h"
#include "mmfree/ternary/pack.h"

namespace mmfree::cuda {
namespace {

// Rows [first, first + out) of a ternary matrix, wherever they lie.
struct Source {
  const PackedMatrix* packed = nullptr;
  const TileMatrix* tiled = nullptr;
  idx first = 0, out = 0, in = 0;
  float scale = 0;

  void row(idx o, std::int8_t* codes) const {
    if (packed != nullptr) {
      const auto bytes = static_cast<idx>(ternary_row_bytes(packed->format, in));
      unpack_row(packed->format, packed->rows + (first + o) * bytes, in, codes);
    } else {
      for (idx k = 0; k < in; ++k) codes[k] = tile_code(*tiled, o, k);
    }
  }
};

Source source(const PackedMatrix& m, idx first, idx out) {
  return {.packed = &m, .first = first, .out = out, .in = m.in, .scale = m.scale};
}
Source source(const TileMatrix& m) {
  return {.tiled = &m, .out = m.out, .in = m.in, .scale = m.scale};
}

// Floats behind the last gain that kernels may read: the widest row they hold.
constexpr idx kGainSlack = 16384;

struct LayerSources {
  std::vector<Source> mixer_in, mixer_out, mlp_in, mlp_out;
};
LayerSources sources(const PackedModel& model, std::size_t l) {
  const PackedLayer& n = model.layers[l];
  const idx f = model.config.mlp_width();
  return {{source(n.i, 0, n.i.out), source(n.f, 0, n.f.out), source(n.g, 0, n.g.out)},
          {source(n.o, 0, n.o.out)},
          {source(n.gate, 0, f), source(n.gate, f, f)},
          {source(n.down, 0, n.down.out)}};
}
LayerSources sources(const TiledModel& model, std::size_t l) {
  const TiledLayer& n = model.layers[l];
  return {{source(n.i), source(n.f), source(n.g)},
          {source(n.o)},
          {source(n.p), source(n.q)},
          {source(n.down)}};
}

// The matrices of one stage, their rows of tiles in turn.
void pack_stage(const Ctx& ctx, const std::vector<Source>& group, std::uint8_t* to) {
  const idx in = group.front().in, out = group.front().out;
  const idx row_bytes = input_tiles(in) * kTileBytes;
  const auto members = static_cast<idx>(group.size());
  parallel_for(ctx, row_tiles(out), 1, [&](idx begin, idx end) {
    std::vector<std::int8_t> codes(static_cast<std::size_t>(kTileOutputs * in));
    for (idx t = begin; t < end; ++t)
      for (idx m = 0; m < members; ++m) {
        const idx rows = std::min(kTileOutputs, out - t * kTileOutputs);
        for (idx o = 0; o < rows; ++o)
          group[static_cast<std::size_t>(m)].row(t * kTileOutputs + o, codes.data() + o * in);
        pack_row_of_tiles(codes.data(), rows, in, in, to + (t * members + m) * row_bytes);
      }
  });
}

void to_device(void* to, const void* from, std::size_t bytes, const char* what) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), what);
}

int embedding_bits(const TensorView& t) {
  return t.dtype == DType::f32 ? 32 : t.dtype == DType::f16 ? 16 : 17;
}

// `layer(l)` gives the matrices of block l, `head` the head's.
template <class F>
void upload_all(const Ctx& ctx, const PackedModel& base, idx layers, const F& layer,
                const Source& head, const Progress& progress, WeightStore& store) {
  const MatmulFreeConfig& c = base.config;
  const auto d = static_cast<int>(c.hidden_size), m = static_cast<int>(c.mixer_width()),
             f = static_cast<int>(c.mlp_width()), v = static_cast<int>(c.vocab_size);
  if (!decode_fits(d, m, f))
    fail(ErrorKind::config,
         fmt::format("{}: --device cuda runs hidden and mixer widths up to 8192 and MLP widths up "
                     "to 16384; this model has {}, {} and {}",
                     base.path, d, m, f));
  const bool whole = layers == c.num_hidden_layers;
  const LayerTiles tiles(d, m, f);
  const LayerParams params(d, m, f);
  const idx head_bytes = whole ? tile_bytes(v, d) : 0;
  DeviceWeights& w = store.w;
  std::uint8_t* tile_memory = nullptr;
  float* param_memory = nullptr;
  float* norms = nullptr;
  float* slack = nullptr;
  std::uint8_t* table = nullptr;
  const idx norm_stride = (d + 31) / 32 * 32;  // gains are read four at a time
  const auto take = [&] {
    tile_memory = store.memory.take<std::uint8_t>(layers * tiles.bytes + head_bytes);
    param_memory = store.memory.take<float>(layers * params.floats);
    norms = store.memory.take<float>(2 * norm_stride + 1);
    // Threads read gains up to the next multiple of all items they hold.
    slack = store.memory.take<float>(kGainSlack);
    table = store.memory.take<std::uint8_t>(static_cast<idx>(base.embedding.bytes));
  };
  take();
  store.memory.allocate("--gpu-layers N puts only the first N blocks there");
  take();
  check(cudaMemset(param_memory, 0,
                   static_cast<std::size_t>(reinterpret_cast<char*>(slack + kGainSlack) -
                                            reinterpret_cast<char*>(param_memory))),
        "clearing memory");
  store.matrix_bytes = static_cast<std::size_t>(layers * tiles.bytes + head_bytes);

  std::vector<std::uint8_t> staged(static_cast<std::size_t>(std::max(tiles.bytes, head_bytes)));
  const auto total = static_cast<std::uint64_t>(store.matrix_bytes);
  for (idx l = 0; l < layers; ++l) {
    const LayerSources s = layer(static_cast<std::size_t>(l));
    pack_stage(ctx, s.mixer_in, staged.data() + tiles.mixer_in.offset);
    pack_stage(ctx, s.mixer_out, staged.data() + tiles.mixer_out.offset);
    pack_stage(ctx, s.mlp_in, staged.data() + tiles.mlp_in.offset);
    pack_stage(ctx, s.mlp_out, staged.data() + tiles.mlp_out.offset);
    to_device(tile_memory + l * tiles.bytes, staged.data(), static_cast<std::size_t>(tiles.bytes),
              "uploading weights");
    const PackedLayer& n = base.layers[static_cast<std::size_t>(l)];
    std::vector<float> p(static_cast<std::size_t>(params.floats));
    const auto put = [&](int at, const float* from, int count) {
      if (from != nullptr) std::copy_n(from, count, p.data() + at);
    };
    put(params.attn_norm, n.attn_norm, d);
    put(params.i_norm, n.i_norm, d);
    put(params.f_norm, n.f_norm, d);
    put(params.g_in_norm, n.g_in_norm, d);
    put(params.bound, n.bound, m);
    put(params.g_norm, n.g_norm, m);
    put(params.o_norm, n.o_norm, m);
    put(params.mlp_norm, n.mlp_norm, d);
    put(params.gate_norm, n.gate_norm, d);
    put(params.down_norm, n.down_norm, f);
    float* scale = p.data() + params.scales;
    for (const auto* group : {&s.mixer_in, &s.mixer_out, &s.mlp_in, &s.mlp_out})
      for (const Source& matrix : *group) *scale++ = matrix.scale;
    to_device(param_memory + l * params.floats, p.data(), p.size() * sizeof(float),
              "uploading gains");
    if (progress) progress("bytes", static_cast<std::uint64_t>((l + 1) * tiles.bytes), total);
  }
  w = {.layers = layers,
       .hidden = d,
       .mixer = m,
       .mlp = f,
       .vocab = v,
       .eps = static_cast<float>(c.rms_norm_eps),
       .tiles = tile_memory,
       .layer_tile_bytes = tiles.bytes,
       .params = param_memory,
       .head = nullptr,
       .norm = norms,
       .head_norm = norms + norm_stride,
       .head_scale = head.scale,
       .embedding = table,
       .embedding_bits = embedding_bits(base.embedding)};
  to_device(table, base.embedding.data, base.embedding.bytes, "uploading the embedding");
  if (!whole) return;
  w.head = tile_memory + layers * tiles.bytes;
  pack_stage(ctx, {head}, staged.data());
  to_device(tile_memory + layers * tiles.bytes, staged.data(), static_cast<std::size_t>(head_bytes),
            "uploading the head");
  to_device(norms, base.norm, static_cast<std::size_t>(d) * sizeof(float), "uploading gains");
  to_device(norms + norm_stride, base.head_norm, static_cast<std::size_t>(d) * sizeof(float),
            "uploading gains");
  store.final_gain.assign(base.norm, base.norm + d);
  store.head_scale = norms + 2 * norm_stride;
  to_device(norms + 2 * norm_stride, &head.scale, sizeof(float), "uploading a scale");
  if (progress) progress("bytes", total, total);
}

}  // namespace

void upload(const Ctx& ctx, const PackedModel& model, idx layers, const Progress& progress,
            WeightStore& store) {
  upload_all(
      ctx, model, layers, [&](std::size_t l) { return sources(model, l); },
      source(model.head, 0, model.head.out), progress, store);
}

void upload(const Ctx& ctx, const TiledModel& model, idx layers, const Progress& progress,
            WeightStore& store) {
  upload_all(
      ctx, model.base, layers, [&](std::size_t l) { return sources(model, l); }, source(model.head),
      progress, store);
}

}  // namespace mmfree::cuda
