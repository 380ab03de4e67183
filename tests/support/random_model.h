#pragma once
// Run directories with random weights, gains and lower bounds, for tests of the network.
#include <filesystem>

#include "mmfree/core/types.h"
#include "mmfree/model/config.h"

namespace mmfree::test {

void write_random_model(const std::filesystem::path& path, const MatmulFreeConfig& config,
                        DType dtype = DType::f32);

}  // namespace mmfree::test
