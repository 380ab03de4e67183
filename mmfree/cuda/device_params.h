#pragma once
// Internal to mmfree/cuda: parameters, gradients, moments and ternary codes on the device, in the
// flat layout of model/params.h.
#include <vector>

#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/runtime.h"
#include "mmfree/model/config.h"
#include "mmfree/model/params.h"

namespace mmfree::cuda {

// A ternary matrix (out, in), its scale, and where its gradient goes.
struct Linear {
  idx out, in;
  const std::int8_t* codes;
  const float* scale;
  float* dw;
};
struct LayerLinears {
  Linear i, f, g, o, gate, down;
};

// How AdamW's moments are stored.
enum class Moments { none, full, half };  // half: bf16

struct DeviceParams {
  DeviceParams(const MatmulFreeConfig& config, Moments moments);
  // Both passes of the arena; after the second the pointers below are valid.
  void take(Arena& arena);
  // Copies the tables to the device; once, after take.
  void fill_tables(cudaStream_t stream);

  void ternarize(const Launch& l);  // codes, scales and bounds of the values as they are
  void update(const Launch& l, const AdamWStep& step);  // norm, AdamW, then the same
  void clear_embedding_gradient(cudaStream_t stream);
  std::size_t moment_bytes() const;  // of m, and of v

  MatmulFreeConfig config;
  Moments moments;
  std::vector<ParamInfo> table;
  idx size;  // of flat storage
  float *values = nullptr, *grads = nullptr;
  void *m = nullptr, *v = nullptr;  // (size) of float or bf16, or null
  std::int8_t* codes = nullptr;     // (size), only where matrices are
  float* scales = nullptr;          // one a matrix: six a layer, the head last
  float* bounds = nullptr;          // (L, D) or null
  float* d_bounds = nullptr;        // (L, D)
  double* norm = nullptr;           // of the last gradient
  ParamViews p, d;                  // into values and grads
  std::vector<LayerLinears> layers;
  Linear head;

 private:
  void ternarize_from_sums(const Launch& l);
  void view();
  Linear linear(const float* w, int matrix, idx out, idx in) const;

  std::vector<Chunk> chunks_;
  std::vector<MatrixChunks> matrices_;
  ParamPlan plan_{};
  Chunk* device_chunks_ = nullptr;
  MatrixChunks* device_matrices_ = nullptr;
  double* sums_ = nullptr;
  AdamWStep* step_ = nullptr;
};

}  // namespace mmfree::cuda
