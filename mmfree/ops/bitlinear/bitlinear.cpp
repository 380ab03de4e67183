#include "mmfree/ops/bitlinear/bitlinear.h"

#include <cstring>

#include "mmfree/ops/bitlinear/bitlinear_variants.h"
#include "mmfree/ternary/pack.h"
#include "mmfree/ternary/quantize.h"

namespace mmfree {
namespace {

constexpr idx kGroupBytes = kTileOutputs * kTileInputs;

// Rows of the batch below which threads share the outputs instead of the rows.
constexpr idx kRowsPerThread = 12;

idx tile_count(idx out) {
  return (out + kTileOutputs - 1) / kTileOutputs;
}

// One row of codes into its lane of a tile: bytes t + 1; inputs past the end are 1 (they meet zero
// activations).
void code_row_to_tile(const std::int8_t* codes, idx in, idx lane, std::uint8_t* tile) {
  std::uint8_t* to = tile + lane * kTileInputs;
  idx k = 0;
  for (; k + kTileInputs <= in; k += kTileInputs, to += kGroupBytes) {
    std::uint32_t v;
    std::memcpy(&v, codes + k, sizeof v);
    // Four byte-wise additions of 1 at once: no carry leaves a byte because its top bit is handled
    // apart.
    v = ((v & 0x7f7f7f7fU) + 0x01010101U) ^ (v & 0x80808080U);
    std::memcpy(to, &v, sizeof v);
  }
  if (k == in) return;
  for (idx j = 0; j < kTileInputs; ++j)
    to[j] = static_cast<std::uint8_t>(1 + (k + j < in ? codes[k + j] : 0));
}

BitlinearArgs make_args(const CodeRows& x, idx in, float w_scale, idx out, const float* residual,
                        float* y) {
  return {.q = x.q,
          .q_stride = code_stride(in),
          .x_scale = x.scale,
          .x_sum = x.sum,
          .tiles = nullptr,
          .first_tile = 0,
          .groups = (in + kTileInputs - 1) / kTileInputs,
          .w_scale = w_scale,
          .out = out,
          .residual = residual,
          .y = y};
}

// Scratch of one thread, kept between calls.
template <class T>
T* thread_scratch(idx n) {
  thread_local Buffer<T> buffer;
  if (buffer.size() < n) buffer = Buffer<T>(n);
  return buffer.data();
}

void run_grad_gemm(const Ctx& ctx, idx m, const GradGemmArgs& args) {
  const GradGemmFn fn = pick(grad_gemm_variants, active_isa());
  parallel_for(ctx, m, 12, [&](idx begin, idx end) {
    fn(args, begin, end, thread_scratch<float>(kGradScratch));
  });
}

}  // namespace

void make_tiles(const Ctx& ctx, const std::int8_t* codes, idx out, idx in, std::uint8_t* tiles) {
  const idx size = tile_bytes(kTileOutputs, in);
  parallel_for(ctx, tile_count(out), 1, [&](idx begin, idx end) {
    for (idx t = begin; t < end; ++t) {
      std::uint8_t* tile = tiles + t * size;
      for (idx lane = 0; lane < kTileOutputs; ++lane) {
        const idx o = t * kTileOutputs + lane;
        if (o < out) code_row_to_tile(codes + o * in, in, lane, tile);
      }
    }
  });
}

void ternarize(const Ctx& ctx, const float* w, idx out, idx in, TernaryWeights& result) {
  if (result.out != out || result.in != in) {
    result.out = out;
    result.in = in;
    result.codes = Buffer<std::int8_t>(out * in);
    result.tiles = Buffer<std::uint8_t>(tile_bytes(out, in));
  }
  result.scale = ternary_quantize(ctx, w, out * in, result.codes.data());
  make_tiles(ctx, result.codes.data(), out, in, result.tiles.data());
}

void bitlinear(const Ctx& ctx, idx rows, const CodeRows& x, const TernaryWeights& w,
               const float* residual, float* y) {
  const BitlinearFn fn = pick(bitlinear_variants, active_isa());
  BitlinearArgs args = make_args(x, w.in, w.scale, w.out, residual, y);
  args.tiles = w.tiles.data();
  const idx tiles = tile_count(w.out);
  if (rows >= kRowsPerThread * ctx.threads) {
    parallel_for(ctx, rows, 6, [&](idx begin, idx end) { fn(args, begin, end, 0, tiles); });
  } else if (rows > 0) {
    parallel_for(ctx, tiles, 1, [&](idx begin, idx end) { fn(args, 0, rows, begin, end); });
  }
}

void bitlinear_packed(const Ctx& ctx, idx rows, const CodeRows& x, const PackedMatrix& w,
                      const float* residual, float* y) {
  if (rows == 0) return;
  const BitlinearFn fn = pick(bitlinear_variants, active_isa());
  const idx size = tile_bytes(kTileOutputs, w.in);
  const auto row_bytes = static_cast<idx>(ternary_row_bytes(w.format, w.in));
  // Tiles unpacked at a time: a group that the kernel takes in one go.
  constexpr idx kGroup = 4;
  parallel_for(ctx, tile_count(w.out), kGroup, [&](idx begin, idx end) {
    std::uint8_t* tiles = thread_scratch<std::uint8_t>(kGroup * size);
    std::int8_t* codes = thread_scratch<std::int8_t>(w.in);
    for (idx t0 = begin; t0 < end; t0 += kGroup) {
      const idx t1 = std::min(t0 + kGroup, end);
      for (idx o = t0 * kTileOutputs; o < std::min(t1 * kTileOutputs, w.out); ++o) {
        unpack_row(w.format, w.rows + o * row_bytes, w.in, codes);
        code_row_to_tile(codes, w.in, o % kTileOutputs, tiles + (o / kTileOutputs - t0) * size);
      }
      BitlinearArgs args = make_args(x, w.in, w.scale, w.out, residual, y);
      args.tiles = tiles;
      args.first_tile = t0;
      fn(args, 0, rows, t0, t1);
    }
  });
}

void bitlinear_backward_input(const Ctx& ctx, idx rows, const float* dy, const TernaryWeights& w,
                              float* dx) {
  run_grad_gemm(ctx, rows,
                {.n = w.in,
                 .s = w.out,
                 .a = dy,
                 .a_row = w.out,
                 .a_col = 1,
                 .factor = w.scale,
                 .s_scale = nullptr,
                 .b = w.codes.data(),
                 .b_stride = w.in,
                 .c = dx,
                 .accumulate = false});
}

void bitlinear_backward_weight(const Ctx& ctx, idx rows, const float* dy, idx out,
                               const CodeRows& x, idx in, float* dw) {
  run_grad_gemm(ctx, out,
                {.n = in,
                 .s = rows,
                 .a = dy,
                 .a_row = 1,
                 .a_col = out,
                 .factor = 1.0F,
                 .s_scale = x.scale,
                 .b = x.q,
                 .b_stride = code_stride(in),
                 .c = dw,
                 .accumulate = true});
}

}  // namespace mmfree
