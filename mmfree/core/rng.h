#pragma once
// Counter-based random numbers: a value is a pure function of (seed, stream, index), so any part of
// a sequence can be had on any device, in any order, by any number of threads. Mixing function:
// splitmix64's finaliser, applied twice.
#include <cstdint>

namespace mmfree {

inline std::uint64_t mix64(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// 64 random bits for (seed, stream, index).
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return mix64(mix64(mix64(seed) ^ stream) + index * 0xd1342543de82ef95ULL);
}

// Uniform in (0, 1): 53 bits, never 0 and never 1.
inline double random_uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return (static_cast<double>(random_bits(seed, stream, index) >> 11) + 0.5) * 0x1p-53;
}

// Standard normal (Box-Muller on two uniforms of the same index).
double random_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

}  // namespace mmfree
