#pragma once
#include <cstdint>
#include <vector>

#include "mmfree/ops/bitlinear/bitlinear.h"

namespace mmfree::test {

// The whole layer: norm, quantisers, product, as the ops are put together.
struct BitlinearLayer {
  std::vector<std::int8_t> q;
  std::vector<float> scale, rstd, y, dx, dw, dgain;
  std::vector<std::int32_t> sum;
  TernaryWeights t;

  BitlinearLayer(const Ctx& ctx, idx rows, idx in, idx out, const std::vector<float>& x,
                 const std::vector<float>& gain, const std::vector<float>& w,
                 const std::vector<float>& dy)
      : q(static_cast<std::size_t>(rows * code_stride(in))),
        scale(static_cast<std::size_t>(rows)),
        rstd(scale.size()),
        y(static_cast<std::size_t>(rows * out)),
        dx(x.size()),
        dw(w.size()),
        dgain(gain.size()),
        sum(scale.size()) {
    const CodeRows codes{q.data(), scale.data(), sum.data()};
    RmsnormQuant a{};
    a.rows = rows;
    a.width = in;
    a.x = x.data();
    a.projections = 1;
    a.gain[0] = gain.data();
    a.codes[0] = codes;
    a.inner_rstd = rstd.data();
    rmsnorm_quant(ctx, a);
    ternarize(ctx, w.data(), out, in, t);
    bitlinear(ctx, rows, codes, t, nullptr, y.data());
    std::vector<float> d(x.size());
    bitlinear_backward_input(ctx, rows, dy.data(), t, d.data());
    bitlinear_backward_weight(ctx, rows, dy.data(), out, codes, in, dw.data());
    RmsnormQuantBackward b{};
    b.rows = rows;
    b.width = in;
    b.x = x.data();
    b.projections = 1;
    b.gain[0] = gain.data();
    b.inner_rstd = rstd.data();
    b.dy[0] = d.data();
    b.dx = dx.data();
    b.dgain[0] = dgain.data();
    rmsnorm_quant_backward(ctx, b);
  }
};

}  // namespace mmfree::test
