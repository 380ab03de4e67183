#pragma once
// Distances between tensors. All of them count a NaN or an infinity on one side alone as infinitely
// far away.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

namespace mmfree::test {

// |a - b| / |b| in the Euclidean norm; |a - b| itself where b is zero. Infinite when the sizes
// differ.
template <class A, class B>
double relative_l2(const A& a, const B& b) {
  if (std::size(a) != std::size(b)) return std::numeric_limits<double>::infinity();
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < std::size(a); ++i) {
    const double x = static_cast<double>(a[i]);
    const double y = static_cast<double>(b[i]);
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  const double distance = std::sqrt(norm > 0 ? difference / norm : difference);
  return std::isnan(distance) ? std::numeric_limits<double>::infinity() : distance;
}

template <class A, class B>
double max_abs_difference(const A& a, const B& b) {
  if (std::size(a) != std::size(b)) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < std::size(a); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (std::isnan(d)) return std::numeric_limits<double>::infinity();
    if (d > largest) largest = d;
  }
  return largest;
}

// The same bytes: -0 differs from 0, a NaN equals itself.
template <class A, class B>
bool same_bits(const A& a, const B& b) {
  static_assert(sizeof(*std::data(a)) == sizeof(*std::data(b)));
  if (std::size(a) != std::size(b)) return false;
  return std::size(a) == 0 ||
         std::memcmp(std::data(a), std::data(b), std::size(a) * sizeof(*std::data(a))) == 0;
}

template <class To, class From>
std::vector<To> convert(const std::vector<From>& v) {
  std::vector<To> result;
  result.reserve(v.size());
  for (const From& x : v) result.push_back(static_cast<To>(x));
  return result;
}

}  // namespace mmfree::test
