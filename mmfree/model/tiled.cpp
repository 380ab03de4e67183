#include "mmfree/model/tiled.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/ops/lower_bounds/lower_bounds.h"
#include "mmfree/ops/tile_product/tile_product.h"
#include "mmfree/ternary/pack.h"

namespace mmfree {
namespace {

// Hands out places in the one block of memory; without memory it only counts.
struct Arena {
  const Layout& layout;
  std::uint8_t* memory = nullptr;
  idx used = 0;

  // Matrices (out, in) whose blocks take turns.
  void place(std::initializer_list<TileMatrix*> group, idx out, idx in) {
    const TileFormat format = layout.of(in);
    const idx bytes = tile_block_bytes(format, in);
    const idx stride = bytes * static_cast<idx>(group.size());
    idx offset = used;
    for (TileMatrix* w : group) {
      *w = {out, in, format, w->scale, memory == nullptr ? nullptr : memory + offset, stride};
      offset += bytes;
    }
    used += stride * tile_blocks(out);
  }
};

void place_all(TiledModel& m, Arena& arena) {
  const MatmulFreeConfig& c = m.base.config;
  const idx d = c.hidden_size;
  const idx mixer = c.mixer_width();
  const idx f = c.mlp_width();
  for (TiledLayer& l : m.layers) {
    arena.place({&l.i, &l.f, &l.g}, mixer, d);
    arena.place({&l.o}, d, mixer);
    arena.place({&l.p, &l.q}, f, d);
    arena.place({&l.down}, d, f);
  }
  arena.place({&m.head}, c.vocab_size, d);
}

void require_widths(const std::string& path, const MatmulFreeConfig& c) {
  const idx widest = std::max({c.hidden_size, c.mixer_width(), c.mlp_width()});
  if (widest > kMaxTileInputs)
    fail(ErrorKind::config, fmt::format("{}: a matrix has {} columns, expected at most {}", path,
                                        widest, kMaxTileInputs));
}

// Gives every matrix its place.
void lay_out(TiledModel& m, Layout layout) {
  const MatmulFreeConfig& c = m.base.config;
  m.layers.resize(static_cast<std::size_t>(c.num_hidden_layers));
  m.layout = std::move(layout);
  m.tiles = Buffer<std::uint8_t>(static_cast<idx>(matrix_bytes(c, m.layout)));
  Arena arena{m.layout, m.tiles.data()};
  place_all(m, arena);
}

// Rows [first, first + w.out) of a packed matrix to the blocks of w.
void fill(const Ctx& ctx, const PackedMatrix& from, idx first, TileMatrix& w) {
  w.scale = from.scale;
  const auto row_bytes = static_cast<idx>(ternary_row_bytes(from.format, from.in));
  // The owner of the memory is not const; a TileMatrix only ever reads.
  auto* blocks = const_cast<std::uint8_t*>(w.blocks);
  parallel_for(ctx, tile_blocks(w.out), 1, [&](idx begin, idx end) {
    Buffer<std::int8_t> codes(w.in);
    Buffer<std::int8_t> zeros(w.in);
    for (idx o = begin * kBlockOutputs; o < end * kBlockOutputs; ++o) {
      if (o < w.out)
        unpack_row(from.format, from.rows + (first + o) * row_bytes, w.in, codes.data());
      pack_tile_lane(w.format, o < w.out ? codes.data() : zeros.data(), w.in, o % kBlockOutputs,
                     blocks + o / kBlockOutputs * w.block_stride);
    }
  });
}

// Random codes, a third each and the same in every format: 20 of them from the 64 bits with number
// `first` and those that follow. Returns the number after the last.
std::uint64_t fill_random(const Ctx& ctx, std::uint64_t seed, std::uint64_t first, TileMatrix& w) {
  constexpr idx kCodes = 20;
  // The five digits of one of 243, drawn with 16 bits: off from uniform by less than one in 200.
  std::int8_t digits[243][5];
  for (int n = 0; n < 243; ++n)
    for (int p = 0, rest = n; p < 5; ++p, rest /= 3)
      digits[n][p] = static_cast<std::int8_t>(rest % 3 - 1);
  const idx draws = (w.in + kCodes - 1) / kCodes;
  auto* blocks = const_cast<std::uint8_t*>(w.blocks);
  parallel_for(ctx, tile_blocks(w.out), 1, [&](idx begin, idx end) {
    Buffer<std::int8_t> codes(draws * kCodes);
    for (idx o = begin * kBlockOutputs; o < end * kBlockOutputs; ++o) {
      if (o >= w.out) std::fill(codes.begin(), codes.end(), std::int8_t{0});
      for (idx k = 0; o < w.out && k < draws; ++k) {
        const std::uint64_t bits =
            random_bits(seed, 1, first + static_cast<std::uint64_t>(o * draws + k));
        for (idx b = 0; b < 4; ++b)
          std::copy_n(digits[(bits >> (16 * b) & 0xffffU) * 243 >> 16], 5,
                      codes.data() + k * kCodes + 5 * b);
      }
      pack_tile_lane(w.format, codes.data(), w.in, o % kBlockOutputs,
                     blocks + o / kBlockOutputs * w.block_stride);
    }
  });
  return first + static_cast<std::uint64_t>(w.out * draws);
}

// Lets go of the memory that holds the rows.
void drop(PackedModel& m, const std::byte* rows) {
  for (std::size_t i = 0; i < m.matrices.size(); ++i)
    if (m.matrices[i].rows == rows && m.gguf)
      m.gguf->release_pages(get_tensor(m.gguf->header(), m.table[i].gguf_name));
  for (Buffer<std::byte>& b : m.packed)
    if (b.data() == rows) b = Buffer<std::byte>();
}

}  // namespace

TiledModel tile_model(const Ctx& ctx, PackedModel model, const Progress& progress,
                      std::optional<TileFormat> format) {
  TiledModel m;
  m.base = std::move(model);
  require_widths(m.base.path, m.base.config);
  lay_out(m, choose_layout(ctx, m.base.config, format));
  const auto total = static_cast<std::uint64_t>(m.tiles.size());
  std::uint64_t done = 0;
  const auto take = [&](PackedMatrix& from, std::initializer_list<TileMatrix*> to) {
    idx first = 0;
    for (TileMatrix* w : to) {
      fill(ctx, from, first, *w);
      first += w->out;
      done += static_cast<std::uint64_t>(tile_blocks(w->out) * tile_block_bytes(w->format, w->in));
    }
    drop(m.base, from.rows);
    from = {};
    if (progress) progress("bytes", done, total);
  };
  for (std::size_t l = 0; l < m.layers.size(); ++l) {
    PackedLayer& from = m.base.layers[l];
    TiledLayer& to = m.layers[l];
    take(from.i, {&to.i});
    take(from.f, {&to.f});
    take(from.g, {&to.g});
    take(from.o, {&to.o});
    take(from.gate, {&to.p, &to.q});
    take(from.down, {&to.down});
  }
  take(m.base.head, {&m.head});
  m.base.matrices.clear();
  return m;
}

TiledModel load_model(const Ctx& ctx, const std::filesystem::path& path, const Progress& progress,
                      std::optional<TileFormat> format) {
  return tile_model(ctx, load_packed(ctx, path, progress), progress, format);
}

TiledModel random_model(const Ctx& ctx, const MatmulFreeConfig& config, std::uint64_t seed,
                        std::optional<TileFormat> format) {
  require_widths("random weights", config);
  return random_model(ctx, config, seed, choose_layout(ctx, config, format));
}

TiledModel random_model(const Ctx& ctx, const MatmulFreeConfig& config, std::uint64_t seed,
                        Layout layout) {
  TiledModel m;
  PackedModel& base = m.base;
  base.path = "random weights";
  base.config = config;
  lay_out(m, std::move(layout));
  std::uint64_t first = 0;
  for (TiledLayer& l : m.layers)
    for (TileMatrix* w : {&l.i, &l.f, &l.g, &l.o, &l.p, &l.q, &l.down})
      first = fill_random(ctx, seed, first, *w);
  fill_random(ctx, seed, first, m.head);
  const idx d = config.hidden_size;
  m.table = Buffer<std::uint16_t>(config.vocab_size * d);
  parallel_for(ctx, m.table.size(), 4096, [&](idx begin, idx end) {
    for (idx i = begin; i < end; ++i) {
      const std::uint64_t bits = random_bits(seed, 2, static_cast<std::uint64_t>(i));
      const float uniform = static_cast<float>(bits >> 40) * 0x1p-24F;
      m.table[i] = float_to_bf16((uniform - 0.5F) * 0.07F);  // deviation 0.02
    }
  });
  base.embedding = {"model.embeddings.weight",
                    DType::bf16,
                    {config.vocab_size, d},
                    reinterpret_cast<const std::byte*>(m.table.data()),
                    static_cast<std::size_t>(m.table.size()) * sizeof(std::uint16_t)};
  base.gains = Buffer<float>(std::max({d, config.mixer_width(), config.mlp_width()}));
  std::fill(base.gains.begin(), base.gains.end(), 1.0F);
  const float* ones = base.gains.data();
  base.bounds = Buffer<float>(config.num_hidden_layers * d);
  const Buffer<float> raw(config.num_hidden_layers * d);
  lower_bounds(config.num_hidden_layers, d, raw.data(), base.bounds.data());
  for (std::size_t l = 0; l < m.layers.size(); ++l) {
    const bool bounded = config.use_lower_bound && l > 0;
    base.layers.push_back(
        {.attn_norm = ones,
         .i_norm = ones,
         .f_norm = ones,
         .g_in_norm = ones,
         .bound = bounded ? base.bounds.data() + static_cast<idx>(l) * d : nullptr,
         .g_norm = ones,
         .o_norm = ones,
         .mlp_norm = ones,
         .gate_norm = ones,
         .down_norm = ones,
         .i = {},
         .f = {},
         .g = {},
         .o = {},
         .gate = {},
         .down = {}});
    TiledLayer& t = m.layers[l];
    for (TileMatrix* w : {&t.i, &t.f, &t.g, &t.o, &t.p, &t.q, &t.down}) w->scale = 0.02F;
  }
  base.norm = ones;
  base.head_norm = ones;
  m.head.scale = 0.02F;
  return m;
}

std::size_t matrix_bytes(const MatmulFreeConfig& config, const Layout& layout) {
  TiledModel m;
  m.base.config = config;
  m.layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
  Arena count{layout};
  place_all(m, count);
  return static_cast<std::size_t>(count.used);
}

std::size_t matrix_bytes(const TiledModel& m) {
  return static_cast<std::size_t>(m.tiles.size());
}

std::size_t weight_bytes(const TiledModel& m) {
  return matrix_bytes(m) + weight_bytes(m.base);
}

}  // namespace mmfree
