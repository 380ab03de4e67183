// For CPUs with matrix tiles (AMX): a tile register holds up to 16 rows of 64 bytes, and one
// instruction adds the product of 16 tokens x 64 inputs and 64 inputs x 16 outputs to 16 x 16 sums,
// 16 times what a VNNI instruction does.
//
// Unpacked codes (inputs / 4, 16 outputs, 4 inputs) are a tile as they lie, and so are the codes of
// 16 tokens. Unpacking is what costs, so it stays in the first-level cache: stored to the second
// level it takes 2.3 times as long.
//
// One token goes to the VNNI kernel. Up to 16 meet all 64 outputs at once while the next inputs
// are unpacked between the multiplications. More go 32 at a time, 32 outputs at a time, over a
// piece of the inputs that all of them use before the next is unpacked.
#define MMFREE_VBMI
#include "mmfree/ops/tile_product/tile_product_avx512.h"
#include "mmfree/ops/tile_product/tile_product_variants.h"

namespace mmfree {
namespace {

// ---- tile registers: 0 to 3 hold sums, 4 and 5 codes of tokens, 6 and 7 codes of weights

struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The compiler's own functions for these do not tell it that memory is read and written.
inline void set_shapes(const TileShapes& shapes) {
  asm volatile("ldtilecfg %0" ::"m"(shapes));
}
// Else the system saves 8 KB at each switch of threads.
inline void release_tiles() {
  asm volatile("tilerelease");
}
template <int kTile>
inline void load_tile(const void* p, idx stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* p, idx stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// kSum += kX (signed) * kW (unsigned)
template <int kSum, int kX, int kW>
inline void multiply_tiles() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kW));
}

// ---- unpacking

// 16 outputs of one step to kDigits rows of tiles, `stride` bytes apart.
template <int kDigits>
inline void store_digits(const __m512i* digit, std::uint8_t* to, idx stride) {
#pragma GCC unroll 8
  for (int p = 0; p < kDigits; ++p) _mm512_store_si512(to + p * stride, digit[p]);
}

// ---- up to 16 tokens

constexpr int kTileTokens = 16;

// Whole steps that fit a tile's 64 inputs: 3 of 20 or 4 of 16.
template <int kDigits>
constexpr idx kTileSteps = 16 / kDigits;
constexpr idx kSlotBytes = 16 * kStepBytes;  // a tile's inputs, 64 outputs
constexpr idx kSlots = 4;
constexpr idx kSlotsAhead = 2;  // what was just stored cannot be loaded into a tile at once

template <int kDigits>
inline void up_to_16_tokens(const TileProduct& a) {
  constexpr idx kSteps = kTileSteps<kDigits>;
  constexpr idx kInputs = kSteps * kDigits * 4;
  alignas(64) std::uint8_t slots[kSlots * kSlotBytes];
  alignas(64) std::int32_t sums[kTileTokens * kBlockOutputs];
  const TileMatrix& w = *a.w;
  const idx stride = code_stride(w.in);
  const idx steps = tile_steps(w.format, w.in);
  const idx tiles = (steps + kSteps - 1) / kSteps;
  const std::uint8_t* block = w.blocks + a.block * w.block_stride;
  const Ahead ahead(a);
  TileShapes shapes;
  for (int t = 0; t <= 4; ++t) shapes.rows[t] = static_cast<std::uint8_t>(a.rows);
  shapes.row_bytes[4] = kInputs;
  for (int t = 5; t <= 7; ++t) shapes.rows[t] = kInputs / 4;
  set_shapes(shapes);
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  // Inputs past the end keep what the slot held before: their activations are zero.
  const auto unpack_tile = [&](idx t) {
    std::uint8_t* to = slots + t % kSlots * kSlotBytes;
    const idx last = (t + 1) * kSteps < steps ? (t + 1) * kSteps : steps;
    for (idx s = t * kSteps; s < last; ++s, to += kDigits * kStepBytes) {
      const std::uint8_t* step = block + s * kStepBytes;
      const char* far = ahead.of(step);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        __m512i digit[kDigits];
        digits_of<kDigits>(_mm512_load_si512(step + 64 * g), digit);
        prefetch_far(far + 64 * g, digit[1]);
        prefetch_near(step + 64 * g, digit[3]);
        store_digits<kDigits>(digit, to + 64 * g, kStepBytes);
      }
    }
  };
  for (idx t = 0; t < kSlotsAhead; ++t) unpack_tile(t);
  for (idx t = 0; t < tiles; ++t) {
    const std::uint8_t* codes = slots + t % kSlots * kSlotBytes;
    load_tile<4>(a.x.q + t * kInputs, stride);
    load_tile<5>(codes, kStepBytes);
    multiply_tiles<0, 4, 5>();
    load_tile<6>(codes + 64, kStepBytes);
    multiply_tiles<1, 4, 6>();
    load_tile<7>(codes + 128, kStepBytes);
    multiply_tiles<2, 4, 7>();
    load_tile<5>(codes + 192, kStepBytes);
    multiply_tiles<3, 4, 5>();
    unpack_tile(t + kSlotsAhead);
  }
  constexpr idx kRowBytes = kBlockOutputs * 4;
  store_tile<0>(sums, kRowBytes);
  store_tile<1>(sums + 16, kRowBytes);
  store_tile<2>(sums + 32, kRowBytes);
  store_tile<3>(sums + 48, kRowBytes);
  release_tiles();
  for (idx r = 0; r < a.rows; ++r)
    for (int g = 0; g < 4; ++g) store_outputs(a, r, g * 16, sums + (r * 4 + g) * 16);
}

// ---- more tokens

constexpr idx kHalfOutputs = kBlockOutputs / 2;
constexpr idx kHalfRowBytes = kHalfOutputs * 4;
// A piece: 10 tiles of 64 inputs, 20 KB of codes for 32 outputs. Longer ones leave no room in the
// first-level cache, shorter ones move the sums between tiles and memory too often.
constexpr idx kPieceTiles = 10;
constexpr idx kPieceInputs = kPieceTiles * 64;
// Tokens whose sums are kept at a time.
constexpr idx kChunkTokens = 256;

// sums (32, 32) = or += 32 tokens x 32 outputs, `tiles` of 64 inputs. kTwo: more than 16 tokens.
template <bool kTwo>
inline void tokens_by_half(const std::uint8_t* codes, idx tiles, const std::int8_t* q, idx stride,
                           bool add, std::int32_t* sums) {
  std::int32_t* second = sums + kTileTokens * kHalfOutputs;
  if (add) {
    load_tile<0>(sums, kHalfRowBytes);
    load_tile<1>(sums + 16, kHalfRowBytes);
    if (kTwo) {
      load_tile<2>(second, kHalfRowBytes);
      load_tile<3>(second + 16, kHalfRowBytes);
    }
  } else {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
  }
  for (idx t = 0; t < tiles; ++t, codes += 16 * kHalfRowBytes, q += 64) {
    load_tile<4>(q, stride);
    load_tile<6>(codes, kHalfRowBytes);
    multiply_tiles<0, 4, 6>();
    load_tile<7>(codes + 64, kHalfRowBytes);
    multiply_tiles<1, 4, 7>();
    if (kTwo) {
      load_tile<5>(q + kTileTokens * stride, stride);
      multiply_tiles<2, 5, 6>();
      multiply_tiles<3, 5, 7>();
    }
  }
  store_tile<0>(sums, kHalfRowBytes);
  store_tile<1>(sums + 16, kHalfRowBytes);
  if (kTwo) {
    store_tile<2>(second, kHalfRowBytes);
    store_tile<3>(second + 16, kHalfRowBytes);
  }
}

// Tokens [first, first + count), outputs [32 * half, 32 * half + 32).
template <int kDigits>
inline void half_block(const TileProduct& a, idx first, idx count, int half) {
  constexpr idx kMostSteps = kPieceInputs / (4 * kDigits);
  alignas(64) std::uint8_t codes[kPieceInputs * kHalfOutputs];
  alignas(64) std::int32_t sums[kChunkTokens * kHalfOutputs];
  const TileMatrix& w = *a.w;
  const idx stride = code_stride(w.in);
  const idx steps = tile_steps(w.format, w.in);
  const std::uint8_t* block = w.blocks + a.block * w.block_stride + half * 128;
  const std::int8_t* q = a.x.q + first * stride;
  const idx whole = count / 32 * 32;
  const idx rest = count - whole;
  TileShapes full;
  TileShapes last;
  last.rows[0] = last.rows[1] = last.rows[4] =
      static_cast<std::uint8_t>(rest < kTileTokens ? rest : kTileTokens);
  last.rows[2] = last.rows[3] = last.rows[5] =
      static_cast<std::uint8_t>(rest > kTileTokens ? rest - kTileTokens : 1);
  set_shapes(whole > 0 ? full : last);
  for (idx s0 = 0; s0 < steps; s0 += kMostSteps) {
    const idx n = steps - s0 < kMostSteps ? steps - s0 : kMostSteps;
    for (idx s = 0; s < n; ++s)
#pragma GCC unroll 2
      for (int g = 0; g < 2; ++g) {
        __m512i digit[kDigits];
        digits_of<kDigits>(_mm512_load_si512(block + (s0 + s) * kStepBytes + 64 * g), digit);
        store_digits<kDigits>(digit, codes + s * kDigits * kHalfRowBytes + 64 * g, kHalfRowBytes);
      }
    // Codes past the end are what the memory holds: their activations are zero.
    const idx tiles = (n * kDigits + 15) / 16;
    const std::int8_t* x = q + s0 * kDigits * 4;
    if (whole > 0 && rest > 0 && s0 > 0) set_shapes(full);
    for (idx r = 0; r < whole; r += 32)
      tokens_by_half<true>(codes, tiles, x + r * stride, stride, s0 > 0, sums + r * kHalfOutputs);
    if (rest == 0) continue;
    if (whole > 0) set_shapes(last);
    if (rest > kTileTokens)
      tokens_by_half<true>(codes, tiles, x + whole * stride, stride, s0 > 0,
                           sums + whole * kHalfOutputs);
    else
      tokens_by_half<false>(codes, tiles, x + whole * stride, stride, s0 > 0,
                            sums + whole * kHalfOutputs);
  }
  release_tiles();
  for (idx r = 0; r < count; ++r)
    for (int g = 0; g < 2; ++g)
      store_outputs(a, first + r, half * kHalfOutputs + g * 16, sums + r * kHalfOutputs + g * 16);
}

template <int kDigits>
inline void by_tiles(const TileProduct& a) {
  if (a.rows <= kTileTokens) return up_to_16_tokens<kDigits>(a);
  for (idx r = 0; r < a.rows; r += kChunkTokens)
    for (int half = 0; half < 2; ++half)
      half_block<kDigits>(a, r, a.rows - r < kChunkTokens ? a.rows - r : kChunkTokens, half);
}

// For fewer, unpacking to tiles costs more than the whole VNNI kernel.
constexpr idx kFewestTokens = 3;

}  // namespace
}  // namespace mmfree

void mmfree::amx::tile_product(const TileProduct& a) noexcept {
  if (a.rows < kFewestTokens) return avx512vbmi::tile_product(a);
  if (a.w->format == TileFormat::base3) {
    by_tiles<5>(a);
  } else {
    by_tiles<4>(a);
  }
}
