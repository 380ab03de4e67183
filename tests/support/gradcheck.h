#pragma once
// Central differences in double precision.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace mmfree::test {

// d f() / d x[i] for every i; f reads x. The fourth-order formula with steps h and 2h: error about
// h^4.
template <class F>
std::vector<double> central_differences(std::vector<double>& x, const F& f, double h = 1e-3) {
  std::vector<double> slope(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    const auto value = [&](double offset) {
      x[i] = at + offset;
      return static_cast<double>(f());
    };
    const double near = value(h) - value(-h);
    const double far = value(2 * h) - value(-2 * h);
    x[i] = at;
    slope[i] = (8 * near - far) / (12 * h);
  }
  return slope;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace mmfree::test
