#include "bench/lab/lab.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "mmfree/core/cpu.h"
#include "tests/support/random_tensor.h"

namespace mmfree::lab {
namespace {

struct Case {
  idx out, in;
  std::vector<std::int8_t> t;
  std::vector<std::int8_t> q;  // padded
};

Case make_case(test::Random& random, idx out, idx in, double zeros) {
  Case c{out, in, {}, std::vector<std::int8_t>(static_cast<std::size_t>(padded_inputs(in)))};
  for (idx i = 0; i < out * in; ++i)
    c.t.push_back(random.uniform() < zeros ? std::int8_t{0}
                                           : static_cast<std::int8_t>(2 * random.below(2)) - 1);
  for (idx k = 0; k < in; ++k) {  // the ends often: sums as large as they can be
    const auto kind = random.below(4);
    c.q[static_cast<std::size_t>(k)] =
        static_cast<std::int8_t>(kind == 0   ? 127
                                 : kind == 1 ? -128
                                             : static_cast<int>(random.below(256)) - 128);
  }
  return c;
}

void check(const Case& c) {
  std::int32_t total = 0;
  for (const std::int8_t v : c.q) total += v;
  for (const Format& f : formats()) {
    const Matrix m = f.pack(c.t, c.out, c.in);
    const idx blocks = (c.out + f.block_outputs - 1) / f.block_outputs;
    ASSERT_EQ(m.block.size(), static_cast<std::size_t>(blocks + 1));
    for (const bool vector : {false, true}) {
      if (vector && !cpu_has(Isa::avx512vbmi)) continue;
      const Kernel& kernel = vector ? f.vector : f.scalar;
      Buffer<std::uint8_t> prepared(std::max<idx>(1, steps(f, c.in) * f.prepared_bytes));
      // In two parts, as two threads do it.
      const idx half = steps(f, c.in) / 2;
      kernel.prepare(c.q.data(), prepared.data(), half, steps(f, c.in));
      kernel.prepare(c.q.data(), prepared.data(), 0, half);
      for (idx b = 0; b < blocks; ++b) {
        std::vector<std::int32_t> sums(static_cast<std::size_t>(f.block_outputs), 1 << 30);
        kernel.product(m.bytes.data() + m.block[static_cast<std::size_t>(b)], c.in,
                       {c.q.data(), prepared.data(), total}, sums.data());
        for (idx lane = 0; lane < f.block_outputs; ++lane) {
          const idx o = b * f.block_outputs + lane;
          std::int32_t expected = 0;
          for (idx k = 0; o < c.out && k < c.in; ++k)
            expected += int{c.t[static_cast<std::size_t>(o * c.in + k)]} *
                        int{c.q[static_cast<std::size_t>(k)]};
          ASSERT_EQ(sums[static_cast<std::size_t>(lane)], expected)
              << f.name << (vector ? " vector" : " scalar") << " K " << c.in << " output " << o;
        }
      }
    }
  }
}

TEST(Lab, EveryKernelEqualsTheDefinition) {
  test::Random random(1);
  for (const idx in : {1,  2,  3,   4,   5,   8,   9,   10,  17,  18,  19,   62,
                       63, 64, 126, 127, 252, 253, 255, 256, 261, 500, 1023, 2051})
    for (const double zeros : {0.0, 1.0 / 3, 0.75, 1.0}) {
      check(make_case(random, 1 + in % 300, in, zeros));
      if (HasFatalFailure()) return;
    }
}

TEST(Lab, LargestSumsDoNotOverflow) {
  for (const std::int8_t code : {std::int8_t{127}, std::int8_t{-128}})
    for (const std::int8_t trit : {std::int8_t{1}, std::int8_t{-1}}) {
      const idx in = 16384;
      Case c{3, in, std::vector<std::int8_t>(static_cast<std::size_t>(3 * in), trit),
             std::vector<std::int8_t>(static_cast<std::size_t>(padded_inputs(in)))};
      std::fill_n(c.q.begin(), in, code);
      check(c);
    }
}

}  // namespace
}  // namespace mmfree::lab
