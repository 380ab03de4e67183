#include "mmfree/cuda/network.h"

#include <algorithm>

#include "mmfree/core/error.h"

namespace mmfree::cuda {
namespace {

constexpr idx kHeadLogits = idx{1} << 28;  // that exist at one time
constexpr idx kSumFloats = idx{1} << 24;   // of products before scaling
// Gradients that leave the scan are converted in a pass of their own, which pays from this width.
constexpr idx kWorthPass = 1536;

// Rows whose logits exist at one time.
idx head_rows(idx vocab) {
  return std::max<idx>(256, kHeadLogits / vocab / 256 * 256);
}

std::size_t at(idx i) {
  return static_cast<std::size_t>(i);
}

RowStats take_stats(Arena& arena, idx rows, int projections) {
  RowStats s{};
  s.outer_rstd = arena.take<float>(rows);
  s.inner_rstd = arena.take<float>(rows);
  for (int p = 0; p < projections; ++p) s.largest[p] = arena.take<float>(rows);
  return s;
}

}  // namespace

template <class T>
DeviceNetwork<T>::DeviceNetwork(DeviceParams& params, Products& products, const Launch& launch,
                                int compute_capability, bool int8_products, bool fp8_backward,
                                idx rows)
    : w_(params),
      products_(products),
      l_(launch),
      capability_(compute_capability),
      int8_(int8_products && sizeof(T) == 2),
      fp8_(fp8_backward && sizeof(T) == 2),
      rows_(rows) {}

template <class T>
idx DeviceNetwork<T>::pq_bytes(const MatmulFreeConfig& c, idx rows) {
  return rows * 2 * c.mlp_width() * static_cast<idx>(sizeof(T));
}

template <class T>
idx DeviceNetwork<T>::h_bytes(const MatmulFreeConfig& c, idx rows) {
  return rows * c.mixer_width() * static_cast<idx>(sizeof(T));
}

template <class T>
idx DeviceNetwork<T>::codes_bytes(const MatmulFreeConfig& c, idx rows) {
  return rows * 4 * c.hidden_size * static_cast<idx>(sizeof(T));
}

template <class T>
bool DeviceNetwork<T>::fp8_fits(const MatmulFreeConfig& c, int compute_capability) {
  for (const idx width : {c.hidden_size, c.mixer_width(), c.mlp_width()})
    if (!byte_product_fits(compute_capability, width, width) || width % 16 != 0) return false;
  return sizeof(T) == 2;
}

template <class T>
void DeviceNetwork<T>::take(Arena& arena, const Keep& keep) {
  const MatmulFreeConfig& c = w_.config;
  const idx d = c.hidden_size, m = c.mixer_width(), f = c.mlp_width(), v = c.vocab_size;
  layers_.clear();
  for (idx l = 0; l < c.num_hidden_layers; ++l) {
    LayerStore<T> s{};
    s.x = arena.take<float>(rows_ * d);
    s.i_pre = arena.take<T>(rows_ * m);
    s.f_pre = arena.take<T>(rows_ * m);
    s.g = arena.take<T>(rows_ * m);
    s.y_o = arena.take<T>(rows_ * d);
    if (l < keep.pq) s.pq = arena.take<T>(rows_ * 2 * f);
    if (l < keep.h) s.h = arena.take<T>(rows_ * m);
    if (l < keep.codes)
      for (T*& values : s.code_values) values = arena.take<T>(rows_ * d);
    s.attn = take_stats(arena, rows_, 3);
    s.o = take_stats(arena, rows_, 1);
    s.mlp = take_stats(arena, rows_, 1);
    s.z = take_stats(arena, rows_, 1);
    layers_.push_back(s);
  }
  head_stats_ = take_stats(arena, rows_, 1);
  x_ = arena.take<float>(rows_ * d);
  dx_ = arena.take<float>(rows_ * d);
  dx_scaled_ = arena.take<T>(rows_ * d);
  nll_ = arena.take<float>(rows_);
  weights_ = arena.take<T>(std::max({m * d, 2 * f * d, v * d}));
  all_weights_ = keep.weights ? arena.take<T>(w_.size) : nullptr;
  idx partial = partial_floats(rows_, d, 4, l_.multiprocessors);
  partial = std::max(partial, partial_floats(rows_, m, 2, l_.multiprocessors));
  partial = std::max(partial, partial_floats(rows_, f, 1, l_.multiprocessors));
  partial = std::max(partial, 3 * rows_ * m / std::min(rows_, kScanSegment));
  partial = std::max(partial, rows_ * m);  // sequences may be one token long
  partial_ = arena.take<float>(partial);
  code_values_[0] = arena.take<T>(rows_ * d);
  du_[0] = arena.take<T>(rows_ * d);

  for (std::int8_t*& codes : codes_) codes = arena.take<std::int8_t>(rows_ * d);
  wide_codes_ = arena.take<std::int8_t>(rows_ * std::max(m, f));
  if (!int8_ || !byte_product_fits(capability_, d, m) || !byte_product_fits(capability_, f, d) ||
      !byte_product_fits(capability_, d, v)) {
    sums_ = arena.take<float>(std::max(kSumFloats, std::max({m, d, 2 * f, v})));
    product_values_ = arena.take<T>(std::max(kSumFloats, std::max({m, d, f})));
  }
  y_ = arena.take<T>(rows_ * d);
  if (fp8_) {
    dx_fp8_ = {arena.take<e4m3>(rows_ * d), arena.take<float>(rows_)};
    pq_fp8_.largest = arena.take<float>(rows_);
    for (Fp8Rows& g : mixer_fp8_) g.largest = arena.take<float>(rows_);
  }

  // The three stages of a step share the rest: the classifier, the MLP and the mixer.
  const std::size_t shared = arena.mark();
  logits_ = arena.take<T>(std::min(rows_, head_rows(v)) * v);
  const std::size_t after_head = arena.mark();
  arena.rewind(shared);
  pq_ = arena.take<T>(rows_ * 2 * f);
  dz_ = arena.take<T>(rows_ * f);
  if (fp8_) pq_fp8_.values = arena.take<e4m3>(rows_ * 2 * f);
  const std::size_t after_mlp = arena.mark();
  arena.rewind(shared);
  for (int p = 1; p < 3; ++p) {
    code_values_[p] = arena.take<T>(rows_ * d);
    du_[p] = arena.take<T>(rows_ * d);
  }
  h_ = arena.take<T>(rows_ * m);
  dh_ = arena.take<T>(rows_ * m);
  d_o_ = arena.take<T>(rows_ * m);
  if (fp8_)
    for (int p = m >= kWorthPass ? 0 : 2; p < 3; ++p)
      mixer_fp8_[p].values = arena.take<e4m3>(rows_ * m);
  arena.rewind(std::max({arena.mark(), after_head, after_mlp}));
}

template <class T>
const float* DeviceNetwork<T>::bound(std::size_t layer) const {
  return w_.bounds == nullptr || layer == 0
             ? nullptr
             : w_.bounds + static_cast<idx>(layer) * w_.config.hidden_size;
}

// ---- products ----

template <class T>
void DeviceNetwork<T>::product(idx rows, const std::int8_t* x, const float* largest,
                               const Linear& w, T* y) {
  if constexpr (sizeof(T) == 2) {
    if (int8_ && byte_product_fits(capability_, w.in, w.out))
      return int8_product(l_, rows, w.in, w.out, x, w.codes, largest, w.scale, y);
  }
  // The same sums in floating point: they stay below 2^24 (checked when the network is made).
  expand_codes(l_, w.out * w.in, w.codes, weights_);
  const idx step = std::max<idx>(1, kSumFloats / std::max(w.out, w.in));
  for (idx r = 0; r < rows; r += step) {
    const idx n = std::min(step, rows - r);
    expand_codes(l_, n * w.in, x + r * w.in, product_values_);
    products_.multiply<T>(l_.stream, n, w.out, w.in, {product_values_, false}, {weights_, true},
                          sums_, false);
    scale_products(l_, n, w.out, sums_, largest + r, w.scale, y + r * w.out);
  }
}

template <class T>
void DeviceNetwork<T>::input_gradient(idx rows, const T* dy, const Fp8Rows& dy_fp8, const Linear& w,
                                      T* dx) {
  if constexpr (sizeof(T) == 2) {
    if (dy_fp8.values != nullptr) {
      auto* weights = reinterpret_cast<e4m3*>(weights_);
      transpose_codes(l_, w.out, w.in, w.codes, weights);
      return fp8_product(l_, rows, w.out, w.in, dy_fp8.values, weights, dy_fp8.largest, dx);
    }
  }
  const T* weights = weights_;
  if (all_weights_ != nullptr) {
    weights = all_weights_ + (w.codes - w_.codes);
  } else {
    expand_codes(l_, w.out * w.in, w.codes, weights_);
  }
  products_.multiply<T>(l_.stream, rows, w.in, w.out, {dy, false}, {weights, false}, dx, false);
}

template <class T>
void DeviceNetwork<T>::weight_gradient(idx rows, const T* dy, const Linear& w, const T* code_values,
                                       bool accumulate) {
  products_.multiply<T>(l_.stream, w.out, w.in, rows, {dy, true}, {code_values, false}, w.dw,
                        accumulate);
}

// ---- forward ----

template <class T>
NormQuant<T> DeviceNetwork<T>::attn_norm(std::size_t layer, idx rows) const {
  const LayerStore<T>& s = layers_[layer];
  const LayerParams& p = w_.p.layers[layer];
  NormQuant<T> a{};
  a.rows = rows;
  a.width = w_.config.hidden_size;
  a.x = s.x;
  a.outer = p.attn_norm;
  a.outer_eps = static_cast<float>(w_.config.rms_norm_eps);
  a.projections = 3;
  const float* gain[3] = {p.i_norm, p.f_norm, p.g_in_norm};
  for (int k = 0; k < 3; ++k) {
    a.gain[k] = gain[k];
    a.largest[k] = s.attn.largest[k];
  }
  a.outer_rstd = s.attn.outer_rstd;
  a.inner_rstd = s.attn.inner_rstd;
  return a;
}

template <class T>
NormQuant<T> DeviceNetwork<T>::mlp_norm(std::size_t layer, idx rows) const {
  const LayerStore<T>& s = layers_[layer];
  const LayerParams& p = w_.p.layers[layer];
  NormQuant<T> a{};
  a.rows = rows;
  a.width = w_.config.hidden_size;
  a.x = s.x;
  a.add = s.y_o;
  a.outer = p.mlp_norm;
  a.outer_eps = static_cast<float>(w_.config.rms_norm_eps);
  a.projections = 1;
  a.gain[0] = p.gate_norm;
  a.largest[0] = s.mlp.largest[0];
  a.outer_rstd = s.mlp.outer_rstd;
  a.inner_rstd = s.mlp.inner_rstd;
  return a;
}

template <class T>
void DeviceNetwork<T>::body(const DeviceBatch& b, bool with_gradient, unsigned* saturated) {
  const idx rows = b.batch * b.length;
  const idx d = w_.config.hidden_size, m = w_.config.mixer_width(), f = w_.config.mlp_width();
  const float eps = static_cast<float>(w_.config.rms_norm_eps);
  embedding(l_, rows, d, b.inputs, w_.p.embedding, layers_[0].x);
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const LayerStore<T>& s = layers_[l];
    const LayerParams& p = w_.p.layers[l];
    const LayerLinears& w = w_.layers[l];
    const auto counter = [&](std::size_t k) {
      return saturated == nullptr ? nullptr : saturated + 4 * l + k;
    };
    NormQuant<T> attn = attn_norm(l, rows);
    if (l > 0) {  // x = x_mid + down of the layer below
      attn.x = x_;
      attn.add = y_;
      attn.sum = s.x;
    }
    for (int k = 0; k < 3; ++k) {
      attn.codes[k] = codes_[k];
      if (with_gradient) attn.code_values[k] = s.code_values[k];
    }
    attn.saturated = counter(0);
    norm_quant(l_, attn);
    product(rows, codes_[0], s.attn.largest[0], w.i, s.i_pre);
    product(rows, codes_[1], s.attn.largest[1], w.f, s.f_pre);
    product(rows, codes_[2], s.attn.largest[2], w.g, s.g);
    T* h = s.h != nullptr ? s.h : h_;
    scan(l_, Scan<T>{b.batch, b.length, m, s.i_pre, s.f_pre, bound(l), b.mask, h, partial_});
    gated_quant(l_, GatedQuant<T>{rows, m, s.g, h, p.g_norm, eps, p.o_norm, wide_codes_,
                                  s.o.largest[0], s.o.outer_rstd, s.o.inner_rstd, counter(1)});
    product(rows, wide_codes_, s.o.largest[0], w.o, s.y_o);

    NormQuant<T> mlp = mlp_norm(l, rows);
    mlp.sum = x_;
    mlp.codes[0] = codes_[0];
    if (with_gradient) mlp.code_values[0] = s.code_values[3];
    mlp.saturated = counter(2);
    norm_quant(l_, mlp);
    T* pq = s.pq != nullptr ? s.pq : pq_;
    product(rows, codes_[0], s.mlp.largest[0], w.gate, pq);
    swiglu_quant(l_, SwigluQuant<T>{rows, f, pq, p.down_norm, wide_codes_, s.z.largest[0],
                                    s.z.inner_rstd, counter(3)});
    product(rows, wide_codes_, s.z.largest[0], w.down, y_);
  }
}

template <class T>
void DeviceNetwork<T>::head(const DeviceBatch& b, bool with_gradient, float grad_scale, bool first,
                            double* total) {
  const idx rows = b.batch * b.length;
  const idx d = w_.config.hidden_size, v = w_.config.vocab_size;
  NormQuant<T> a{};
  a.rows = rows;
  a.width = d;
  a.x = x_;
  a.add = y_;
  a.sum = x_;
  a.outer = w_.p.norm;
  a.outer_eps = static_cast<float>(w_.config.rms_norm_eps);
  a.projections = 1;
  a.gain[0] = w_.p.head_norm;
  a.codes[0] = codes_[0];
  a.code_values[0] = with_gradient ? code_values_[0] : nullptr;
  a.largest[0] = head_stats_.largest[0];
  a.outer_rstd = head_stats_.outer_rstd;
  a.inner_rstd = head_stats_.inner_rstd;
  norm_quant(l_, a);
  const float* largest = head_stats_.largest[0];
  const idx step = head_rows(v);
  for (idx r = 0; r < rows; r += step) {
    const idx n = std::min(step, rows - r);
    product(n, codes_[0] + r * d, largest + r, w_.head, logits_);
    cross_entropy(l_, n, v, logits_, b.labels + r, with_gradient, grad_scale, largest + r,
                  nll_ + r);
    if (!with_gradient) continue;
    input_gradient(n, logits_, {}, w_.head, du_[0] + r * d);  // too wide a range for e4m3
    weight_gradient(n, logits_, w_.head, code_values_[0] + r * d, !first || r > 0);
  }
  sum_losses(l_, rows, nll_, with_gradient && !first, total);
  if (!with_gradient) return;
  NormQuantBackward<T> g{};
  g.rows = rows;
  g.width = d;
  g.x = x_;
  g.outer = w_.p.norm;
  g.projections = 1;
  g.gain[0] = w_.p.head_norm;
  g.largest[0] = largest;
  g.outer_rstd = head_stats_.outer_rstd;
  g.inner_rstd = head_stats_.inner_rstd;
  g.dy[0] = du_[0];
  g.w_scale[0] = w_.head.scale;
  g.dx = dx_;
  g.first = true;
  g.next_largest = layers_.back().z.largest[0];
  g.dx_scaled = dx_scaled_;
  g.dx_fp8 = dx_fp8_;
  g.partial = partial_;
  g.douter = w_.d.norm;
  g.dgain[0] = w_.d.head_norm;
  g.accumulate = !first;
  norm_quant_backward(l_, g);
}

// ---- backward ----

// x_out = x_mid + down(swiglu(gate(norm(x_mid))))
template <class T>
void DeviceNetwork<T>::mlp_backward(std::size_t l, idx rows, bool first) {
  const idx d = w_.config.hidden_size, f = w_.config.mlp_width();
  const LayerStore<T>& s = layers_[l];
  const LayerParams &p = w_.p.layers[l], &g = w_.d.layers[l];
  const LayerLinears& w = w_.layers[l];
  NormQuant<T> again = mlp_norm(l, rows);
  T* pq = s.pq != nullptr ? s.pq : pq_;
  if (s.pq == nullptr) again.codes[0] = codes_[0];
  const T* code_values = s.code_values[3];
  if (code_values == nullptr) code_values = again.code_values[0] = code_values_[0];
  if (again.codes[0] != nullptr || again.code_values[0] != nullptr) norm_quant(l_, again);
  if (s.pq == nullptr) product(rows, codes_[0], s.mlp.largest[0], w.gate, pq);
  input_gradient(rows, dx_scaled_, dx_fp8_, w.down, dz_);
  swiglu_quant_backward(
      l_, SwigluQuantBackward<T>{rows, f, pq, p.down_norm, s.z.largest[0], s.z.inner_rstd,
                                 s.mlp.largest[0], dz_, w.down.scale, pq_fp8_, partial_,
                                 g.down_norm, !first});
  weight_gradient(rows, dx_scaled_, w.down, dz_, !first);  // dz_ now holds the codes of z
  weight_gradient(rows, pq, w.gate, code_values, !first);
  input_gradient(rows, pq, pq_fp8_, w.gate, du_[0]);
  NormQuantBackward<T> a{};
  a.rows = rows;
  a.width = d;
  a.x = s.x;
  a.add = s.y_o;
  a.outer = p.mlp_norm;
  a.projections = 1;
  a.gain[0] = p.gate_norm;
  a.largest[0] = s.mlp.largest[0];
  a.outer_rstd = s.mlp.outer_rstd;
  a.inner_rstd = s.mlp.inner_rstd;
  a.dy[0] = du_[0];
  a.w_scale[0] = w.gate.scale;
  a.dx = dx_;
  a.next_largest = s.o.largest[0];
  a.dx_scaled = dx_scaled_;
  a.dx_fp8 = dx_fp8_;
  a.partial = partial_;
  a.douter = g.mlp_norm;
  a.dgain[0] = g.gate_norm;
  a.accumulate = !first;
  norm_quant_backward(l_, a);
}

// x_mid = x + o(gated_norm(g(norm(x)), mlgru(i(norm(x)), f(norm(x)))))
template <class T>
void DeviceNetwork<T>::mixer_backward(std::size_t l, const DeviceBatch& b, bool first) {
  const idx rows = b.batch * b.length;
  const idx d = w_.config.hidden_size, m = w_.config.mixer_width();
  const LayerStore<T>& s = layers_[l];
  const LayerParams &p = w_.p.layers[l], &g = w_.d.layers[l];
  const LayerLinears& w = w_.layers[l];
  input_gradient(rows, dx_scaled_, dx_fp8_, w.o, d_o_);
  const T* h = s.h;
  if (h == nullptr) {
    scan(l_, Scan<T>{b.batch, b.length, m, s.i_pre, s.f_pre, bound(l), b.mask, h_, partial_});
    h = h_;
  }
  gated_quant_backward(
      l_, GatedQuantBackward<T>{rows, m, s.g, h, p.g_norm, p.o_norm, s.o.largest[0], s.o.outer_rstd,
                                s.o.inner_rstd, s.attn.largest[2], d_o_, w.o.scale, dh_,
                                mixer_fp8_[2], partial_, g.g_norm, g.o_norm, !first});
  weight_gradient(rows, dx_scaled_, w.o, d_o_, !first);  // d_o_ now holds the codes of o
  float* d_bound = bound(l) == nullptr ? nullptr : w_.d_bounds + static_cast<idx>(l) * d;
  scan_backward(l_, ScanBackward<T>{b.batch, b.length, m, s.i_pre, s.f_pre, bound(l), b.mask, h,
                                    dh_, s.attn.largest[0], s.attn.largest[1], partial_, d_bound});
  NormQuant<T> again = attn_norm(l, rows);
  for (int k = 0; k < 3; ++k) again.code_values[k] = code_values_[k];
  const bool kept = s.code_values[0] != nullptr;
  if (!kept) norm_quant(l_, again);

  NormQuantBackward<T> a{};
  const T* dy[3] = {s.i_pre, s.f_pre, s.g};
  const Linear* linear[3] = {&w.i, &w.f, &w.g};
  float* dgain[3] = {g.i_norm, g.f_norm, g.g_in_norm};
  for (int k = 0; k < 3; ++k) {
    if constexpr (sizeof(T) == 2) {
      if (k < 2 && mixer_fp8_[k].values != nullptr)
        quantize_rows(l_, rows, m, dy[k], mixer_fp8_[k]);
    }
    weight_gradient(rows, dy[k], *linear[k], kept ? s.code_values[k] : code_values_[k], !first);
    input_gradient(rows, dy[k], mixer_fp8_[k], *linear[k], du_[k]);
    a.gain[k] = again.gain[k];
    a.largest[k] = s.attn.largest[k];
    a.dy[k] = du_[k];
    a.w_scale[k] = linear[k]->scale;
    a.dgain[k] = dgain[k];
  }
  a.rows = rows;
  a.width = d;
  a.x = s.x;
  a.outer = p.attn_norm;
  a.projections = 3;
  a.outer_rstd = s.attn.outer_rstd;
  a.inner_rstd = s.attn.inner_rstd;
  a.dx = dx_;
  a.next_largest = l > 0 ? layers_[l - 1].z.largest[0] : nullptr;
  a.dx_scaled = l > 0 ? dx_scaled_ : nullptr;
  if (l > 0) a.dx_fp8 = dx_fp8_;
  a.partial = partial_;
  a.douter = g.attn_norm;
  a.accumulate = !first;
  norm_quant_backward(l_, a);
}

template <class T>
void DeviceNetwork<T>::forward(const DeviceBatch& b, double* total, unsigned* saturated) {
  body(b, /*with_gradient=*/false, saturated);
  head(b, /*with_gradient=*/false, 0, /*first=*/true, total);
}

template <class T>
void DeviceNetwork<T>::forward_backward(const DeviceBatch& b, float grad_scale, bool first,
                                        double* total, unsigned* saturated) {
  const MatmulFreeConfig& c = w_.config;
  body(b, /*with_gradient=*/true, saturated);
  if (all_weights_ != nullptr) expand_codes(l_, w_.size, w_.codes, all_weights_);
  // A tied table gets the head's gradient first, which overwrites.
  if (first && !c.tie_word_embeddings) w_.clear_embedding_gradient(l_.stream);
  head(b, /*with_gradient=*/true, grad_scale, first, total);
  for (std::size_t l = layers_.size(); l-- > 0;) {
    mlp_backward(l, b.batch * b.length, first);
    mixer_backward(l, b, first);
  }
  if (w_.bounds != nullptr)
    lower_bounds_backward(l_, c.num_hidden_layers, c.hidden_size, w_.p.lower_bounds, w_.d_bounds,
                          w_.d.lower_bounds, !first);
  embedding_backward(l_, b.batch * b.length, c.hidden_size, b.by_id, dx_,
                     static_cast<std::int32_t>(c.pad_token_id.value_or(-1)), w_.d.embedding);
}

template class DeviceNetwork<float>;
template class DeviceNetwork<bf16>;

}  // namespace mmfree::cuda
