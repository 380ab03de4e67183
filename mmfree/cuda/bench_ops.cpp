#include "mmfree/cuda/bench_ops.h"

#include <algorithm>
#include <functional>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/cuda/device_params.h"
#include "mmfree/cuda/products.h"

namespace mmfree {
namespace {

using cuda::bf16;
using cuda::check;

// Everything the kernels read and write, filled with numbers of ordinary size.
struct Bench {
  Bench(const MatmulFreeConfig& config, idx sequences, idx steps, idx runs)
      : c(config), batch(sequences), length(steps), repeats(runs) {}

  const MatmulFreeConfig& c;
  idx batch, length, repeats;
  cuda::Device device = cuda::select_device();
  cudaStream_t stream = nullptr;  // the default stream
  cuda::Launch l{nullptr, device.multiprocessors};
  cuda::Arena arena;
  cuda::DeviceParams params{c, cuda::Moments::full};
  idx rows = batch * length, d = c.hidden_size, m = c.mixer_width(), f = c.mlp_width();
  idx v = c.vocab_size, head_rows = std::min<idx>(rows, 8192);
  idx wide = std::max({d, m, 2 * f});

  void* workspace;
  float *x, *dx, *ones, *row[8], *partial, *nll;
  bf16 *wide_values[3], *values[6], *logits, *weights;
  std::int8_t *codes, *out_codes[3];
  std::int32_t* labels;
  std::vector<GpuOpTime> times;

  void take() {
    workspace = arena.take<char>(static_cast<idx>(cuda::Products::kWorkspaceBytes));
    params.take(arena);
    x = arena.take<float>(rows * d);
    dx = arena.take<float>(rows * d);
    ones = arena.take<float>(wide);
    for (float*& r : row) r = arena.take<float>(rows);
    partial = arena.take<float>(std::max(3 * rows * m, 2 * f * d + (idx{1} << 24)));
    nll = arena.take<float>(rows);
    for (bf16*& w : wide_values) w = arena.take<bf16>(rows * 2 * f);
    for (bf16*& w : values) w = arena.take<bf16>(rows * std::max(d, m));
    logits = arena.take<bf16>(head_rows * v);
    weights = arena.take<bf16>(std::max(2 * f * d, idx{8192} * 8192));
    codes = arena.take<std::int8_t>(rows * wide);
    for (std::int8_t*& o : out_codes)
      o = arena.take<std::int8_t>(std::max(rows * std::max({d, m, f}), 2 * f * d));
    labels = arena.take<std::int32_t>(rows);
  }

  void fill() {
    std::vector<std::int8_t> block(std::size_t{1} << 20);
    for (std::size_t i = 0; i < block.size(); ++i)
      block[i] = static_cast<std::int8_t>(random_bits(1, 0, i) % 5) - 2;
    for (idx i = 0; i < rows * wide; i += static_cast<idx>(block.size()))
      check(cudaMemcpy(
                codes + i, block.data(),
                static_cast<std::size_t>(std::min(static_cast<idx>(block.size()), rows * wide - i)),
                cudaMemcpyHostToDevice),
            "filling GPU memory");
    const std::vector<float> one(static_cast<std::size_t>(std::max(rows, wide)), 1.0F);
    const auto set = [&](float* to, idx n) {
      check(cudaMemcpy(to, one.data(), static_cast<std::size_t>(n) * sizeof(float),
                       cudaMemcpyHostToDevice),
            "filling GPU memory");
    };
    set(ones, wide);
    for (float* r : row) set(r, rows);
    check(cudaMemset(labels, 0, static_cast<std::size_t>(rows) * sizeof(std::int32_t)),
          "filling GPU memory");
    params.fill_tables(stream);
    refresh();
  }
  void refresh() {  // what backward kernels overwrite
    cuda::expand_codes(l, rows * d, codes, x);
    cuda::expand_codes(l, rows * d, codes, dx);
    for (bf16* w : wide_values) cuda::expand_codes(l, rows * 2 * f, codes, w);
    for (bf16* w : values) cuda::expand_codes(l, rows * std::max(d, m), codes, w);
    cuda::expand_codes(l, 2 * f * d, codes, weights);
  }

  double time(const std::function<void()>& run) {
    run();
    cudaEvent_t start, end;
    check(cudaEventCreate(&start), "creating an event");
    check(cudaEventCreate(&end), "creating an event");
    check(cudaEventRecord(start, stream), "recording an event");
    for (idx i = 0; i < repeats; ++i) run();
    check(cudaEventRecord(end, stream), "recording an event");
    check(cudaEventSynchronize(end), "waiting for the GPU");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, end), "reading an event");
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    return static_cast<double>(ms) * 1e-3 / static_cast<double>(repeats);
  }
  void add(const std::string& name, idx bytes, double operations,
           const std::function<void()>& run) {
    refresh();
    times.push_back({name, time(run), static_cast<double>(bytes), operations});
  }
};

void time_row_kernels(Bench& b) {
  const idx rd = b.rows * b.d, rm = b.rows * b.m, rf = b.rows * b.f;
  cuda::NormQuant<bf16> n{};
  n.rows = b.rows;
  n.width = b.d;
  n.x = b.x;
  n.add = b.values[0];
  n.sum = b.dx;
  n.outer = b.ones;
  n.outer_eps = 1e-6F;
  n.projections = 3;
  cuda::NormQuantBackward<bf16> g{};
  g.rows = b.rows;
  g.width = b.d;
  g.x = b.x;
  g.outer = b.ones;
  g.projections = 3;
  g.outer_rstd = n.outer_rstd = b.row[0];
  g.inner_rstd = n.inner_rstd = b.row[1];
  for (int k = 0; k < 3; ++k) {
    g.gain[k] = n.gain[k] = b.ones;
    n.codes[k] = b.out_codes[k];
    g.largest[k] = n.largest[k] = b.row[2 + k];
    g.dy[k] = b.values[k];
    g.w_scale[k] = b.ones;
    g.dgain[k] = b.nll;
  }
  g.dx = b.dx;
  g.next_largest = b.row[5];
  g.dx_scaled = b.values[3];
  g.partial = b.partial;
  g.douter = b.nll;
  b.add("norm_quant, residual and three projections", rd * (4 + 2 + 4 + 3), 0,
        [&] { cuda::norm_quant(b.l, n); });
  b.add("norm_quant_backward, three projections", rd * (4 + 6 + 8 + 2), 0,
        [&] { cuda::norm_quant_backward(b.l, g); });
  b.add("scan", rm * 6, 0, [&] {
    cuda::scan(b.l, cuda::Scan<bf16>{b.batch, b.length, b.m, b.values[0], b.values[1], nullptr,
                                     nullptr, b.values[2], b.partial});
  });
  b.add("scan_backward", rm * 12, 0, [&] {
    cuda::scan_backward(b.l, cuda::ScanBackward<bf16>{
                                 b.batch, b.length, b.m, b.values[0], b.values[1], nullptr, nullptr,
                                 b.values[2], b.values[3], b.row[2], b.row[3], b.partial, nullptr});
  });
  b.add("gated_quant", rm * 5, 0, [&] {
    cuda::gated_quant(
        b.l, cuda::GatedQuant<bf16>{b.rows, b.m, b.values[0], b.values[1], b.ones, 1e-6F, b.ones,
                                    b.out_codes[0], b.row[2], b.row[0], b.row[1], nullptr});
  });
  b.add("gated_quant_backward", rm * 12, 0, [&] {
    cuda::gated_quant_backward(
        b.l, cuda::GatedQuantBackward<bf16>{b.rows, b.m, b.values[0], b.values[1], b.ones, b.ones,
                                            b.row[2], b.row[0], b.row[1], b.row[3], b.values[2],
                                            b.ones, b.values[3], cuda::Fp8Rows(), b.partial, b.nll,
                                            b.nll, false});
  });
  b.add("swiglu_quant", rf * 5, 0, [&] {
    cuda::swiglu_quant(b.l, cuda::SwigluQuant<bf16>{b.rows, b.f, b.wide_values[0], b.ones,
                                                    b.out_codes[0], b.row[2], b.row[1], nullptr});
  });
  b.add("swiglu_quant_backward", rf * 12, 0, [&] {
    cuda::swiglu_quant_backward(
        b.l, cuda::SwigluQuantBackward<bf16>{b.rows, b.f, b.wide_values[0], b.ones, b.row[2],
                                             b.row[1], b.row[3], b.wide_values[1], b.ones,
                                             cuda::Fp8Rows(), b.partial, b.nll, false});
  });
  b.add("cross_entropy with gradient", b.head_rows * b.v * 4, 0, [&] {
    cuda::cross_entropy(b.l, b.head_rows, b.v, b.logits, b.labels, true, 1.0F, b.row[2], b.nll);
  });
  // Gradient norm 4 bytes a parameter, AdamW 28, codes 4 read and 1 written.
  b.add("gradient norm, AdamW, ternary weights", b.params.size * 37, 0, [&] {
    b.params.update(b.l, {.keep_decayed = 1,
                          .keep = 1,
                          .beta1 = 0.9F,
                          .one_less_beta1 = 0.1F,
                          .beta2 = 0.95F,
                          .one_less_beta2 = 0.05F,
                          .root_correction = 1,
                          .eps = 1e-8F,
                          .step_size = 1e-4F,
                          .clip = 0});
  });
}

void time_products(Bench& b, cuda::Products& products) {
  const auto ops = [&](idx out, idx in) {
    return 2.0 * static_cast<double>(b.rows) * static_cast<double>(out) * static_cast<double>(in);
  };
  const auto forward = [&](const char* name, idx out, idx in) {
    if (!cuda::byte_product_fits(b.device.compute_capability, in, out)) return;
    b.add(name, b.rows * in + out * in + 2 * b.rows * out, ops(out, in), [&, out, in] {
      cuda::int8_product(b.l, b.rows, in, out, b.codes, b.codes, b.row[2], b.ones,
                         b.wide_values[0]);
    });
  };
  forward("int8 product, mixer", b.m, b.d);
  forward("int8 product, gate", 2 * b.f, b.d);
  forward("int8 product, down", b.d, b.f);
  const auto in_fp8 = [&](const char* name, idx out, idx in) {
    if (!cuda::byte_product_fits(b.device.compute_capability, out, in)) return;
    const auto* gradient = reinterpret_cast<const cuda::e4m3*>(b.codes);
    b.add(name, b.rows * out + out * in + 2 * b.rows * in, ops(out, in), [&, out, in, gradient] {
      cuda::fp8_product(b.l, b.rows, out, in, gradient, gradient, b.row[2], b.wide_values[0]);
    });
  };
  in_fp8("fp8 input gradient, mixer", b.m, b.d);
  in_fp8("fp8 input gradient, gate", 2 * b.f, b.d);
  in_fp8("fp8 input gradient, down", b.d, b.f);
  if (b.d % 16 == 0 && b.f % 16 == 0)
    b.add("transposed weights in e4m3, gate", 2 * 2 * b.f * b.d, 0, [&] {
      cuda::transpose_codes(b.l, 2 * b.f, b.d, b.codes,
                            reinterpret_cast<cuda::e4m3*>(b.out_codes[0]));
    });
  if (b.m % 8 == 0)
    b.add("rows of the scan's gradients in e4m3", 3 * b.rows * b.m, 0, [&] {
      cuda::quantize_rows(b.l, b.rows, b.m, b.values[0],
                          {reinterpret_cast<cuda::e4m3*>(b.out_codes[0]), b.row[2]});
    });
  b.add("input gradient, gate", 2 * (b.rows * 2 * b.f + 2 * b.f * b.d + b.rows * b.d),
        ops(2 * b.f, b.d), [&] {
          products.multiply<bf16>(b.stream, b.rows, b.d, 2 * b.f, {b.wide_values[0], false},
                                  {b.weights, false}, b.values[0], false);
        });
  b.add("weight gradient, gate", 2 * (b.rows * 2 * b.f + b.rows * b.d) + 4 * 2 * b.f * b.d,
        ops(2 * b.f, b.d), [&] {
          products.multiply<bf16>(b.stream, 2 * b.f, b.d, b.rows, {b.wide_values[0], true},
                                  {b.values[0], false}, b.partial, false);
        });
}

}  // namespace

GpuOps bench_gpu_ops(const MatmulFreeConfig& config, idx batch, idx length, idx repeats) {
  Bench b(config, batch, length, repeats);
  b.take();
  b.arena.allocate("a smaller --batch needs less");
  b.take();
  b.fill();
  cuda::Products products(b.workspace, cuda::Products::kWorkspaceBytes);
  GpuOps result;
  result.device = b.device.name;
  const idx copied = b.rows * 2 * b.f * 2;
  result.copy_bytes_per_s = 2.0 * static_cast<double>(copied) / b.time([&] {
    check(cudaMemcpyAsync(b.wide_values[1], b.wide_values[0], static_cast<std::size_t>(copied),
                          cudaMemcpyDeviceToDevice, b.stream),
          "copying GPU memory");
  });
  constexpr idx kSquare = 8192;
  if (b.rows * 2 * b.f < kSquare * kSquare)
    fail(ErrorKind::usage, "bench ops --device cuda: expected a larger --batch or --seq");
  result.bf16_ops_per_s =
      2.0 * static_cast<double>(kSquare) * static_cast<double>(kSquare) *
      static_cast<double>(kSquare) / b.time([&] {
        products.multiply<bf16>(b.stream, kSquare, kSquare, kSquare, {b.wide_values[0], false},
                                {b.wide_values[1], true}, b.wide_values[2], false);
      });
  time_row_kernels(b);
  time_products(b, products);
  result.ops = std::move(b.times);
  return result;
}

}  // namespace mmfree
