#pragma once
// A session in a file, so that a prompt is computed once and continued many times, also by another
// process. A safetensors file: h (L, M) and logits (V) as F32, tokens (T) as I32; its metadata hold
// fingerprints of the model and of the data. Some hundred kilobytes and 4 bytes a token.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "mmfree/model/matmulfree_infer.h"
#include "mmfree/model/tiled.h"

namespace mmfree {

struct SavedSession {
  SessionState state;
  std::vector<float> logits;         // (V) for the token after the last one
  std::vector<std::int32_t> tokens;  // (T) all tokens fed, T >= 1
};

// What a state belongs to. fingerprint: 64 bits of the configuration's shape, gains and scales,
// equal for the run directory and every GGUF file made from it, different for any other training
// step.
struct ModelIdentity {
  std::string path;
  MatmulFreeConfig config;
  std::uint64_t fingerprint;
};
ModelIdentity identity(const PackedModel& model);
ModelIdentity identity(const TiledModel& model);

// Written whole or not at all.
void write_session(const std::filesystem::path& path, const ModelIdentity& model,
                   const SessionState& state, std::span<const float> logits,
                   std::span<const std::int32_t> tokens);

// A format Error names the file and what is wrong with it; a config Error says that it belongs to
// another model.
SavedSession read_session(const std::filesystem::path& path, const ModelIdentity& model);

}  // namespace mmfree
