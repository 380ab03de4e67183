#include "mmfree/ternary/quantize.h"

#include <cmath>
#include <vector>

#include "mmfree/ternary/quantize_variants.h"

namespace mmfree {
namespace {
constexpr idx kChunk =
    1 << 14;  // weights summed in one go; fixed, so that the sum does not depend on threads
}

float ternary_quantize(const Ctx& ctx, const float* w, idx n, std::int8_t* codes) {
  const AbsSumFn abs_sum = pick(abs_sum_variants, active_isa());
  const TernaryCodesFn to_codes = pick(ternary_codes_variants, active_isa());
  std::vector<double> sums(static_cast<std::size_t>((n + kChunk - 1) / kChunk));
  parallel_for(ctx, n, kChunk, [&](idx begin, idx end) {
    for (idx k = begin; k < end; k += kChunk)
      sums[static_cast<std::size_t>(k / kChunk)] = abs_sum(w + k, std::min(kChunk, end - k));
  });
  double total = 0;
  for (const double s : sums) total += s;
  const float mean = static_cast<float>(total / static_cast<double>(n));
  const float scale = mean < 1e-5F ? 1e-5F : mean;
  const float inverse = 1.0F / scale;
  parallel_for(ctx, n, kChunk, [&](idx begin, idx end) {
    to_codes(w + begin, end - begin, inverse, codes + begin);
  });
  return scale;
}

}  // namespace mmfree
