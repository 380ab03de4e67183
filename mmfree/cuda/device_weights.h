#pragma once
// Internal to mmfree/cuda: a model's weights on the device, uploaded once.
#include <vector>

#include "mmfree/core/parallel.h"
#include "mmfree/core/progress.h"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/runtime.h"
#include "mmfree/model/packed.h"
#include "mmfree/model/tiled.h"

namespace mmfree::cuda {

struct WeightStore {
  DeviceWeights w{};
  std::size_t matrix_bytes = 0;
  const float* head_scale = nullptr;  // on the device
  std::vector<float> final_gain;      // (D) of the norm before the head, on the host
  Arena memory;
};

// The first `layers` blocks; all of them: the head as well.
void upload(const Ctx& ctx, const PackedModel& model, idx layers, const Progress& progress,
            WeightStore& store);
void upload(const Ctx& ctx, const TiledModel& model, idx layers, const Progress& progress,
            WeightStore& store);

}  // namespace mmfree::cuda
