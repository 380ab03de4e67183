#include "mmfree/cuda/device_params.h"

#include <algorithm>

namespace mmfree::cuda {

DeviceParams::DeviceParams(const MatmulFreeConfig& c, Moments stored)
    : config(c), moments(stored), table(matmulfree_params(c)), size(storage_size(table)) {
  // Ternary matrices are numbered in the order of the table: six a layer, then the head. A tied
  // head is the embedding table, which comes first in storage and last in number.
  const int head_number = static_cast<int>(6 * c.num_hidden_layers);
  matrices_.resize(static_cast<std::size_t>(head_number) + 1);
  int next = 0;
  for (const ParamInfo& info : table) {
    int matrix = -1;
    if (info.ternary) matrix = next++;
    if (c.tie_word_embeddings && info.name == "model.embeddings.weight") matrix = head_number;
    const int first = static_cast<int>(chunks_.size());
    for (idx k = 0; k < info.size(); k += kChunk)
      chunks_.push_back({info.offset + k, static_cast<int>(std::min<idx>(kChunk, info.size() - k)),
                         matrix, info.decay ? 1 : 0});
    if (matrix >= 0)
      matrices_[static_cast<std::size_t>(matrix)] = {
          first, static_cast<int>(chunks_.size()) - first, static_cast<double>(info.size())};
  }
}

void DeviceParams::take(Arena& arena) {
  values = arena.take<float>(size);
  grads = arena.take<float>(size);
  if (moments != Moments::none) {
    m = arena.take<char>(static_cast<idx>(moment_bytes()));
    v = arena.take<char>(static_cast<idx>(moment_bytes()));
  }
  codes = arena.take<std::int8_t>(size);
  scales = arena.take<float>(static_cast<idx>(matrices_.size()));
  const idx bound_count = config.num_hidden_layers * config.hidden_size;
  if (config.use_lower_bound) {
    bounds = arena.take<float>(bound_count);
    d_bounds = arena.take<float>(bound_count);
  }
  device_chunks_ = arena.take<Chunk>(static_cast<idx>(chunks_.size()));
  device_matrices_ = arena.take<MatrixChunks>(static_cast<idx>(matrices_.size()));
  sums_ = arena.take<double>(static_cast<idx>(chunks_.size()));
  norm = arena.take<double>(1);
  step_ = arena.take<AdamWStep>(1);
  plan_ = {device_chunks_, static_cast<int>(chunks_.size()), device_matrices_,
           static_cast<int>(matrices_.size())};
  view();
}

void DeviceParams::view() {
  p = view_params(table, config, values);
  d = view_params(table, config, grads);
  const idx width = config.hidden_size, mixer = config.mixer_width(), mlp = config.mlp_width();
  layers.clear();
  int matrix = 0;
  for (const LayerParams& l : p.layers) {
    const int n = matrix;
    layers.push_back({linear(l.i_w, n, mixer, width), linear(l.f_w, n + 1, mixer, width),
                      linear(l.g_w, n + 2, mixer, width), linear(l.o_w, n + 3, width, mixer),
                      linear(l.gate_w, n + 4, 2 * mlp, width),
                      linear(l.down_w, n + 5, width, mlp)});
    matrix += 6;
  }
  head = linear(p.head_w, matrix, config.vocab_size, width);
}

Linear DeviceParams::linear(const float* w, int matrix, idx out, idx in) const {
  const idx offset = w - values;
  return {out, in, codes + offset, scales + matrix, grads + offset};
}

void DeviceParams::fill_tables(cudaStream_t stream) {
  const auto copy = [&](void* to, const void* from, std::size_t bytes) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream),
          "copying the parameter table to the GPU");
  };
  copy(device_chunks_, chunks_.data(), chunks_.size() * sizeof(Chunk));
  copy(device_matrices_, matrices_.data(), matrices_.size() * sizeof(MatrixChunks));
  // Padding between parameters is never touched afterwards.
  const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
  check(cudaMemsetAsync(values, 0, bytes, stream), "clearing GPU memory");
  check(cudaMemsetAsync(grads, 0, bytes, stream), "clearing GPU memory");
  check(cudaMemsetAsync(codes, 0, static_cast<std::size_t>(size), stream), "clearing GPU memory");
  if (moments != Moments::none) {
    check(cudaMemsetAsync(m, 0, moment_bytes(), stream), "clearing GPU memory");
    check(cudaMemsetAsync(v, 0, moment_bytes(), stream), "clearing GPU memory");
  }
  check(cudaStreamSynchronize(stream), "copying the parameter table to the GPU");
}

void DeviceParams::ternarize_from_sums(const Launch& l) {
  cuda::ternarize(l, plan_, values, sums_, scales, codes);
  if (bounds != nullptr)
    lower_bounds(l, config.num_hidden_layers, config.hidden_size, p.lower_bounds, bounds);
}

void DeviceParams::ternarize(const Launch& l) {
  magnitude_sums(l, plan_, values, sums_);
  ternarize_from_sums(l);
}

void DeviceParams::update(const Launch& l, const AdamWStep& step) {
  // The source is pageable, so the copy has taken it when the call returns.
  check(cudaMemcpyAsync(step_, &step, sizeof step, cudaMemcpyHostToDevice, l.stream),
        "copying the optimizer's numbers to the GPU");
  gradient_norm(l, plan_, grads, sums_, norm);
  if (moments == Moments::half) {
    adamw(l, plan_, step_, norm, grads, values, static_cast<bf16*>(m), static_cast<bf16*>(v),
          sums_);
  } else {
    adamw(l, plan_, step_, norm, grads, values, static_cast<float*>(m), static_cast<float*>(v),
          sums_);
  }
  ternarize_from_sums(l);
}

std::size_t DeviceParams::moment_bytes() const {
  return static_cast<std::size_t>(size) * (moments == Moments::half ? sizeof(bf16) : sizeof(float));
}

void DeviceParams::clear_embedding_gradient(cudaStream_t stream) {
  check(
      cudaMemsetAsync(
          d.embedding, 0,
          static_cast<std::size_t>(config.vocab_size * config.hidden_size) * sizeof(float), stream),
      "clearing the embedding's gradient");
}

}  // namespace mmfree::cuda
