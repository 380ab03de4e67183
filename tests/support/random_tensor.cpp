#include "tests/support/random_tensor.h"

#include <cstdio>
#include <cstdlib>

#include "mmfree/core/rng.h"

namespace mmfree::test {

std::uint64_t test_seed() {
  static const std::uint64_t seed = [] {
    const char* text = std::getenv("MMFREE_TEST_SEED");
    const std::uint64_t value = text != nullptr ? std::strtoull(text, nullptr, 0) : 20240602U;
    std::printf("test seed %llu (MMFREE_TEST_SEED overrides)\n",
                static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

double Random::uniform() {
  return random_uniform(test_seed(), stream_, next_++);
}

double Random::normal() {
  return random_normal(test_seed(), stream_, next_++);
}

idx Random::below(idx n) {
  return static_cast<idx>(uniform() * static_cast<double>(n));
}

std::vector<double> Random::normals_f64(idx n, double deviation, double mean) {
  std::vector<double> v(static_cast<std::size_t>(n));
  for (double& x : v) x = mean + deviation * normal();
  return v;
}

std::vector<float> Random::normals(idx n, double deviation, double mean) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = static_cast<float>(mean + deviation * normal());
  return v;
}

std::vector<std::int32_t> Random::ids(idx n, idx vocab) {
  std::vector<std::int32_t> v(static_cast<std::size_t>(n));
  for (std::int32_t& x : v) x = static_cast<std::int32_t>(below(vocab));
  return v;
}

std::vector<std::int8_t> Random::trits(idx n) {
  std::vector<std::int8_t> v(static_cast<std::size_t>(n));
  for (std::int8_t& x : v) x = static_cast<std::int8_t>(below(3) - 1);
  return v;
}

}  // namespace mmfree::test
