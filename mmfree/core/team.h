#pragma once
// Threads that go through a computation together, stage by stage: for work too short to start and
// join threads around every stage (one token of decoding has a hundred).
#include <omp.h>

#include <atomic>
#include <cstdint>

#include "mmfree/core/parallel.h"
#include "mmfree/core/types.h"

namespace mmfree {

// All threads of a team wait until each has arrived. Spins for some ten microseconds, then sleeps,
// so that a stage which takes long somewhere, or a machine with other work, costs no cycles.
class Barrier {
 public:
  void wait(int threads) noexcept {
    wait(threads, [] { pause(); });
  }
  // Calls meanwhile() as often as it looks whether the others are there.
  template <class F>
  void wait(int threads, const F& meanwhile) noexcept {
    if (threads == 1) return;
    const std::uint32_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      turn_.notify_all();
      return;
    }
    for (int spin = 0; spin < kSpins; ++spin) {
      if (turn_.load(std::memory_order_acquire) != turn) return;
      meanwhile();
    }
    while (turn_.load(std::memory_order_acquire) == turn)
      turn_.wait(turn, std::memory_order_acquire);
  }
  static void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
  static constexpr int kSpins = 2000;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> turn_{0};
};

struct Team {
  int rank = 0;
  int size = 1;
  Barrier* barrier = nullptr;
  void sync() const noexcept { barrier->wait(size); }
  template <class F>
  void sync(const F& meanwhile) const noexcept {
    barrier->wait(size, meanwhile);
  }
  // This thread's part of n pieces of equal work: contiguous, the same at every call.
  idx begin(idx n) const { return n * rank / size; }
  idx end(idx n) const { return n * (rank + 1) / size; }
};

// Calls f(team) once on each of up to ctx.threads threads. f must not throw.
template <class F>
void run_team(const Ctx& ctx, const F& f) {
  Barrier barrier;
  if (ctx.threads == 1) {
    f(Team{0, 1, &barrier});
    return;
  }
#pragma omp parallel num_threads(ctx.threads)
  f(Team{omp_get_thread_num(), omp_get_num_threads(), &barrier});
}

}  // namespace mmfree
