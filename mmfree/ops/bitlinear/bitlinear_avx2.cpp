#include <immintrin.h>

#include "mmfree/core/types.h"

namespace mmfree {
namespace {

struct Simd {
  // 3 rows x 2 tiles of two registers each: 12 sums of 16 registers.
  static constexpr int kRows = 3;
  static constexpr int kTiles = 2;
  static constexpr int kIntParts = 2;
  using Int = __m256i;
  static Int int_zero() { return _mm256_setzero_si256(); }
  static Int load_bytes(const std::uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Int broadcast4(const std::int8_t* p) {
    std::int32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return _mm256_set1_epi32(v);
  }
  // Pairs sum to at most 2 * 2 * 128 = 512: the saturating 16-bit step is exact.
  static Int dot(Int sum, Int w, Int x) {
    const __m256i pairs = _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void store_sums(std::int32_t* p, Int v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), v);
  }

  // 6 rows x 16 columns: 12 sums, 2 columns of B, one broadcast.
  static constexpr int kGemmRows = 6;
  static constexpr int kGemmColumns = 16;
  static constexpr int kFloats = 8;
  using Float = __m256;
  static Float zero() { return _mm256_setzero_ps(); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
};

}  // namespace
}  // namespace mmfree

#include "mmfree/ops/bitlinear/bitlinear_kernels.h"

namespace mmfree::avx2 {

void bitlinear_tiles(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                     idx tile_end) noexcept {
  bitlinear_loops(a, row_begin, row_end, tile_begin, tile_end);
}

void grad_gemm(const GradGemmArgs& a, idx m_begin, idx m_end, float* scratch) noexcept {
  grad_gemm_loops(a, m_begin, m_end, scratch);
}

}  // namespace mmfree::avx2
