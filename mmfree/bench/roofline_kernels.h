#pragma once
// Source of all variants. Each file first defines, in an anonymous namespace, struct `Simd`. The
// empty asm statements keep the compiler from merging rounds.
#include "mmfree/bench/roofline_variants.h"

namespace mmfree {
namespace {

constexpr int kChains = 12;  // enough to hide the latency of two units

inline std::uint64_t read_loop(const std::uint8_t* p, idx bytes) noexcept {
  typename Simd::Int a[4] = {};
  constexpr idx kWidth = sizeof(typename Simd::Int);
  for (idx i = 0; i < bytes; i += 4 * kWidth)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) a[k] |= *reinterpret_cast<const Simd::Int*>(p + i + k * kWidth);
  const typename Simd::Int all = a[0] | a[1] | a[2] | a[3];
  return static_cast<std::uint64_t>(all[0]);
}

// The same with every line asked for twice ahead of its use, as the products do: on some machines
// that is faster than the hardware's own prefetch.
inline std::uint64_t read_ahead_loop(const std::uint8_t* p, idx bytes) noexcept {
  constexpr idx kLine = 64;
  constexpr int kVectors = static_cast<int>(kLine / sizeof(typename Simd::Int));
  typename Simd::Int a[kVectors] = {};
  for (idx i = 0; i < bytes; i += kLine) {
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k) a[k] |= reinterpret_cast<const Simd::Int*>(p + i)[k];
    __builtin_prefetch(p + i + 1024, 0, 3);
    __builtin_prefetch(p + i + 20480, 0, 2);
  }
  typename Simd::Int all = a[0];
  for (int k = 1; k < kVectors; ++k) all |= a[k];
  return static_cast<std::uint64_t>(all[0]);
}

inline double int8_loop(idx rounds) noexcept {
  typename Simd::Int acc[kChains] = {};
  typename Simd::Int w = {}, x = {};
  asm volatile("" : MMFREE_REG(w), MMFREE_REG(x));
  for (idx i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) {
      acc[k] = Simd::dot(acc[k], w, x);
      asm volatile("" : MMFREE_REG(acc[k]));
    }
  return 2.0 * kChains * sizeof(w);
}

inline double f32_loop(idx rounds) noexcept {
  typename Simd::Float acc[kChains] = {};
  typename Simd::Float w = {}, x = {};
  asm volatile("" : MMFREE_REG(w), MMFREE_REG(x));
  for (idx i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) {
      acc[k] = Simd::fma(acc[k], w, x);
      asm volatile("" : MMFREE_REG(acc[k]));
    }
  return 2.0 * kChains * sizeof(w) / sizeof(float);
}

}  // namespace
}  // namespace mmfree
