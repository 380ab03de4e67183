#pragma once
// Source of both AVX-512 variants; MMFREE_VBMI: with the byte permutation of VBMI (and the bit
// matrices of GFNI, which every CPU that has it has too but one).
//
// One token, without GFNI up to four: planes are used where they lie in the byte. AND leaves digit
// p scaled by 4^p, its sum goes to an accumulator of its own and is shifted down once at the end,
// so a weight byte costs one AND and one multiply-add a plane. Base 3 first splits the byte into 81
// d4 + i by two (subtract, unsigned minimum) pairs: 81 d4 is multiplied as it is, its sum divided
// exactly at the end by the inverse of 81 modulo 2^32; a table of 81 entries turns i into four
// 2-bit planes.
//
// More tokens: the block is unpacked once to one byte a weight, then products of 6 tokens x 64
// outputs run from there.
//
// Sums leave through memory and every loop over them is unrolled by request: GCC 12 keeps an array
// in registers only then (the test `kernels_do_not_spill` looks at the result).
#include <immintrin.h>

#include "mmfree/ops/tile_product/tile_product.h"

namespace mmfree {
namespace {

// Lines are asked for twice: far ahead into the second-level cache, close ahead into the first.
// With arithmetic between the loads the hardware's own prefetch keeps too few reads under way.
constexpr idx kNearBytes = 1024;

// What is far ahead, going on at TileProduct::next after ::end.
class Ahead {
 public:
  explicit Ahead(const TileProduct& a)
      : end_(a.end == nullptr ? ~std::uintptr_t{0} : reinterpret_cast<std::uintptr_t>(a.end)),
        jump_(reinterpret_cast<std::uintptr_t>(a.next) - end_) {
#ifdef MMFREE_VBMI
    distance_ += static_cast<std::uintptr_t>(a.lead);
#endif
  }
  const char* of(const std::uint8_t* p) const {
    const std::uintptr_t far = reinterpret_cast<std::uintptr_t>(p) + distance_;
    return reinterpret_cast<const char*>(far + (far >= end_ ? jump_ : 0));
  }

 private:
  std::uintptr_t end_, jump_;
#ifdef MMFREE_VBMI
  std::uintptr_t distance_ = kTileAhead;
#else
  static constexpr std::uintptr_t distance_ = kTileAhead;  // split() leaves no register for more
#endif
};

// Both are tied to a value on its way into a multiplication, which spreads them evenly over the
// loop. As intrinsics the compiler gathers a step's eight at its top, where they wait for each
// other: 13.7 GB/s on one thread, spread 18.9, plain loads without arithmetic 15.9.
inline void prefetch_far(const char* line, __m512i& value) {
  asm("prefetcht1 %1" : "+v"(value) : "m"(*line));
}
inline void prefetch_near(const std::uint8_t* line, __m512i& value) {
  asm("prefetcht0 %1" : "+v"(value) : "m"(*(line + kNearBytes)));
}

// 81 * kInverse81 = 1 modulo 2^32: multiplying a multiple of 81 by it divides it.
constexpr std::uint32_t kInverse81 = 0x781948b1U;
static_assert(81U * kInverse81 == 1U);

inline __m512i broadcast4(const std::int8_t* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm512_set1_epi32(v);
}

// sum + the products of plane's bytes and four codes at q, broadcast by the instruction itself. As
// an intrinsic, GCC 12 copies the sum around and runs out of registers: 19 of the 20 sums of the
// kernel for one token went through memory.
inline void add_dot(__m512i& sum, __m512i plane, const std::int8_t* q) {
  using Word = std::int32_t __attribute__((may_alias));
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum)
      : "v"(plane), "m"(*reinterpret_cast<const Word*>(q)));
}

struct Base3 {
  __m512i low;   // i's four digits as 2-bit planes
  __m512i high;  // 81 * d4
};

#ifdef __GFNI__
// The two bits of each byte from bit kShift on, by one multiplication with a bit matrix.
template <int kShift>
inline __m512i two_bits(__m512i v) {
  constexpr std::uint64_t kMatrix = std::uint64_t{1} << (56 + kShift) | std::uint64_t{2}
                                                                            << (48 + kShift);
  return _mm512_gf2p8affine_epi64_epi8(v, _mm512_set1_epi64(static_cast<long long>(kMatrix)), 0);
}
#endif

#ifdef MMFREE_VBMI
constexpr int kOneTokenGroups = 4;
// Entry i: the digits of i in base 3 as 2-bit planes.
struct DigitTable {
  unsigned char planes[128];
};
constexpr DigitTable make_digit_table() {
  DigitTable t{};
  for (int i = 0; i < 81; ++i)
    t.planes[i] = static_cast<unsigned char>(i % 3 | i / 3 % 3 << 2 | i / 9 % 3 << 4 | i / 27 << 6);
  return t;
}
alignas(64) constexpr DigitTable kDigits = make_digit_table();

inline Base3 split(__m512i v) {
  __m512i i = _mm512_min_epu8(v, _mm512_sub_epi8(v, _mm512_set1_epi8(static_cast<char>(162))));
  i = _mm512_min_epu8(i, _mm512_sub_epi8(i, _mm512_set1_epi8(81)));
  const __m512i table0 = _mm512_load_si512(kDigits.planes);
  const __m512i table1 = _mm512_load_si512(kDigits.planes + 64);
  return {_mm512_permutex2var_epi8(table0, i, table1), _mm512_sub_epi8(v, i)};
}
#else
constexpr int kOneTokenGroups = 2;  // the constants of split() leave room for no more sums
// v mod 3^p for v < 3^(p + 1).
inline __m512i remainder(__m512i v, int power) {
  v = _mm512_min_epu8(v, _mm512_sub_epi8(v, _mm512_set1_epi8(static_cast<char>(2 * power))));
  return _mm512_min_epu8(v, _mm512_sub_epi8(v, _mm512_set1_epi8(static_cast<char>(power))));
}
// The planes of i from differences of remainders, 27 d3 = i - i mod 27 and so on. A shuffle turns
// them into digits in place: the low four bits tell 0, 27, 54 apart (0, 11, 6), and so 0, 9, 18 (0,
// 9, 2) and 0, 3, 6.
inline Base3 split(__m512i v) {
  const __m512i i81 = remainder(v, 81);
  const __m512i i27 = remainder(i81, 27);
  const __m512i i9 = remainder(i27, 9);
  const __m512i i3 = remainder(i9, 3);
  const __m512i fifteen = _mm512_set1_epi8(15);
  const __m512i d3 = _mm512_shuffle_epi8(
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 0, 0, -128, 0, 0, 0, 0, 64, 0, 0, 0, 0)),
      _mm512_and_si512(_mm512_sub_epi8(i81, i27), fifteen));
  const __m512i d2 = _mm512_shuffle_epi8(
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 32, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0)),
      _mm512_and_si512(_mm512_sub_epi8(i27, i9), fifteen));
  const __m512i d1 = _mm512_shuffle_epi8(
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 4, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
      _mm512_sub_epi8(i9, i3));
  return {_mm512_or_si512(_mm512_or_si512(d3, d2), _mm512_or_si512(d1, i3)),
          _mm512_sub_epi8(v, i81)};
}
#endif

// 16 outputs of one token.
inline void store_outputs(const TileProduct& a, idx row, idx output, const std::int32_t* sums) {
  const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums), _mm512_set1_epi32(a.x.sum[row]));
  __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(a.x.scale[row]));
  v = _mm512_mul_ps(v, _mm512_set1_ps(a.w->scale));
  float* y = a.y + row * a.y_stride + output;
  if (a.add) v = _mm512_add_ps(_mm512_loadu_ps(y), v);
  _mm512_storeu_ps(y, v);
}

// kRows tokens x kGroups x 16 outputs, all inputs. sums (kRows, kGroups, 16).
template <int kDigits, int kRows, int kGroups>
inline void few_sums(const std::uint8_t* block, idx steps, const Ahead& ahead, const std::int8_t* q,
                     idx q_stride, std::int32_t* sums) {
  constexpr int kPlanes = 4;
  __m512i acc[kRows][kGroups][kDigits];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 8
      for (int p = 0; p < kDigits; ++p) acc[r][g][p] = _mm512_setzero_si512();
  for (idx s = 0; s < steps; ++s) {
    const char* far = ahead.of(block);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      __m512i v = _mm512_load_si512(block + 64 * g);
      if constexpr (kDigits == 5) {
        const Base3 b = split(v);
        v = b.low;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) add_dot(acc[r][g][4], b.high, q + r * q_stride + 16);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kPlanes; ++p) {
        __m512i plane = _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(3 << 2 * p)));
        if (p == 1) prefetch_far(far + 64 * g, plane);
        if (p == 3) prefetch_near(block + 64 * g, plane);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) add_dot(acc[r][g][p], plane, q + r * q_stride + 4 * p);
      }
    }
    block += kStepBytes;
    q += 4 * kDigits;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) {
      __m512i sum = acc[r][g][0];
#pragma GCC unroll 8
      for (int p = 1; p < kPlanes; ++p)
        sum = _mm512_add_epi32(sum, _mm512_srai_epi32(acc[r][g][p], static_cast<unsigned>(2 * p)));
      if constexpr (kDigits == 5)  // exact division: see kInverse81
        sum = _mm512_add_epi32(
            sum, _mm512_mullo_epi32(acc[r][g][4], _mm512_set1_epi32(static_cast<int>(kInverse81))));
      _mm512_store_si512(sums + (r * kGroups + g) * 16, sum);
    }
}

template <int kDigits, int kRows, int kGroups>
inline void few_rows(const TileProduct& a, idx row) {
  alignas(64) std::int32_t sums[kRows * kGroups * 16];
  const TileMatrix& w = *a.w;
  const idx stride = code_stride(w.in);
  const idx steps = tile_steps(w.format, w.in);
  const std::uint8_t* block = w.blocks + a.block * w.block_stride;
  for (int g0 = 0; g0 < 4; g0 += kGroups) {
    few_sums<kDigits, kRows, kGroups>(block + 64 * g0, steps, Ahead(a), a.x.q + row * stride,
                                      stride, sums);
    for (int r = 0; r < kRows; ++r)
      for (int g = 0; g < kGroups; ++g)
        store_outputs(a, row + r, (g0 + g) * 16, sums + (r * kGroups + g) * 16);
  }
}

// 64 bytes of a block to their digits, t + 1 in each byte.
template <int kDigits>
inline void digits_of(__m512i v, __m512i* digit) {
#ifdef __GFNI__
  if constexpr (kDigits == 5) {
    const Base3 b = split(v);
    v = b.low;
    digit[4] = two_bits<6>(b.high);  // 0, 81, 162 to 0, 1, 2: bit 6 is set in one, bit 7 in two
  }
  digit[0] = two_bits<0>(v);
  digit[1] = two_bits<2>(v);
  digit[2] = two_bits<4>(v);
  digit[3] = two_bits<6>(v);
#else
  const __m512i three = _mm512_set1_epi8(3);
  if constexpr (kDigits == 5) {
    const Base3 b = split(v);
    v = b.low;
    digit[4] = _mm512_and_si512(_mm512_srli_epi16(b.high, 6), three);  // as above
  }
  digit[0] = _mm512_and_si512(v, three);
  digit[1] = _mm512_and_si512(_mm512_srli_epi16(v, 2), three);
  digit[2] = _mm512_and_si512(_mm512_srli_epi16(v, 4), three);
  digit[3] = _mm512_and_si512(_mm512_srli_epi16(v, 6), three);
#endif
}

#ifdef __GFNI__
// sums (kRows, 64): two to four tokens, from digits that are all unpacked, so that each token has
// one sum an output and all 64 outputs are done in one pass.
template <int kDigits, int kRows>
inline void unpacked_sums(const std::uint8_t* block, idx steps, const Ahead& ahead,
                          const std::int8_t* q, idx q_stride, std::int32_t* sums) {
  __m512i acc[kRows][4];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < 4; ++g) acc[r][g] = _mm512_setzero_si512();
  for (idx s = 0; s < steps; ++s) {
    const char* far = ahead.of(block);
#pragma GCC unroll 8
    for (int g = 0; g < 4; ++g) {
      __m512i digit[kDigits];
      digits_of<kDigits>(_mm512_load_si512(block + 64 * g), digit);
      prefetch_far(far + 64 * g, digit[1]);
      prefetch_near(block + 64 * g, digit[3]);
#pragma GCC unroll 8
      for (int p = 0; p < kDigits; ++p)
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) add_dot(acc[r][g], digit[p], q + r * q_stride + 4 * p);
    }
    block += kStepBytes;
    q += 4 * kDigits;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < 4; ++g) _mm512_store_si512(sums + (r * 4 + g) * 16, acc[r][g]);
}

template <int kDigits, int kRows>
inline void some_rows(const TileProduct& a) {
  alignas(64) std::int32_t sums[kRows * 64];
  const TileMatrix& w = *a.w;
  unpacked_sums<kDigits, kRows>(w.blocks + a.block * w.block_stride, tile_steps(w.format, w.in),
                                Ahead(a), a.x.q, code_stride(w.in), sums);
  for (int r = 0; r < kRows; ++r)
    for (int g = 0; g < 4; ++g) store_outputs(a, r, g * 16, sums + (r * 4 + g) * 16);
}
#endif

// The block as (inputs / 4, 4 groups, 16 outputs, 4 inputs) bytes t + 1.
template <int kDigits>
inline void unpack_block(const std::uint8_t* block, idx steps, const Ahead& ahead,
                         std::uint8_t* out) {
  for (idx s = 0; s < steps; ++s) {
    const std::uint8_t* step = block + s * kStepBytes;
    const char* far = ahead.of(step);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      __m512i digit[kDigits];
      digits_of<kDigits>(_mm512_load_si512(step + 64 * g), digit);
      prefetch_far(far + 64 * g, digit[1]);
      prefetch_near(step + 64 * g, digit[3]);
      std::uint8_t* to = out + s * kDigits * 256 + 64 * g;
#pragma GCC unroll 8
      for (int p = 0; p < kDigits; ++p) _mm512_store_si512(to + 256 * p, digit[p]);
    }
  }
}

// Unpacked codes come from the second-level cache, asked for this many bytes ahead.
constexpr idx kCodesAhead = 1536;

// sums (kRows, 64) = or += kRows tokens x 64 outputs from unpacked codes.
template <int kRows>
inline void many_sums(const std::uint8_t* codes, idx quads, const std::int8_t* q, idx q_stride,
                      bool add, std::int32_t* sums) {
  __m512i acc[kRows][4];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < 4; ++g)
      acc[r][g] = add ? _mm512_load_si512(sums + (r * 4 + g) * 16) : _mm512_setzero_si512();
  for (idx k = 0; k < quads; ++k) {
    __m512i w[4];
#pragma GCC unroll 8
    for (int g = 0; g < 4; ++g) {
      w[g] = _mm512_load_si512(codes + k * 256 + 64 * g);
      _mm_prefetch(reinterpret_cast<const char*>(codes + k * 256 + 64 * g + kCodesAhead),
                   _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = broadcast4(q + r * q_stride + 4 * k);
#pragma GCC unroll 8
      for (int g = 0; g < 4; ++g) acc[r][g] = _mm512_dpbusd_epi32(acc[r][g], w[g], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int g = 0; g < 4; ++g) _mm512_store_si512(sums + (r * 4 + g) * 16, acc[r][g]);
}

// sums (rows, 64), six tokens at a time.
inline void all_sums(const std::uint8_t* codes, idx quads, const std::int8_t* q, idx q_stride,
                     idx rows, bool add, std::int32_t* sums) {
  for (; rows >= 6; rows -= 6, q += 6 * q_stride, sums += 6 * 64)
    many_sums<6>(codes, quads, q, q_stride, add, sums);
  switch (rows) {
    case 5:
      return many_sums<5>(codes, quads, q, q_stride, add, sums);
    case 4:
      return many_sums<4>(codes, quads, q, q_stride, add, sums);
    case 3:
      return many_sums<3>(codes, quads, q, q_stride, add, sums);
    case 2:
      return many_sums<2>(codes, quads, q, q_stride, add, sums);
    case 1:
      return many_sums<1>(codes, quads, q, q_stride, add, sums);
    default:
      return;
  }
}

// Up to so many tokens go through the block in pieces of kPieceSteps steps, whose unpacked codes
// stay in the first-level cache; the sums of all tokens wait in memory in between. More tokens use
// each piece so often that reading it from the second level costs nothing.
constexpr idx kPieceRows = 48;
constexpr idx kPieceSteps = 16;

template <int kDigits>
inline void many_rows(const TileProduct& a) {
  alignas(64) std::int32_t sums[kPieceRows * 64];
  const TileMatrix& w = *a.w;
  const idx stride = code_stride(w.in);
  const idx steps = tile_steps(w.format, w.in);
  const std::uint8_t* block = w.blocks + a.block * w.block_stride;
  const bool pieces = a.rows <= kPieceRows;
  const idx piece = pieces ? kPieceSteps : steps;
  if (!pieces) unpack_block<kDigits>(block, steps, Ahead(a), a.scratch);
  for (idx r0 = 0; r0 < a.rows; r0 += kPieceRows) {
    const idx rows = a.rows - r0 < kPieceRows ? a.rows - r0 : kPieceRows;
    for (idx s = 0; s < steps; s += piece) {
      const idx n = steps - s < piece ? steps - s : piece;
      if (pieces) unpack_block<kDigits>(block + s * kStepBytes, n, Ahead(a), a.scratch);
      all_sums(a.scratch, n * kDigits, a.x.q + r0 * stride + s * kDigits * 4, stride, rows, s > 0,
               sums);
    }
    for (idx r = 0; r < rows; ++r)
      for (int g = 0; g < 4; ++g) store_outputs(a, r0 + r, g * 16, sums + (r * 4 + g) * 16);
  }
}

template <int kDigits>
inline void product(const TileProduct& a) {
  switch (a.rows) {
    case 0:
      return;
    case 1:
      return few_rows<kDigits, 1, kOneTokenGroups>(a, 0);
#ifdef __GFNI__
    case 2:
      return some_rows<kDigits, 2>(a);
    case 3:
      return some_rows<kDigits, 3>(a);
    case 4:
      return some_rows<kDigits, 4>(a);
#else
    case 2:
      return few_rows<kDigits, 2, 2>(a, 0);
    case 3:
      return few_rows<kDigits, 3, 1>(a, 0);
    case 4:
      return few_rows<kDigits, 4, 1>(a, 0);
#endif
    default:
      return many_rows<kDigits>(a);
  }
}

inline void tile_product_block(const TileProduct& a) {
  if (a.w->format == TileFormat::base3) {
    product<5>(a);
  } else {
    product<4>(a);
  }
}

}  // namespace
}  // namespace mmfree
