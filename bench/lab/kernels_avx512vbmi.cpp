// The laboratory's kernels with 512-bit vectors. Weights are asked for ahead as in the tiles'
// kernels (ops/tile_product), so that reading from memory is compared on equal terms.
#include <immintrin.h>

#include "bench/lab/kernels.h"

namespace mmfree::lab {
namespace {

inline void prefetch(const std::uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p + 1024), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(p + 20480), _MM_HINT_T1);
}

inline std::uint64_t load64(const std::uint8_t* p) {
  std::uint64_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline __m512i broadcast4(const std::int8_t* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm512_set1_epi32(v);
}

// Digit p of the entry numbers, minus 1.
struct Digits {
  std::int16_t of[5][256];
};
constexpr Digits make_digits() {
  Digits d{};
  for (int c = 0; c < 256; ++c)
    for (int p = 0, rest = c; p < 5; ++p, rest /= 3)
      d.of[p][c] = static_cast<std::int16_t>(rest % 3 - 1);
  return d;
}
alignas(64) constexpr Digits kDigits = make_digits();

// Sums of n codes for the 32 entries from `first` on.
inline __m512i entries(const std::int8_t* q, int n, int first) {
  __m512i sum = _mm512_setzero_si512();
  for (int p = 0; p < n; ++p)
    sum = _mm512_add_epi16(
        sum, _mm512_mullo_epi16(_mm512_load_si512(kDigits.of[p] + first), _mm512_set1_epi16(q[p])));
  return sum;
}

}  // namespace

namespace avx512vbmi {

void lut3w_prepare(const std::int8_t* q, std::uint8_t* prepared, idx begin, idx end) noexcept {
  for (idx g = 3 * begin; g < 3 * end; ++g)
    _mm512_store_si512(prepared + g * 64, entries(q + 3 * g, 3, 0));
}

void lut3w(const std::uint8_t* block, idx in, const Token& x, std::int32_t* sums) noexcept {
  // A step adds at most 9 * 128 to a 16-bit sum.
  constexpr idx kRun = 28;
  static_assert(kRun * 9 * 128 <= 32767);
  __m512i wide[8];
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) wide[v] = _mm512_setzero_si512();
  const std::uint8_t* table = x.prepared;
  for (idx left = (in + kLut3Inputs - 1) / kLut3Inputs; left > 0; left -= kRun) {
    __m512i sum[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] = _mm512_setzero_si512();
    for (idx s = left < kRun ? left : kRun; s > 0; --s) {
      const __m512i t0 = _mm512_load_si512(table);
      const __m512i t1 = _mm512_load_si512(table + 64);
      const __m512i t2 = _mm512_load_si512(table + 128);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {  // a permutation looks at five bits of a word
        const __m512i w = _mm512_load_si512(block + 64 * v);
        prefetch(block + 64 * v);
        sum[v] = _mm512_add_epi16(sum[v], _mm512_permutexvar_epi16(w, t0));
        sum[v] = _mm512_add_epi16(sum[v], _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 5), t1));
        sum[v] = _mm512_add_epi16(sum[v], _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 10), t2));
      }
      table += 192;
      block += 256;
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      wide[2 * v] =
          _mm512_add_epi32(wide[2 * v], _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sum[v])));
      wide[2 * v + 1] = _mm512_add_epi32(
          wide[2 * v + 1], _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sum[v], 1)));
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) _mm512_storeu_si512(sums + 16 * v, wide[v]);
}

void lut5b_prepare(const std::int8_t* q, std::uint8_t* prepared, idx begin, idx end) noexcept {
  for (idx s = begin; s < end; ++s)
    for (int first = 0; first < 256; first += 32) {
      const __m512i sum =
          _mm512_add_epi16(entries(q + 5 * s, 5, first), _mm512_set1_epi16(kLut5Offset));
      std::uint8_t* to = prepared + s * 512 + first;
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi16_epi8(sum));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + 256),
                         _mm512_cvtepi16_epi8(_mm512_srli_epi16(sum, 8)));
    }
}

void lut5b(const std::uint8_t* block, idx in, const Token& x, std::int32_t* sums) noexcept {
  // A step adds at most 5 to the 8-bit sum of high bytes and 255 to the 16-bit ones of low bytes.
  constexpr idx kRun = 51;
  static_assert(kRun * ((2 * kLut5Offset) >> 8) <= 255 && kRun * 255 <= 65535);
  alignas(64) std::int32_t wide[4][4][16] = {};  // 64 outputs a vector; output modulo 4; output / 4
  const idx steps = (in + kLut5Inputs - 1) / kLut5Inputs;
  const std::uint8_t* table = x.prepared;
  const __m512i low_byte = _mm512_set1_epi16(255);
  for (idx left = steps; left > 0; left -= kRun) {
    __m512i even[4], odd[4], high[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) even[v] = odd[v] = high[v] = _mm512_setzero_si512();
    for (idx s = left < kRun ? left : kRun; s > 0; --s) {
      __m512i t[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) t[i] = _mm512_load_si512(table + 64 * i);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {  // seven bits choose in two registers, the eighth between pairs
        const __m512i c = _mm512_load_si512(block + 64 * v);
        prefetch(block + 64 * v);
        const __mmask64 upper = _mm512_movepi8_mask(c);
        const __m512i low = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(t[0], c, t[1]),
                                                   _mm512_permutex2var_epi8(t[2], c, t[3]));
        high[v] = _mm512_add_epi8(
            high[v], _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(t[4], c, t[5]),
                                            _mm512_permutex2var_epi8(t[6], c, t[7])));
        even[v] = _mm512_add_epi16(even[v], _mm512_and_si512(low, low_byte));
        odd[v] = _mm512_add_epi16(odd[v], _mm512_srli_epi16(low, 8));
      }
      table += 512;
      block += 256;
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const __m512i words = r % 2 == 0 ? even[v] : odd[v];
        const __m512i low = r < 2 ? _mm512_and_si512(words, _mm512_set1_epi32(0xffff))
                                  : _mm512_srli_epi32(words, 16);
        const __m512i byte = _mm512_and_si512(
            _mm512_srli_epi32(high[v], static_cast<unsigned>(8 * r)), _mm512_set1_epi32(255));
        const __m512i sum = _mm512_add_epi32(low, _mm512_slli_epi32(byte, 8));
        _mm512_store_si512(wide[v][r], _mm512_add_epi32(_mm512_load_si512(wide[v][r]), sum));
      }
  }
  for (int v = 0; v < 4; ++v)
    for (int j = 0; j < 16; ++j)
      for (int r = 0; r < 4; ++r)
        sums[64 * v + 4 * j + r] = wide[v][r][j] - static_cast<std::int32_t>(kLut5Offset * steps);
}

void bitmap(const std::uint8_t* block, idx in, const Token& x, std::int32_t* sums) noexcept {
  const std::uint8_t* signs = block + bitmap_signs_at(in);
  const __m512i one = _mm512_set1_epi8(1);
  const __m512i two = _mm512_set1_epi8(2);
  __m512i sum[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) sum[g] = _mm512_setzero_si512();
  for (idx k = 0; k < in; k += kBitmapInputs) {
    const __m512i q = broadcast4(x.q + k);
    prefetch(block);
    prefetch(signs);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const std::uint64_t set = load64(block + 8 * g);
      const std::uint64_t minus = _pdep_u64(load64(signs), set);
      signs += (_mm_popcnt_u64(set) + 7) / 8;
      // t + 1: 2 where the bit is set, 1 where not, 0 where it is minus
      const __m512i t = _mm512_maskz_mov_epi8(~minus, _mm512_mask_mov_epi8(one, set, two));
      sum[g] = _mm512_dpbusd_epi32(sum[g], t, q);
    }
    block += 32;
  }
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g)
    _mm512_storeu_si512(sums + 16 * g, _mm512_sub_epi32(sum[g], _mm512_set1_epi32(x.sum)));
}

void lists_prepare(const std::int8_t* q, std::uint8_t* prepared, idx begin, idx end) noexcept {
  for (idx n = begin; n < end; ++n) {
    __builtin_memcpy(prepared + n * 64, q + n * kListInputs, kListInputs);
    prepared[n * 64 + kListInputs] = 0;
  }
}

void lists(const std::uint8_t* block, idx, const Token& x, std::int32_t* sums) noexcept {
  std::uint32_t counts[kListHeader];
  __builtin_memcpy(counts, block, sizeof counts);
  idx total = 0;
  for (int i = 0; i < kListHeader; ++i) total += counts[i];
  const std::uint8_t* number = block + kListHeader * 4;
  const std::uint8_t* vector = block + list_vectors_at(total);
  const __m512i one = _mm512_set1_epi8(1);
  for (int g = 0; g < 4; ++g) {
    __m512i part[2];
    for (int minus = 0; minus < 2; ++minus) {
      __m512i sum[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] = _mm512_setzero_si512();
      std::uint32_t v = counts[2 * g + minus];
      const auto add = [&](__m512i& s) {
        std::uint16_t n;
        __builtin_memcpy(&n, number, sizeof n);
        prefetch(vector);
        const __m512i q = _mm512_permutexvar_epi8(_mm512_load_si512(vector),
                                                  _mm512_load_si512(x.prepared + 64 * idx{n}));
        s = _mm512_dpbusd_epi32(s, one, q);
        number += 2;
        vector += 64;
      };
      for (; v >= 4; v -= 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) add(sum[i]);
      }
      for (; v > 0; --v) add(sum[0]);
      part[minus] =
          _mm512_add_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_add_epi32(sum[2], sum[3]));
    }
    _mm512_storeu_si512(sums + 16 * g, _mm512_sub_epi32(part[0], part[1]));
  }
}

}  // namespace avx512vbmi

}  // namespace mmfree::lab
