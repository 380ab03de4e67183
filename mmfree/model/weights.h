#pragma once
// Run directories: config.json + model.safetensors (or shards), the Hugging Face layout.
#include <filesystem>

#include "mmfree/io/safetensors.h"
#include "mmfree/model/matmulfree.h"

namespace mmfree {

// Reads and checks config.json of a run directory.
MatmulFreeConfig load_config(const std::filesystem::path& directory);

// Throws a format Error unless the files hold exactly the tensors of the table, with its shapes, as
// F32, F16 or BF16.
void check_tensors(const SafetensorsSet& set, const std::vector<ParamInfo>& table);

// Loads latent weights (F32, F16 or BF16) into a network and ternarises them. Missing, extra,
// misshapen and non-finite tensors are format Errors naming the tensor.
Network load_network(const Ctx& ctx, const std::filesystem::path& directory);

// Writes config.json and model.safetensors (F32 unless dtype says F16 or BF16), each complete or
// absent.
void save_network(const Network& net, const std::filesystem::path& directory,
                  DType dtype = DType::f32);

}  // namespace mmfree
