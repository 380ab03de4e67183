#pragma once
// What our GGUF files say besides their tensors: the configuration as typed keys, and the tokenizer
// (docs/formats.md).
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/io/gguf.h"
#include "mmfree/model/config.h"
#include "mmfree/model/params.h"

namespace mmfree {

inline constexpr std::string_view kGgufArchitecture = "mmfree";
inline constexpr std::size_t kTokenizerLimitBytes = std::size_t{64} << 20;

// general.architecture and every field of the configuration.
std::vector<GgufKv> gguf_config_keys(const MatmulFreeConfig& config);

// The configuration as the keys give it; format and config Errors name the file and the key.
MatmulFreeConfig gguf_config(const GgufHeader& header);

// The exact SentencePiece file kept inside, or an empty string.
std::string gguf_sentencepiece(const GgufHeader& header);

// The table of a file of ternary codes: tied embeddings have a head of their own there, because its
// codes are not those of the table.
std::vector<ParamInfo> ternary_table(const MatmulFreeConfig& config);

// "blk.0.attn_i.weight" -> "blk.0.attn_i.scale": the exact fp32 scale beside the codes.
std::string scale_name(const ParamInfo& p);

// Whether the weights in the file are ternary codes (by the element types of the matrices).
bool gguf_is_ternary(const GgufHeader& header, const MatmulFreeConfig& config);

}  // namespace mmfree
