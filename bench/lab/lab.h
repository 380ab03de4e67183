#pragma once
// Other ways to multiply a ternary matrix with int8 codes, to be compared with the tiles that
// inference uses (ternary/tiles.h). All are exact: sums[o] = sum over k of t[o, k] * q[k] in int32.
//
// lut3w   Partial-sum tables, three trits a group. Per token and group a table of 27 int16 sums; a
//         16-bit word holds the numbers of three groups in five bits each (1.78 bits a weight), so
//         that one permutation of words looks up 32 outputs. Word = c0 | c1 << 5 | c2 << 10.
// lut5b   The same with five trits a group, 243 sums kept as low and high bytes; a byte is the
// group's
//         number (1.6 bits a weight), byte permutations look up 64 outputs.
// bitmap  Zeros left out: a bit a weight says whether it is not zero, those that are not have a
// sign
//         bit each in a second stream (1 bit + the share of non-zeros). Signs of 64 weights (16
//         outputs x 4 inputs) begin at a byte.
// lists   Zeros skipped: for 63 inputs and 16 outputs the places of the +1, then of the -1, a byte
//         each; place 63 holds a zero for padding (8 bits a non-zero).
//
// A block holds block_outputs outputs, its bytes start at a multiple of 64 and can be read without
// knowing any other block. Outputs and inputs past the end are zeros.
#include <cstdint>
#include <span>
#include <vector>

#include "bench/lab/kernels.h"
#include "mmfree/core/buffer.h"
#include "mmfree/core/types.h"

namespace mmfree::lab {

struct Matrix {
  idx out = 0, in = 0;
  Buffer<std::uint8_t> bytes;
  std::vector<idx> block;  // offsets of the blocks, and the end
};

struct Kernel {
  // Steps [begin, end) of what a token needs once for a whole matrix (tables, rearranged codes).
  void (*prepare)(const std::int8_t* q, std::uint8_t* prepared, idx begin, idx end) noexcept;
  // One block's sums (block_outputs).
  void (*product)(const std::uint8_t* block, idx in, const Token& x, std::int32_t* sums) noexcept;
};

struct Format {
  const char* name;
  idx block_outputs;
  idx step_inputs;     // inputs of one step of prepare()
  idx prepared_bytes;  // of one step
  bool by_zeros;       // size and speed depend on the share of zeros
  Matrix (*pack)(std::span<const std::int8_t> codes, idx out, idx in);
  Kernel scalar;
  Kernel vector;  // AVX-512 with VBMI
};
std::span<const Format> formats();

constexpr idx steps(const Format& f, idx in) {
  return (in + f.step_inputs - 1) / f.step_inputs;
}
// Kernels may read codes up to here.
constexpr idx padded_inputs(idx in) {
  return in + 64;
}

}  // namespace mmfree::lab
