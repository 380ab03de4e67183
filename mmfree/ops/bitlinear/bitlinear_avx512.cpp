#include <immintrin.h>

#include "mmfree/core/types.h"

namespace mmfree {
namespace {

struct Simd {
  // 6 rows x 4 tiles: 24 sums, 4 weights and a broadcast fit 32 registers; 24 products per 10 loads
  // keep both multipliers busy.
  static constexpr int kRows = 6;
  static constexpr int kTiles = 4;
  static constexpr int kIntParts = 1;
  using Int = __m512i;
  static Int int_zero() { return _mm512_setzero_si512(); }
  static Int load_bytes(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static Int broadcast4(const std::int8_t* p) {
    std::int32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return _mm512_set1_epi32(v);
  }
  static Int dot(Int sum, Int w, Int x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static void store_sums(std::int32_t* p, Int v) { _mm512_store_si512(p, v); }

  // 12 rows x 32 columns: 24 sums, 2 columns of B, broadcasts of A straight from memory.
  static constexpr int kGemmRows = 12;
  static constexpr int kGemmColumns = 32;
  static constexpr int kFloats = 16;
  using Float = __m512;
  static Float zero() { return _mm512_setzero_ps(); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
};

}  // namespace
}  // namespace mmfree

#include "mmfree/ops/bitlinear/bitlinear_kernels.h"

namespace mmfree::avx512 {

void bitlinear_tiles(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                     idx tile_end) noexcept {
  bitlinear_loops(a, row_begin, row_end, tile_begin, tile_end);
}

void grad_gemm(const GradGemmArgs& a, idx m_begin, idx m_end, float* scratch) noexcept {
  grad_gemm_loops(a, m_begin, m_end, scratch);
}

}  // namespace mmfree::avx512
