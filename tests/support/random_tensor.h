#pragma once
// Random test data. The seed is fixed, printed with the tests' output, and MMFREE_TEST_SEED
// overrides it.
#include <cstdint>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree::test {

std::uint64_t test_seed();

// A source of tensors; every call gives new values, the same ones in every run with the same seed.
class Random {
 public:
  explicit Random(std::uint64_t stream = 0) : stream_(stream) {}
  double uniform();  // in (0, 1)
  double normal();
  idx below(idx n);  // in [0, n)
  std::vector<float> normals(idx n, double deviation = 1, double mean = 0);
  std::vector<double> normals_f64(idx n, double deviation = 1, double mean = 0);
  std::vector<std::int32_t> ids(idx n, idx vocab);
  std::vector<std::int8_t> trits(idx n);

 private:
  std::uint64_t stream_;
  std::uint64_t next_ = 0;
};

}  // namespace mmfree::test
