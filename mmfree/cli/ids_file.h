#pragma once
// Token ids from a JSON file: {"input_ids": [[...], ...], "attention_mask": [[...], ...]}.
#include <cstdint>
#include <filesystem>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree {

struct IdsFile {
  idx batch = 0;                   // B
  idx length = 0;                  // T
  std::vector<std::int32_t> ids;   // (B, T), each in [0, V)
  std::vector<std::uint8_t> mask;  // (B, T) 0 or 1; empty: none was given
};

// Rows must be of one length and not empty; every id must be below `vocab`. Format Errors name row
// and position.
IdsFile read_ids_file(const std::filesystem::path& path, idx vocab);

}  // namespace mmfree
