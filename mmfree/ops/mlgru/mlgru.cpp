#include "mmfree/ops/mlgru/mlgru.h"

#include "mmfree/core/buffer.h"
#include "mmfree/ops/mlgru/mlgru_variants.h"

namespace mmfree {
namespace {

constexpr idx kChannelGrain = 64;

// Calls body(sequence, begin, end) over all (sequence, channel block) pairs.
template <class F>
void over_sequences_and_channels(const Ctx& ctx, idx batch, idx width, const F& body) {
  const idx blocks = (width + kChannelGrain - 1) / kChannelGrain;
  parallel_for(ctx, batch * blocks, 1, [&](idx first, idx last) {
    for (idx i = first; i < last;) {
      // Neighbouring blocks of one sequence are done in one call: longer rows, fewer loops.
      const idx sequence = i / blocks;
      const idx stop = last < (sequence + 1) * blocks ? last : (sequence + 1) * blocks;
      const idx end = (stop - sequence * blocks) * kChannelGrain;
      body(sequence, (i - sequence * blocks) * kChannelGrain, end < width ? end : width);
      i = stop;
    }
  });
}

}  // namespace

void mlgru(const Ctx& ctx, const Mlgru& a) {
  const MlgruChannelsFn fn = pick(mlgru_channels_variants, active_isa());
  over_sequences_and_channels(ctx, a.batch, a.width, [&](idx sequence, idx begin, idx end) {
    fn(a, sequence, begin, end);
  });
}

void mlgru_backward(const Ctx& ctx, const MlgruBackward& a) {
  const MlgruBackwardChannelsFn fn = pick(mlgru_backward_channels_variants, active_isa());
  Buffer<float> d_bound(a.d_lower_bound == nullptr ? 0 : a.batch * a.width);
  over_sequences_and_channels(ctx, a.batch, a.width, [&](idx sequence, idx begin, idx end) {
    fn(a, sequence, begin, end, d_bound.empty() ? nullptr : d_bound.data() + sequence * a.width);
  });
  if (a.d_lower_bound == nullptr) return;
  for (idx b = 0; b < a.batch; ++b)
    for (idx c = 0; c < a.width; ++c) a.d_lower_bound[c] += d_bound[b * a.width + c];
}

}  // namespace mmfree
