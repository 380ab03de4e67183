#include "mmfree/model/layout.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>

#include "mmfree/core/buffer.h"
#include "mmfree/core/error.h"
#include "mmfree/core/team.h"
#include "mmfree/model/tiled.h"
#include "mmfree/ops/tile_product/tile_product.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr double kWorth = 1.25;                      // how much faster from memory 2 bits must be
constexpr idx kColdBytes = idx{8} << 20;             // read per measurement from memory
constexpr double kShortest = 3e-4, kLongest = 4e-3;  // seconds of one measurement
constexpr int kRounds = 3;

std::set<idx> widths_of(const MatmulFreeConfig& c) {
  return {c.hidden_size, c.mixer_width(), c.mlp_width()};
}

// The last-level cache; 0 where the system does not tell.
idx last_cache_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

// Takes memory out of all caches. Does nothing where no instruction is known for it: then the first
// measurements are of a cache and 2 bits look better than they are.
void evict([[maybe_unused]] const std::uint8_t* p, [[maybe_unused]] idx bytes) {
#if defined(__x86_64__)
  for (idx i = 0; i < bytes; i += 64) __builtin_ia32_clflush(p + i);
  __builtin_ia32_mfence();
#elif defined(__aarch64__)
  for (idx i = 0; i < bytes; i += 64) asm volatile("dc civac, %0" ::"r"(p + i) : "memory");
  asm volatile("dsb ish" ::: "memory");
#endif
}

// One thread's operands.
struct Operands {
  explicit Operands(idx widest)
      : q(code_stride(widest)), scratch(tile_scratch_bytes(widest)), y(kBlockOutputs) {
    std::fill(q.begin(), q.end(), std::int8_t{1});
  }
  Buffer<std::int8_t> q;
  Buffer<std::uint8_t> scratch;
  Buffer<float> y;
  float scale = 1;
  std::int32_t sum = 0;
};

struct Trial {
  TileFormat format;
  idx in;
  idx bytes;              // of the memory
  double macs_per_s = 0;  // of all threads; the best round
};

struct Part {
  idx first, n;
};
Part part(const Team& team, idx pieces) {
  return {team.begin(pieces), team.end(pieces) - team.begin(pieces)};
}

// Goes through this thread's part of a trial's memory: once, or again until kShortest has passed if
// the memory may come from a cache, and never for much longer than kLongest. Multiply-adds per
// second.
double run_part(const Trial& t, const TileMatrix& w, const Part& p, bool cold,
                TileProductFn product, Operands& own) {
  if (p.n == 0) return 0;
  const Clock::time_point start = Clock::now();
  double seconds = 0;
  idx done = 0;
  while (seconds < kLongest && (done < p.n || (!cold && seconds < kShortest))) {
    product({.w = &w,
             .block = p.first + done % p.n,
             .rows = 1,
             .x = {own.q.data(), &own.scale, &own.sum},
             .y = own.y.data(),
             .y_stride = kBlockOutputs,
             .add = false,
             .scratch = own.scratch.data()});
    ++done;
    seconds = seconds_since(start);
  }
  return static_cast<double>(done * kBlockOutputs * t.in) / seconds;
}

// All trials by one team of threads, so that none of them waits for threads to wake up.
void run_trials(const Ctx& ctx, Buffer<std::uint8_t>& memory, idx widest, bool cold,
                std::vector<Trial>& trials) {
  const TileProductFn product = tile_product();
  std::vector<Operands> operands;
  for (int i = 0; i < ctx.threads; ++i) operands.emplace_back(widest);
  std::vector<double> macs(static_cast<std::size_t>(ctx.threads));
  run_team(ctx, [&](const Team& team) {
    const auto rank = static_cast<std::size_t>(team.rank);
    const Part mine = part(team, memory.size() / 64);
    std::memset(memory.data() + mine.first * 64, 1, static_cast<std::size_t>(mine.n) * 64);
    for (Trial& t : trials) {
      const idx stride = tile_block_bytes(t.format, t.in);
      const idx blocks = t.bytes / stride;
      const TileMatrix w{blocks * kBlockOutputs, t.in, t.format, 1.0F, memory.data(), stride};
      const Part p = part(team, blocks);
      // From a cache the first round only brings the memory there.
      for (int round = cold ? 1 : 0; round <= kRounds; ++round) {
        if (cold) evict(w.blocks + p.first * stride, p.n * stride);
        team.sync();
        macs[rank] = run_part(t, w, p, cold, product, operands[rank]);
        team.sync();
        double sum = 0;
        for (int i = 0; i < team.size; ++i) sum += macs[static_cast<std::size_t>(i)];
        if (team.rank == 0 && round > 0) t.macs_per_s = std::max(t.macs_per_s, sum);
      }
    }
  });
}

}  // namespace

TileFormat Layout::of(idx in) const {
  for (const WidthLayout& w : widths)
    if (w.in == in) return w.format;
  MMFREE_ASSERT(false);
  return TileFormat::base3;
}

Layout forced_layout(const MatmulFreeConfig& config, TileFormat format) {
  Layout l;
  for (const idx in : widths_of(config)) l.widths.push_back({in, format});
  return l;
}

Layout measure_layout(const Ctx& ctx, const MatmulFreeConfig& config) {
  const Clock::time_point start = Clock::now();
  Layout l;
  const auto size = [&](TileFormat f) {
    return static_cast<idx>(matrix_bytes(config, forced_layout(config, f)));
  };
  const idx two_bit_bytes = size(TileFormat::two_bit);
  l.from_cache = two_bit_bytes <= last_cache_bytes() / 2;
  const std::set<idx> widths = widths_of(config);
  // At least one block a thread.
  const idx least = ctx.threads * tile_block_bytes(TileFormat::two_bit, *widths.rbegin());
  const auto bytes = [&](TileFormat f) {
    return std::max(least, l.from_cache ? size(f) : std::min(size(f), kColdBytes));
  };
  std::vector<Trial> trials;
  for (const idx in : widths)
    for (const TileFormat f : {TileFormat::base3, TileFormat::two_bit})
      trials.push_back({f, in, bytes(f)});
  Buffer<std::uint8_t> memory(bytes(TileFormat::two_bit));
  run_trials(ctx, memory, *widths.rbegin(), !l.from_cache, trials);
  for (std::size_t i = 0; i < trials.size(); i += 2) {
    WidthLayout w{trials[i].in, TileFormat::base3, trials[i].macs_per_s, trials[i + 1].macs_per_s};
    const double worth = l.from_cache ? 1.0 : kWorth;
    if (w.two_bit_macs_per_s > worth * w.base3_macs_per_s) w.format = TileFormat::two_bit;
    l.widths.push_back(w);
  }
  l.seconds = seconds_since(start);
  return l;
}

Layout choose_layout(const Ctx& ctx, const MatmulFreeConfig& config,
                     std::optional<TileFormat> forced) {
  return forced ? forced_layout(config, *forced) : measure_layout(ctx, config);
}

}  // namespace mmfree
