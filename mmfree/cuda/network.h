#pragma once
// Internal to mmfree/cuda: forward and backward of the whole network for activations of type T
// (float or bf16). What the backward needs of a layer: its input x, the mixer's output y_o, the
// three projections and row statistics; and as far as memory allows the gate's output, the
// recurrence and the codes that norms make. The rest is computed again.
#include "mmfree/cuda/device_params.h"
#include "mmfree/cuda/products.h"

namespace mmfree::cuda {

// A batch on the device.
struct DeviceBatch {
  idx batch, length;  // B, T
  const std::int32_t* inputs;
  const std::int32_t* labels;
  const std::uint8_t* mask;  // or null
  RowsById by_id;            // the inputs' rows
};

// Statistics of the rows that enter a BitLinear.
struct RowStats {
  float *outer_rstd, *inner_rstd;
  float* largest[3];
};

template <class T>
struct LayerStore {
  float* x;                  // (R, D) input of the block
  T *i_pre, *f_pre, *g;      // (R, M); the backward replaces them by their gradients
  T* y_o;                    // (R, D) output of the o projection
  T* pq;                     // (R, 2F) output of the gate projection, or null: computed again
  T* h;                      // (R, M) recurrence, or null: computed again
  T* code_values[4];         // (R, D) codes that enter i, f, g and gate, or null: computed again
  RowStats attn, o, mlp, z;  // o.outer_rstd is the gated norm's
};

template <class T>
class DeviceNetwork {
 public:
  // fp8_backward: input gradients of the layers in e4m3; only where fp8_fits says so.
  DeviceNetwork(DeviceParams& params, Products& products, const Launch& launch,
                int compute_capability, bool int8_products, bool fp8_backward, idx rows);
  // Layers that store pq, h and code_values; and whether all weights are kept as numbers.
  struct Keep {
    idx pq = 0, h = 0, codes = 0;
    bool weights = false;
  };
  // Both passes of the arena.
  void take(Arena& arena, const Keep& keep);
  static idx pq_bytes(const MatmulFreeConfig& config, idx rows);  // of one layer
  static idx h_bytes(const MatmulFreeConfig& config, idx rows);
  static idx codes_bytes(const MatmulFreeConfig& config, idx rows);
  static bool fp8_fits(const MatmulFreeConfig& config, int compute_capability);

  // total (double, on the device) receives the summed nll. saturated: 4 counters a layer, or null.
  void forward(const DeviceBatch& b, double* total, unsigned* saturated);
  void forward_backward(const DeviceBatch& b, float grad_scale, bool first, double* total,
                        unsigned* saturated);

 private:
  void body(const DeviceBatch& b, bool with_gradient, unsigned* saturated);
  void head(const DeviceBatch& b, bool with_gradient, float grad_scale, bool first, double* total);
  void mlp_backward(std::size_t layer, idx rows, bool first);
  void mixer_backward(std::size_t layer, const DeviceBatch& b, bool first);
  NormQuant<T> attn_norm(std::size_t layer, idx rows) const;
  NormQuant<T> mlp_norm(std::size_t layer, idx rows) const;
  const float* bound(std::size_t layer) const;

  void product(idx rows, const std::int8_t* x, const float* largest, const Linear& w, T* y);
  // dy_fp8: dy in e4m3, or null values.
  void input_gradient(idx rows, const T* dy, const Fp8Rows& dy_fp8, const Linear& w, T* dx);
  void weight_gradient(idx rows, const T* dy, const Linear& w, const T* code_values,
                       bool accumulate);

  DeviceParams& w_;
  Products& products_;
  Launch l_;
  int capability_;
  bool int8_, fp8_;
  idx rows_;  // R of the largest batch

  std::vector<LayerStore<T>> layers_;
  RowStats head_stats_{};
  float* x_ = nullptr;                 // (R, D) residual stream
  float* dx_ = nullptr;                // (R, D) its gradient
  T* dx_scaled_ = nullptr;             // (R, D) the same times the scale of the rows below
  T* y_ = nullptr;                     // (R, D) output of a down projection
  std::int8_t* codes_[3] = {};         // (R, D)
  std::int8_t* wide_codes_ = nullptr;  // (R, max(M, F))
  T* code_values_[3] = {};             // (R, D)
  T* du_[3] = {};                      // (R, D)
  T *pq_ = nullptr, *dz_ = nullptr;    // (R, 2F), (R, F)
  T *h_ = nullptr, *dh_ = nullptr, *d_o_ = nullptr;  // (R, M)
  Fp8Rows dx_fp8_{}, pq_fp8_{}, mixer_fp8_[3] = {};  // (R, D), (R, 2F), (R, M); as options say
  T* weights_ = nullptr;                             // largest matrix, as numbers
  T* all_weights_ = nullptr;                         // all of them, likewise, where memory allows
  T* logits_ = nullptr;                              // (head rows, V)
  float* nll_ = nullptr;                             // (R)
  float* partial_ = nullptr;
  float* sums_ = nullptr;        // products before they are scaled, where int8 does not run
  T* product_values_ = nullptr;  // codes as numbers, likewise
};

}  // namespace mmfree::cuda
