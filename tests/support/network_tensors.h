#pragma once
// Between the network's flat storage and tensors by name.
#include <cstring>
#include <vector>

#include "mmfree/model/activations.h"
#include "mmfree/model/matmulfree.h"
#include "tests/support/reference_network.h"

namespace mmfree::test {

inline Tensors<double> tensors(const std::vector<ParamInfo>& table, const float* storage) {
  Tensors<double> result;
  for (const ParamInfo& p : table)
    result[p.name].assign(storage + p.offset, storage + p.offset + p.size());
  return result;
}

template <class Real>
void set_params(Network& net, const Tensors<Real>& values) {
  for (const ParamInfo& p : net.table) {
    const std::vector<Real>& v = values.at(p.name);
    for (idx i = 0; i < p.size(); ++i)
      net.values[p.offset + i] = static_cast<float>(v[static_cast<std::size_t>(i)]);
  }
}

inline std::vector<float> vector_of(const Buffer<float>& b, idx n) {
  return std::vector<float>(b.begin(), b.begin() + n);
}

// Rows of codes without their padding.
inline std::vector<std::int8_t> unpadded(const CodeBuffer& c, idx rows, idx width) {
  std::vector<std::int8_t> q;
  for (idx r = 0; r < rows; ++r)
    for (idx k = 0; k < width; ++k) q.push_back(c.q[r * code_stride(width) + k]);
  return q;
}

// The logits of the last forward_loss, which keeps all of them when there are few rows.
inline std::vector<float> last_logits(const Network& net) {
  const idx rows = net.acts->rows;
  if (rows > kHeadRows) return {};
  return vector_of(net.acts->logits, rows * net.config.vocab_size);
}

}  // namespace mmfree::test
