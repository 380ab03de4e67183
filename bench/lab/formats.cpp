// Packing, and each format read back in plain loops: the oracle of the vector kernels.
#include <algorithm>
#include <cstring>

#include "bench/lab/kernels.h"
#include "bench/lab/lab.h"

namespace mmfree::lab {
namespace {

constexpr int kPowers[] = {1, 3, 9, 27, 81};

// The codes of a matrix with zeros past its end.
struct Codes {
  std::span<const std::int8_t> t;
  idx out, in;
  int at(idx o, idx k) const {
    return o < out && k < in ? t[static_cast<std::size_t>(o * in + k)] : 0;
  }
  int group(idx o, idx k, int n) const {  // the number of n trits
    int c = 0;
    for (int p = 0; p < n; ++p) c += (at(o, k + p) + 1) * kPowers[p];
    return c;
  }
};

// Collects blocks of any length.
struct Writer {
  explicit Writer(idx out, idx in) { m.out = out, m.in = in; }
  void block(const std::vector<std::uint8_t>& b) {
    m.block.push_back(static_cast<idx>(bytes.size()));
    bytes.insert(bytes.end(), b.begin(), b.end());
    bytes.resize((bytes.size() + 63) / 64 * 64);
  }
  Matrix finish() {
    m.block.push_back(static_cast<idx>(bytes.size()));
    m.bytes = Buffer<std::uint8_t>(static_cast<idx>(bytes.size()));
    std::copy(bytes.begin(), bytes.end(), m.bytes.begin());
    return std::move(m);
  }
  Matrix m;
  std::vector<std::uint8_t> bytes;
};

Matrix pack_lut3w(std::span<const std::int8_t> t, idx out, idx in) {
  const Codes codes{t, out, in};
  Writer w(out, in);
  for (idx o0 = 0; o0 < out; o0 += kLut3Outputs) {
    std::vector<std::uint8_t> b;
    for (idx k = 0; k < in; k += kLut3Inputs)
      for (idx o = o0; o < o0 + kLut3Outputs; ++o) {
        const int word =
            codes.group(o, k, 3) | codes.group(o, k + 3, 3) << 5 | codes.group(o, k + 6, 3) << 10;
        b.push_back(static_cast<std::uint8_t>(word & 255));
        b.push_back(static_cast<std::uint8_t>(word >> 8));
      }
    w.block(b);
  }
  return w.finish();
}

Matrix pack_lut5b(std::span<const std::int8_t> t, idx out, idx in) {
  const Codes codes{t, out, in};
  Writer w(out, in);
  for (idx o0 = 0; o0 < out; o0 += kLut5Outputs) {
    std::vector<std::uint8_t> b;
    for (idx k = 0; k < in; k += kLut5Inputs)
      for (idx o = o0; o < o0 + kLut5Outputs; ++o)
        b.push_back(static_cast<std::uint8_t>(codes.group(o, k, 5)));
    w.block(b);
  }
  return w.finish();
}

Matrix pack_bitmap(std::span<const std::int8_t> t, idx out, idx in) {
  const Codes codes{t, out, in};
  Writer w(out, in);
  for (idx o0 = 0; o0 < out; o0 += kBitmapOutputs) {
    std::vector<std::uint8_t> bits, signs;
    for (idx k = 0; k < in; k += kBitmapInputs)
      for (idx g = o0; g < o0 + kBitmapOutputs; g += 16) {
        std::uint8_t word[8] = {};
        std::uint8_t minus[8] = {};
        int used = 0;
        for (idx i = 0; i < 64; ++i) {
          const int c = codes.at(g + i / 4, k + i % 4);
          if (c == 0) continue;
          word[i / 8] = static_cast<std::uint8_t>(word[i / 8] | 1 << i % 8);
          if (c < 0) minus[used / 8] = static_cast<std::uint8_t>(minus[used / 8] | 1 << used % 8);
          ++used;
        }
        bits.insert(bits.end(), word, word + 8);
        signs.insert(signs.end(), minus, minus + (used + 7) / 8);
      }
    bits.insert(bits.end(), signs.begin(), signs.end());
    bits.resize(bits.size() + 8);  // eight bytes are read at a time
    w.block(bits);
  }
  return w.finish();
}

Matrix pack_lists(std::span<const std::int8_t> t, idx out, idx in) {
  const Codes codes{t, out, in};
  Writer w(out, in);
  for (idx o0 = 0; o0 < out; o0 += kListOutputs) {
    std::vector<std::uint32_t> counts;
    std::vector<std::uint16_t> numbers;
    std::vector<std::uint8_t> vectors;
    for (idx g = o0; g < o0 + kListOutputs; g += 16)
      for (const int sign : {1, -1}) {
        const std::size_t before = numbers.size();
        for (idx n = 0; n * kListInputs < in; ++n) {
          std::vector<std::uint8_t> places[16];
          std::size_t longest = 0;
          for (idx lane = 0; lane < 16; ++lane) {
            for (idx p = 0; p < kListInputs; ++p)
              if (codes.at(g + lane, n * kListInputs + p) == sign)
                places[lane].push_back(static_cast<std::uint8_t>(p));
            longest = std::max(longest, places[lane].size());
          }
          for (std::size_t v = 0; v < (longest + 3) / 4; ++v) {
            numbers.push_back(static_cast<std::uint16_t>(n));
            for (const std::vector<std::uint8_t>& lane : places)
              for (std::size_t b = 4 * v; b < 4 * v + 4; ++b)
                vectors.push_back(b < lane.size() ? lane[b] : kListInputs);
          }
        }
        counts.push_back(static_cast<std::uint32_t>(numbers.size() - before));
      }
    const idx start = list_vectors_at(static_cast<idx>(numbers.size()));
    std::vector<std::uint8_t> b(static_cast<std::size_t>(start));
    std::memcpy(b.data(), counts.data(), counts.size() * 4);
    if (!numbers.empty())
      std::memcpy(b.data() + kListHeader * 4, numbers.data(), numbers.size() * 2);
    b.insert(b.end(), vectors.begin(), vectors.end());
    w.block(b);
  }
  return w.finish();
}

}  // namespace

namespace scalar {

// (steps, 3 groups, 32) int16; entries 27 to 31 are never asked for.
void lut3w_prepare(const std::int8_t* q, std::uint8_t* prepared, idx begin, idx end) noexcept {
  for (idx g = 3 * begin; g < 3 * end; ++g)
    for (int c = 0; c < 32; ++c) {
      int sum = 0;
      for (int p = 0; p < 3; ++p) sum += (c / kPowers[p] % 3 - 1) * q[3 * g + p];
      const auto value = static_cast<std::int16_t>(sum);
      std::memcpy(prepared + (g * 32 + c) * 2, &value, 2);
    }
}

void lut3w(const std::uint8_t* block, idx in, const Token& x, std::int32_t* sums) noexcept {
  std::fill_n(sums, kLut3Outputs, 0);
  for (idx s = 0; s * kLut3Inputs < in; ++s)
    for (idx o = 0; o < kLut3Outputs; ++o) {
      const std::uint8_t* w = block + (s * kLut3Outputs + o) * 2;
      const int word = w[0] | w[1] << 8;
      for (int g = 0; g < 3; ++g) {
        std::int16_t value = 0;
        std::memcpy(&value, x.prepared + ((3 * s + g) * 32 + (word >> 5 * g & 31)) * 2, 2);
        sums[o] += value;
      }
    }
}

// (steps, low or high byte, 256)
void lut5b_prepare(const std::int8_t* q, std::uint8_t* prepared, idx begin, idx end) noexcept {
  for (idx s = begin; s < end; ++s)
    for (int c = 0; c < 256; ++c) {
      int sum = kLut5Offset;
      for (int p = 0; p < 5; ++p) sum += (c / kPowers[p] % 3 - 1) * q[5 * s + p];
      prepared[s * 512 + c] = static_cast<std::uint8_t>(sum & 255);
      prepared[s * 512 + 256 + c] = static_cast<std::uint8_t>(sum >> 8);
    }
}

void lut5b(const std::uint8_t* block, idx in, const Token& x, std::int32_t* sums) noexcept {
  std::fill_n(sums, kLut5Outputs, 0);
  for (idx s = 0; s * kLut5Inputs < in; ++s)
    for (idx o = 0; o < kLut5Outputs; ++o) {
      const std::uint8_t* table = x.prepared + s * 512 + block[s * kLut5Outputs + o];
      sums[o] += table[0] + 256 * table[256] - kLut5Offset;
    }
}

void bitmap(const std::uint8_t* block, idx in, const Token& x, std::int32_t* sums) noexcept {
  std::fill_n(sums, kBitmapOutputs, 0);
  const std::uint8_t* signs = block + bitmap_signs_at(in);
  for (idx k = 0; k < in; k += kBitmapInputs)
    for (idx g = 0; g < 4; ++g, block += 8) {
      int used = 0;
      for (idx i = 0; i < 64; ++i) {
        if ((block[i / 8] >> i % 8 & 1) == 0) continue;
        const int minus = signs[used / 8] >> used % 8 & 1;
        ++used;
        sums[16 * g + i / 4] += (1 - 2 * minus) * x.q[k + i % 4];
      }
      signs += (used + 7) / 8;
    }
}

// (steps, 64): 63 codes and a zero
void lists_prepare(const std::int8_t* q, std::uint8_t* prepared, idx begin, idx end) noexcept {
  for (idx n = begin; n < end; ++n) {
    std::memcpy(prepared + n * 64, q + n * kListInputs, kListInputs);
    prepared[n * 64 + kListInputs] = 0;
  }
}

void lists(const std::uint8_t* block, idx, const Token& x, std::int32_t* sums) noexcept {
  std::fill_n(sums, kListOutputs, 0);
  std::uint32_t counts[kListHeader];
  std::memcpy(counts, block, sizeof counts);
  idx total = 0;
  for (const std::uint32_t c : counts) total += c;
  const std::uint8_t* number = block + kListHeader * 4;
  const std::uint8_t* vector = block + list_vectors_at(total);
  for (idx part = 0; part < kListHeader; ++part)
    for (std::uint32_t v = 0; v < counts[part]; ++v, number += 2, vector += 64) {
      const auto* q =
          reinterpret_cast<const std::int8_t*>(x.prepared) + (number[0] | number[1] << 8) * 64;
      for (idx b = 0; b < 64; ++b)
        sums[part / 2 * 16 + b / 4] += (part % 2 == 0 ? 1 : -1) * q[vector[b]];
    }
}

}  // namespace scalar

namespace {

void nothing(const std::int8_t*, std::uint8_t*, idx, idx) noexcept {}

constexpr Format kFormats[] = {{"lut3w",
                                kLut3Outputs,
                                kLut3Inputs,
                                192,
                                false,
                                pack_lut3w,
                                {scalar::lut3w_prepare, scalar::lut3w},
                                {avx512vbmi::lut3w_prepare, avx512vbmi::lut3w}},
                               {"lut5b",
                                kLut5Outputs,
                                kLut5Inputs,
                                512,
                                false,
                                pack_lut5b,
                                {scalar::lut5b_prepare, scalar::lut5b},
                                {avx512vbmi::lut5b_prepare, avx512vbmi::lut5b}},
                               {"bitmap",
                                kBitmapOutputs,
                                kBitmapInputs,
                                0,
                                true,
                                pack_bitmap,
                                {nothing, scalar::bitmap},
                                {nothing, avx512vbmi::bitmap}},
                               {"lists",
                                kListOutputs,
                                kListInputs,
                                64,
                                true,
                                pack_lists,
                                {scalar::lists_prepare, scalar::lists},
                                {avx512vbmi::lists_prepare, avx512vbmi::lists}}};

}  // namespace

std::span<const Format> formats() {
  return kFormats;
}

}  // namespace mmfree::lab
