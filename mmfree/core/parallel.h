#pragma once
// Threads. Work is split so that no result depends on how many threads there are.
#include <omp.h>

#include <algorithm>

#include "mmfree/core/types.h"

namespace mmfree {

// What an op needs to know about where it runs.
struct Ctx {
  int threads = 1;
};

// Physical cores this process may use.
int default_threads();

// Calls f(begin, end) on disjoint ranges that cover [0, n), at most one range a thread; range
// bounds are multiples of `grain`. f must not throw.
template <class F>
void parallel_for(const Ctx& ctx, idx n, idx grain, const F& f) {
  const idx blocks = (n + grain - 1) / grain;
  const idx workers = std::min<idx>(ctx.threads, blocks);
  if (workers <= 1) {
    if (n > 0) f(idx{0}, n);
    return;
  }
#pragma omp parallel num_threads(static_cast <int>(workers))
  {
    // The runtime may grant fewer threads than asked for, so the split uses what it gave.
    const idx team = omp_get_num_threads();
    const idx me = omp_get_thread_num();
    const idx begin = blocks * me / team * grain;
    const idx end = std::min(n, blocks * (me + 1) / team * grain);
    if (begin < end) f(begin, end);
  }
}

}  // namespace mmfree
