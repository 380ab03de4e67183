#pragma once
// The float weights of a model where they lie: a run directory, or a GGUF file that stores them
// unquantised. Nothing is copied; tensors are views into the mapped files.
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/core/parallel.h"
#include "mmfree/io/gguf.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/model/config.h"
#include "mmfree/model/params.h"

namespace mmfree {

struct LatentModel {
  std::string path;
  MatmulFreeConfig config;
  std::vector<ParamInfo> table;  // matmulfree_params(config)
  std::vector<TensorView>
      tensors;                // one per row of the table: F32, F16 or BF16, of the table's shape
  std::string sentencepiece;  // the tokenizer.model file, byte for byte; empty: there is none

  std::shared_ptr<const SafetensorsSet> directory;  // the owner of the mapping: one of these two
  std::shared_ptr<const GgufFile> gguf;
};

// Opens a run directory or a GGUF file with latent weights. Missing, extra and misshapen tensors
// and other element types are format Errors that name the tensor; values are not looked at. A GGUF
// file of ternary weights is a usage Error.
LatentModel open_latent(const std::filesystem::path& path);

// Drops the pages of row `row` of the table from this process.
void release_pages(const LatentModel& model, std::size_t row);

// The whole tensor as floats, by several threads; a format Error names the first value that is not
// finite.
void read_finite(const Ctx& ctx, const TensorView& tensor, std::string_view file, float* out);

// Throws the same Error without converting anything.
void require_finite(const Ctx& ctx, const TensorView& tensor, std::string_view file);

// A view of a GGUF tensor without blocks (F32, F16, BF16, I8).
TensorView plain_view(const GgufTensor& tensor);

// "[3, 4]" against the table; a format Error names file, tensor, what was found and what was
// expected.
void require_shape(const std::vector<idx>& found, const std::vector<idx>& expected,
                   std::string_view file, std::string_view tensor);

}  // namespace mmfree
