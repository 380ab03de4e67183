// Measures the laboratory's kernels beside the tiles of inference: products of one token with the
// matrices of a model size, from cache (one matrix again and again) and from memory (copies that no
// cache holds), for several shares of zeros and numbers of threads. Prints one JSON object.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/lab/lab.h"
#include "mmfree/bench/roofline.h"
#include "mmfree/core/cpu.h"
#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/core/team.h"
#include "mmfree/model/config.h"
#include "mmfree/ops/tile_product/tile_product.h"

namespace mmfree::lab {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

struct Options {
  std::string size = "1.3b";
  std::vector<int> threads = {1, 2};
  idx rounds = 5;
  idx memory_mb = 1024;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

// One matrix, ready in some format, and how a team multiplies one token with a copy of it.
struct Subject {
  std::string name;
  Buffer<std::uint8_t> bytes;  // one copy, its size a multiple of 64
  idx blocks = 0;              // pieces of equal work
  idx prepare_steps = 0;
  std::function<void(idx begin, idx end)> prepare;  // may be empty
  std::function<void(const std::uint8_t* copy, idx block, int rank)> product;
};

struct Input {
  idx out, in;
  std::vector<std::int8_t> t;
  Buffer<std::int8_t> q;
  std::int32_t sum = 0;
  float scale = 0.01F;
};

Input make_input(idx out, idx in, double zeros) {
  Input x{out, in, std::vector<std::int8_t>(static_cast<std::size_t>(out * in)),
          Buffer<std::int8_t>(std::max(padded_inputs(in), code_stride(in)))};
  for (std::size_t i = 0; i < x.t.size(); ++i) {
    const std::uint64_t bits = random_bits(1, 0, i);
    const bool zero = static_cast<double>(bits >> 11) * 0x1p-53 < zeros;
    x.t[i] = zero ? std::int8_t{0} : static_cast<std::int8_t>((bits & 1U) != 0 ? 1 : -1);
  }
  for (idx k = 0; k < in; ++k) {
    x.q[k] = static_cast<std::int8_t>(random_bits(2, 0, static_cast<std::uint64_t>(k)) % 255) - 127;
    x.sum += x.q[k];
  }
  return x;
}

Subject lab_subject(const Format& f, const Input& x, int threads) {
  Subject s;
  s.name = f.name;
  auto m = std::make_shared<Matrix>(f.pack(x.t, x.out, x.in));
  s.bytes = std::move(m->bytes);
  s.blocks = static_cast<idx>(m->block.size()) - 1;
  auto prepared =
      std::make_shared<Buffer<std::uint8_t>>(std::max<idx>(64, steps(f, x.in) * f.prepared_bytes));
  auto sums = std::make_shared<Buffer<std::int32_t>>(threads * f.block_outputs);
  if (f.prepared_bytes > 0) {
    s.prepare_steps = steps(f, x.in);
    s.prepare = [&f, &x, prepared](idx begin, idx end) {
      f.vector.prepare(x.q.data(), prepared->data(), begin, end);
    };
  }
  s.product = [&f, &x, m, prepared, sums](const std::uint8_t* copy, idx b, int rank) {
    f.vector.product(copy + m->block[static_cast<std::size_t>(b)], x.in,
                     {x.q.data(), prepared->data(), x.sum}, sums->data() + rank * f.block_outputs);
  };
  return s;
}

Subject tile_subject(TileFormat format, Input& x, int threads) {
  Subject s;
  s.name = tile_format_name(format);
  const idx stride = tile_block_bytes(format, x.in);
  s.blocks = tile_blocks(x.out);
  s.bytes = Buffer<std::uint8_t>(s.blocks * stride);
  const std::vector<std::int8_t> zeros(static_cast<std::size_t>(x.in));
  for (idx o = 0; o < s.blocks * kBlockOutputs; ++o)
    pack_tile_lane(format, o < x.out ? x.t.data() + o * x.in : zeros.data(), x.in,
                   o % kBlockOutputs, s.bytes.data() + o / kBlockOutputs * stride);
  auto y = std::make_shared<Buffer<float>>(threads * kBlockOutputs);
  auto scratch = std::make_shared<Buffer<std::uint8_t>>(threads * tile_scratch_bytes(x.in));
  const TileProductFn product = tile_product();
  s.product = [&x, y, scratch, product, format, stride](const std::uint8_t* copy, idx b, int rank) {
    const TileMatrix w{x.out, x.in, format, 1.0F, copy, stride};
    product({.w = &w,
             .block = b,
             .rows = 1,
             .x = {x.q.data(), &x.scale, &x.sum},
             .y = y->data() + rank * kBlockOutputs,
             .y_stride = kBlockOutputs,
             .add = false,
             .scratch = scratch->data() + rank * tile_scratch_bytes(x.in)});
  };
  return s;
}

// Seconds of one product: a round goes through all copies, or through one for 20 ms.
struct Timed {
  double product = 0, prepare = 0;
};
Timed measure(const Ctx& ctx, const Subject& s, const std::uint8_t* copies, idx n, idx rounds) {
  const auto once = [&](idx calls, bool with_product) {
    const Clock::time_point start = Clock::now();
    run_team(ctx, [&](const Team& team) {
      for (idx c = 0; c < calls; ++c) {
        if (s.prepare) {
          s.prepare(team.begin(s.prepare_steps), team.end(s.prepare_steps));
          team.sync();
        }
        if (!with_product) continue;
        const std::uint8_t* copy = copies + c % n * s.bytes.size();
        for (idx b = team.begin(s.blocks); b < team.end(s.blocks); ++b)
          s.product(copy, b, team.rank);
        team.sync();
      }
    });
    return seconds_since(start) / static_cast<double>(calls);
  };
  const double first = std::max(once(std::min<idx>(n, 3), true), 1e-7);
  const idx calls = n > 1 ? n : std::max<idx>(1, static_cast<idx>(0.02 / first));
  if (n == 1) once(calls, true);
  std::vector<double> product, prepare;
  for (idx r = 0; r < rounds; ++r) {
    product.push_back(once(calls, true));
    if (s.prepare) prepare.push_back(once(std::max<idx>(10, calls), false));
  }
  return {median(product), s.prepare ? median(prepare) : 0};
}

Json run(const Options& o) {
  const MatmulFreeConfig c = size_preset(o.size, 32000);
  struct Shape {
    idx out, in;
  };
  const Shape shapes[] = {{c.mixer_width(), c.hidden_size},
                          {2 * c.mlp_width(), c.hidden_size},
                          {c.hidden_size, c.mlp_width()}};
  const Bystanders others;
  Json rooflines = Json::array();
  std::vector<double> read;
  for (const int threads : o.threads) {
    const Ctx ctx{threads};
    MemoryProbe probe(ctx, idx{1} << 30);
    std::vector<double> v;
    for (int i = 0; i < 5; ++i) v.push_back(probe.read(ctx));
    read.push_back(median(v));
    rooflines.push_back({{"threads", threads},
                         {"read_gb_per_s", read.back() / 1e9},
                         {"int8_gops", int8_ops_per_s(ctx) / 1e9}});
  }
  Json rows = Json::array();
  const int most = *std::max_element(o.threads.begin(), o.threads.end());
  Buffer<std::uint8_t> memory(o.memory_mb << 20);
  for (const Shape& shape : shapes)
    for (const double zeros : {1.0 / 3, 0.5, 0.75}) {
      Input x = make_input(shape.out, shape.in, zeros);
      std::vector<Subject> subjects;
      if (zeros < 0.4)  // neither size nor speed of these depends on the zeros
        for (const TileFormat f : {TileFormat::base3, TileFormat::two_bit})
          subjects.push_back(tile_subject(f, x, most));
      for (const Format& f : formats())
        if (f.by_zeros || zeros < 0.4) subjects.push_back(lab_subject(f, x, most));
      for (const Subject& s : subjects) {
        const idx copies = memory.size() / s.bytes.size();
        parallel_for(Ctx{most}, copies, 1, [&](idx begin, idx end) {
          for (idx i = begin; i < end; ++i)
            std::copy(s.bytes.begin(), s.bytes.end(), memory.data() + i * s.bytes.size());
        });
        for (const bool cached : {true, false})
          for (std::size_t t = 0; t < o.threads.size(); ++t) {
            const Timed m = measure(Ctx{o.threads[t]}, s, memory.data(), cached ? 1 : copies,
                                    cached ? o.rounds : std::max<idx>(1, o.rounds / 2));
            const auto bytes = static_cast<double>(s.bytes.size());
            const auto weights = static_cast<double>(shape.out * shape.in);
            rows.push_back({{"format", s.name},
                            {"out", shape.out},
                            {"in", shape.in},
                            {"zeros", zeros},
                            {"bits_per_weight", 8 * bytes / weights},
                            {"from", cached ? "cache" : "memory"},
                            {"threads", o.threads[t]},
                            {"gmac_per_s", weights / m.product / 1e9},
                            {"gb_per_s", bytes / m.product / 1e9},
                            {"read_share", bytes / m.product / read[t]},
                            {"prepare_share", m.prepare / m.product}});
          }
      }
    }
  const auto share = others.share();
  return {{"what", "cpu_lab"},
          {"size", o.size},
          {"isa", isa_name(active_isa())},
          {"memory_bytes", memory.size()},
          {"roofline", rooflines},
          {"others_cpu_share", share ? Json(*share) : Json(nullptr)},
          {"products", rows}};
}

}  // namespace
}  // namespace mmfree::lab

int main(int argc, char** argv) {
  using namespace mmfree;
  lab::Options o;
  CLI::App app("Measures kernels that inference does not use beside those that it does", "lab");
  app.add_option("--size", o.size, "shapes of 370m, 1.3b, 2.7b, ...")->capture_default_str();
  app.add_option("--threads", o.threads, "numbers of threads")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--rounds", o.rounds, "the median of so many measurements is reported")
      ->check(CLI::Range(idx{1}, idx{1000}))
      ->capture_default_str();
  app.add_option("--memory", o.memory_mb, "MiB of copies that are read through")
      ->check(CLI::Range(idx{64}, idx{1} << 20))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    if (!cpu_has(Isa::avx512vbmi))
      fail(ErrorKind::usage, "lab: its kernels need AVX-512 with VBMI, which this CPU lacks");
    fmt::print("{}\n", lab::run(o).dump(1));
  } catch (const Error& e) {
    fmt::print(stderr, "lab: {}\n", e.what());
    return exit_code(e.kind());
  }
  return 0;
}
