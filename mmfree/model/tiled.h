#pragma once
// A model ready for inference: ternary matrices as tiles (ternary/tiles.h) in one block of memory
// that all sessions share and nothing writes to, made once at load from any packed model.
//
// What a stage of the network reads together lies together: the blocks of i, f and g take turns, so
// do those of the two halves of the gate projection.
#include <filesystem>
#include <optional>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"
#include "mmfree/core/progress.h"
#include "mmfree/model/layout.h"
#include "mmfree/model/packed.h"
#include "mmfree/ternary/tiles.h"

namespace mmfree {

struct TiledLayer {
  TileMatrix i, f, g;  // (M, D)
  TileMatrix o;        // (D, M)
  TileMatrix p, q;     // (F, D) each: the gate projection's halves
  TileMatrix down;     // (D, F)
};

struct TiledModel {
  PackedModel base;  // all but the matrices: its PackedMatrix entries are empty
  Layout layout;     // of its matrices, by width
  std::vector<TiledLayer> layers;
  TileMatrix head;              // (V, D)
  Buffer<std::uint8_t> tiles;   // all blocks
  Buffer<std::uint16_t> table;  // a random model's embedding (V, D), bf16
};

// Takes the matrices over, in parallel, and lets go of each one's file pages or memory as soon as
// it is done. `format`: none measures (model/layout.h). Matrices with more than kMaxTileInputs
// columns are config Errors.
TiledModel tile_model(const Ctx& ctx, PackedModel model, const Progress& progress = {},
                      std::optional<TileFormat> format = {});

// load_packed and tile_model.
TiledModel load_model(const Ctx& ctx, const std::filesystem::path& path,
                      const Progress& progress = {}, std::optional<TileFormat> format = {});

// Random ternary weights, a third each, for measurements of any size without a file: a pure
// function of configuration and seed.
TiledModel random_model(const Ctx& ctx, const MatmulFreeConfig& config, std::uint64_t seed,
                        std::optional<TileFormat> format = {});
TiledModel random_model(const Ctx& ctx, const MatmulFreeConfig& config, std::uint64_t seed,
                        Layout layout);

// Bytes of all matrices as tiles, which a decoded token reads once; of a model, and of one that is
// yet to be made. weight_bytes: with all else that is held.
std::size_t matrix_bytes(const MatmulFreeConfig& config, const Layout& layout);
std::size_t matrix_bytes(const TiledModel& model);
std::size_t weight_bytes(const TiledModel& model);

}  // namespace mmfree
