#pragma once
// The trainable network on an NVIDIA GPU: parameters, gradients, moments and activations live
// there. The same formulas as model/matmulfree_train.cpp with the passes fused; docs/gpu.md says
// how. Calls enqueue work and return; those that give results to the host wait for it. In a build
// without CUDA the constructor throws a usage Error.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mmfree/model/matmulfree.h"

namespace mmfree {

// Of stored activations and of the backward products. Forward products are exact integers in both.
enum class GpuPrecision { bf16, float32 };

struct GpuTrainingOptions {
  GpuPrecision precision = GpuPrecision::bf16;
  idx rows = 0;  // tokens of the largest batch
  // bytes to use at most, 0: what is free. Activations that do not fit are recomputed.
  std::size_t memory_limit = 0;
  bool keep_moments = true;   // false: no update() (evaluation and gradients only)
  bool bf16_moments = false;  // AdamW's, in place of float32
  // Input gradients of the layers from e4m3 operands, rows of gradients scaled to its range. Needs
  // bf16 precision, a GPU of compute capability 9.0 and widths that are multiples of 16.
  bool fp8_backward = false;
  bool int8_products = true;  // false: forward products in floating point, the same sums
  bool graph = true;          // replay repeated steps as one CUDA graph
};

struct GpuUpdate {
  double lr, weight_decay, beta1, beta2, eps;
  double clip;  // largest gradient norm, 0: none
  idx step;     // 1 for the first
};

struct GpuStepResult {
  double nll;        // nats, summed over the batches since the one that was `first`
  double grad_norm;  // before clipping; of the last update()
};

struct GpuMemory {
  std::string device;
  std::size_t planned_bytes;  // by this network
  std::size_t used_bytes;     // of the device, by everyone
  std::size_t total_bytes;
  idx kept_layers;    // whose MLP activations are kept, not recomputed
  double peak_flops;  // of dense bf16 products at the highest clock; 0: not known
};

class GpuTraining {
 public:
  GpuTraining(const MatmulFreeConfig& config, const GpuTrainingOptions& options);
  ~GpuTraining();
  GpuTraining(GpuTraining&&) noexcept;
  GpuTraining& operator=(GpuTraining&&) noexcept;

  // Flat storage of the parameter table (model/params.h). Null moments are zeros.
  void upload(const float* values, const float* m, const float* v);
  void download(float* values, float* m, float* v);  // null: not wanted
  void download_gradients(float* grads);
  // Codes and scales of the weights and lower bounds, into net.layers, net.head and net.bounds
  // (without tiles).
  void download_ternary(Network& net);
  // Weights drawn on the device, for measurements; not those of initialize_params.
  void randomize(std::uint64_t seed);

  // Adds the gradient of grad_scale * (sum of nll); with `first`, begins anew. Batches of more than
  // options.rows tokens are usage Errors. count_saturation makes saturation() tell of this batch.
  void forward_backward(const TokenBatch& batch, float grad_scale, bool first,
                        bool count_saturation = false);
  LossSum forward_loss(const TokenBatch& batch);
  // Clips, steps AdamW, ternarises. If the gradient is not finite nothing changes.
  void update(const GpuUpdate& u);
  GpuStepResult wait();

  std::vector<LayerSaturation> saturation();
  GpuMemory memory() const;

  struct Engine;

 private:
  std::unique_ptr<Engine> engine_;
};

}  // namespace mmfree
