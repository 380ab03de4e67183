#pragma once
// The kernels of the training step, as the host calls them. Every launcher only enqueues work on
// `stream`; nothing allocates. T is the type of stored activations and gradients, float or bf16;
// arithmetic is float32 throughout. Formulas are those of mmfree/ops, whose references the tests
// compare with. Matrices are row-major and contiguous. Every sum has a fixed order on a given GPU,
// so results are the same bits from run to run.
//
// Gradients of a BitLinear's output travel multiplied by the scale of its input row (dy' = dy *
// x_scale[row]): then the weight gradient is a product with the bare integer codes, and the input
// gradient is divided by the scale again where it is read.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "mmfree/core/types.h"

namespace mmfree::cuda {

using bf16 = __nv_bfloat16;

// An 8-bit number of 4 exponent and 3 mantissa bits, as its byte.
using e4m3 = std::uint8_t;
inline constexpr float kLargestE4m3 = 448.0F;
// Rows in e4m3, each scaled so that its largest magnitude becomes kLargestE4m3. Null values: not
// wanted.
struct Fp8Rows {
  e4m3* values;    // (R, K)
  float* largest;  // (R) before scaling
};

// Where kernels run.
struct Launch {
  cudaStream_t stream;
  int multiprocessors;
};

// ---- residual + norm(s) + quantisation (ops/rmsnorm_quant) ----
template <class T>
struct NormQuant {
  idx rows;            // R
  idx width;           // K
  const float* x;      // (R, K)
  const T* add;        // (R, K) added to x first, or null
  float* sum;          // (R, K) receives x + add if not null
  const float* outer;  // (K)
  float outer_eps;
  int projections;        // 1 or 3
  const float* gain[3];   // (K)
  std::int8_t* codes[3];  // (R, K) or null
  T* code_values[3];      // (R, K) the codes as numbers, or null
  float* largest[3];      // (R) max(max|y|, 1e-5): the row's scale is largest / 127
  float* outer_rstd;      // (R)
  float* inner_rstd;      // (R)
  unsigned* saturated;    // adds the number of codes at +-127 of all projections; or null
};
template <class T>
void norm_quant(const Launch& l, const NormQuant<T>& a);

template <class T>
struct NormQuantBackward {
  idx rows, width;
  const float* x;  // (R, K) as in the forward
  const T* add;    // (R, K) or null, as in the forward
  const float* outer;
  int projections;
  const float* gain[3];
  const float* largest[3];
  const float* outer_rstd;
  const float* inner_rstd;
  const T* dy[3];           // (R, K) products dy' * t, still to be scaled by w_scale / x_scale
  const float* w_scale[3];  // on the device, one number each
  float* dx;                // (R, K) added to, or overwritten when `first`
  bool first;
  const float* next_largest;  // (R) of the BitLinear that dx is the output gradient of, or null
  T* dx_scaled;               // (R, K) dx * next_largest / 127, or null
  Fp8Rows dx_fp8;             // dx_scaled in e4m3, if its values are not null
  float* partial;             // (blocks, (projections + 1) * K), see column_blocks
  float* douter;              // (K)
  float* dgain[3];            // (K)
  bool accumulate;            // add to douter and dgain
};
template <class T>
void norm_quant_backward(const Launch& l, const NormQuantBackward<T>& a);

// ---- recurrence (ops/mlgru) ----
// Long sequences are cut into segments of at least so many steps. Both launchers need scratch of
// 3 B M max(1, T / kScanSegment) floats.
inline constexpr idx kScanSegment = 256;
template <class T>
struct Scan {
  idx batch, length, width;
  const T* i_pre;            // (B, T, M)
  const T* f_pre;            // (B, T, M)
  const float* lower_bound;  // (M) or null
  const std::uint8_t* mask;  // (B, T) or null
  T* h;                      // (B, T, M)
  float* scratch;
};
template <class T>
void scan(const Launch& l, const Scan<T>& a);

template <class T>
struct ScanBackward {
  idx batch, length, width;
  T* i_pre;  // (B, T, M); replaced by its gradient * i_largest / 127
  T* f_pre;  // (B, T, M); replaced by its gradient * f_largest / 127
  const float* lower_bound;
  const std::uint8_t* mask;
  const T* h;              // (B, T, M)
  const T* dh;             // (B, T, M)
  const float* i_largest;  // (B T)
  const float* f_largest;  // (B T)
  float* scratch;
  float* d_lower_bound;  // (M) overwritten, or null
};
template <class T>
void scan_backward(const Launch& l, const ScanBackward<T>& a);

// ---- output gate + quantisation (ops/gated_norm, ops/rmsnorm_quant without outer norm) ----
template <class T>
struct GatedQuant {
  idx rows, width;
  const T* g;         // (R, M)
  const T* h;         // (R, M)
  const float* gain;  // (M) of the gated norm
  float eps;
  const float* inner_gain;  // (M)
  std::int8_t* codes;       // (R, M)
  float* largest;           // (R)
  float* g_rstd;            // (R)
  float* inner_rstd;        // (R)
  unsigned* saturated;
};
template <class T>
void gated_quant(const Launch& l, const GatedQuant<T>& a);

template <class T>
struct GatedQuantBackward {
  idx rows, width;
  T* g;        // (R, M); replaced by its gradient * g_largest / 127
  const T* h;  // (R, M)
  const float* gain;
  const float* inner_gain;
  const float* largest;
  const float* g_rstd;
  const float* inner_rstd;
  const float* g_largest;  // (R) of the g projection's input
  T* d_o;                  // (R, M) product dy' * t; replaced by the codes of o as numbers
  const float* w_scale;
  T* dh;           // (R, M) overwritten
  Fp8Rows g_fp8;   // g's gradient as written, in e4m3, if its values are not null
  float* partial;  // (blocks, 2 M)
  float* dgain;
  float* dinner_gain;
  bool accumulate;
};
template <class T>
void gated_quant_backward(const Launch& l, const GatedQuantBackward<T>& a);

// ---- SwiGLU + quantisation (ops/swiglu, ops/rmsnorm_quant without outer norm) ----
template <class T>
struct SwigluQuant {
  idx rows, width;    // R, F
  const T* pq;        // (R, 2F)
  const float* gain;  // (F)
  std::int8_t* codes;
  float* largest;
  float* rstd;
  unsigned* saturated;
};
template <class T>
void swiglu_quant(const Launch& l, const SwigluQuant<T>& a);

template <class T>
struct SwigluQuantBackward {
  idx rows, width;
  T* pq;  // (R, 2F); replaced by its gradient * v_largest / 127
  const float* gain;
  const float* largest;
  const float* rstd;
  const float* v_largest;  // (R) of the gate projection's input
  T* dz;                   // (R, F) product dy' * t; replaced by the codes of z as numbers
  const float* w_scale;
  Fp8Rows pq_fp8;  // the gradient as written, in e4m3, if its values are not null
  float* partial;  // (blocks, F)
  float* dgain;
  bool accumulate;
};
template <class T>
void swiglu_quant_backward(const Launch& l, const SwigluQuantBackward<T>& a);

// Floats that `partial` of the three row backwards must hold for rows of up to `width` elements and
// `sums` sums each.
idx partial_floats(idx rows, idx width, int sums, int multiprocessors);

// ---- embedding (ops/embedding) ----
void embedding(const Launch& l, idx rows, idx width, const std::int32_t* ids, const float* table,
               float* x);
// Rows grouped by id, made on the host: rows of id k of `ids` are order[start[k] .. start[k + 1]),
// ascending.
struct RowsById {
  const std::int32_t* count;  // number of different ids, on the device
  const std::int32_t* ids;    // (R)
  const std::int32_t* start;  // (R + 1)
  const std::int32_t* order;  // (R)
};
void embedding_backward(const Launch& l, idx rows, idx width, const RowsById& by_id,
                        const float* dx, std::int32_t padding, float* dtable);

// ---- classifier (ops/cross_entropy) ----
// With a gradient, logits := (softmax - onehot) * grad_scale * largest[r] / 127.
template <class T>
void cross_entropy(const Launch& l, idx rows, idx vocab, T* logits, const std::int32_t* labels,
                   bool with_gradient, float grad_scale, const float* largest, float* nll);
// total := (accumulate ? total : 0) + sum of nll over rows.
void sum_losses(const Launch& l, idx rows, const float* nll, bool accumulate, double* total);

// ---- products ----
// t as numbers of type T.
template <class T>
void expand_codes(const Launch& l, idx n, const std::int8_t* codes, T* values);
// The transpose of codes (out, in) in e4m3: (in, out). Widths are multiples of 16.
void transpose_codes(const Launch& l, idx out, idx in, const std::int8_t* codes, e4m3* values);
// Rows of a kernel that does not see whole rows, in e4m3. Widths are multiples of 8.
void quantize_rows(const Launch& l, idx rows, idx width, const bf16* x, const Fp8Rows& y);
// y = sums * largest[row] / 127 * *w_scale.
template <class T>
void scale_products(const Launch& l, idx rows, idx width, const float* sums, const float* largest,
                    const float* w_scale, T* y);

// ---- parameters: ternary weights, lower bounds, AdamW ----
// A run of neighbouring parameters that one block handles.
struct Chunk {
  idx begin;   // in flat storage
  int count;   // at most kChunk
  int matrix;  // index of the ternary matrix it belongs to, or -1
  int decay;   // 1: weight decay applies
};
inline constexpr int kChunk = 16384;
struct MatrixChunks {
  int first, count;  // chunks of one matrix
  double elements;
};
struct ParamPlan {
  const Chunk* chunks;
  int chunk_count;
  const MatrixChunks* matrices;
  int matrix_count;
};
// sums[c] = sum of |w| of chunk c.
void magnitude_sums(const Launch& l, const ParamPlan& p, const float* w, double* sums);
// scales[m] = max(mean |w|, 1e-5) of each matrix from sums; then codes, where w are.
void ternarize(const Launch& l, const ParamPlan& p, const float* w, const double* sums,
               float* scales, std::int8_t* codes);
void lower_bounds(const Launch& l, idx layers, idx width, const float* raw, float* bound);
void lower_bounds_backward(const Launch& l, idx layers, idx width, const float* raw,
                           const float* dbound, float* draw, bool accumulate);

// norm := Euclidean norm of all gradients; sums: one double a chunk.
void gradient_norm(const Launch& l, const ParamPlan& p, const float* g, double* sums, double* norm);
struct AdamWStep {
  float keep_decayed, keep;  // 1 - lr * decay, and 1
  float beta1, one_less_beta1, beta2, one_less_beta2;
  float root_correction, eps, step_size;
  float clip;  // largest norm, 0: none
};
// step and norm lie on the device. Nothing changes if the norm is not finite. sums as in
// magnitude_sums, of the new weights. M: type of the stored moments, float or bf16 (rounded to
// nearest; the arithmetic is float32).
template <class M>
void adamw(const Launch& l, const ParamPlan& p, const AdamWStep* step, const double* norm,
           const float* g, float* w, M* m, M* v, double* sums);

// ---- sums over rows ----
// dst[n][k] (+)= sum over p of partial[(p * count + n) * width + k], in an order fixed by `parts`.
struct SumTargets {
  int count;  // 1..4
  float* dst[4];
};
void sum_partials(const Launch& l, idx parts, idx width, const float* partial,
                  const SumTargets& targets, bool accumulate);

}  // namespace mmfree::cuda
