#include "mmfree/ternary/quantize_kernels.h"
#include "mmfree/ternary/quantize_variants.h"

namespace mmfree::scalar {

double abs_sum(const float* w, idx n) noexcept {
  return sum_magnitudes(w, n);
}

void ternary_codes(const float* w, idx n, float inverse, std::int8_t* codes) noexcept {
  round_to_codes(w, n, inverse, codes);
}

}  // namespace mmfree::scalar
