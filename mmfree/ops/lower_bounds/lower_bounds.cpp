#include "mmfree/ops/lower_bounds/lower_bounds.h"

#include <cmath>
#include <vector>

namespace mmfree {
namespace {

// Softmax over layers of one channel. The tables are small (L x D, once per step): double costs
// nothing here.
void softmax_column(idx layers, idx width, const float* raw, idx channel, std::vector<double>& s) {
  double largest = static_cast<double>(raw[channel]);
  for (idx l = 1; l < layers; ++l)
    largest = std::fmax(largest, static_cast<double>(raw[l * width + channel]));
  double sum = 0;
  for (idx l = 0; l < layers; ++l) {
    const auto i = static_cast<std::size_t>(l);
    s[i] = std::exp(static_cast<double>(raw[l * width + channel]) - largest);
    sum += s[i];
  }
  for (double& v : s) v /= sum;
}

}  // namespace

void lower_bounds(idx layers, idx width, const float* raw, float* bound) {
  std::vector<double> s(static_cast<std::size_t>(layers));
  for (idx c = 0; c < width; ++c) {
    softmax_column(layers, width, raw, c, s);
    double sum = 0;
    for (idx l = 0; l < layers; ++l) {
      if (l > 0) sum += s[static_cast<std::size_t>(l)];
      bound[l * width + c] = static_cast<float>(sum);
    }
  }
}

void lower_bounds_backward(idx layers, idx width, const float* raw, const float* dbound,
                           float* draw) {
  std::vector<double> s(static_cast<std::size_t>(layers));
  std::vector<double> ds(static_cast<std::size_t>(layers));
  for (idx c = 0; c < width; ++c) {
    softmax_column(layers, width, raw, c, s);
    // bound[l] holds s[1..l], so s[k] (k >= 1) gets the gradients of all bounds from k on; s[0]
    // appears in none.
    double tail = 0;
    double dot = 0;
    for (idx l = layers - 1; l >= 0; --l) {
      const auto i = static_cast<std::size_t>(l);
      if (l > 0) tail += static_cast<double>(dbound[l * width + c]);
      ds[i] = l > 0 ? tail : 0.0;
      dot += ds[i] * s[i];
    }
    for (idx l = 0; l < layers; ++l) {
      const auto i = static_cast<std::size_t>(l);
      draw[l * width + c] += static_cast<float>(s[i] * (ds[i] - dot));
    }
  }
}

}  // namespace mmfree
