#pragma once
// The step loop: batch, forward and backward, clip, AdamW, ternarise; with validation, health,
// samples and checkpoints. With the same options the losses and weights are the same bits for any
// number of threads, resumed or not.
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "mmfree/model/matmulfree.h"
#include "mmfree/train/data.h"
#include "mmfree/train/metrics.h"
#include "mmfree/train/options.h"

namespace mmfree {

// What the caller may want to know or give. Empty functions are left out.
struct TrainHooks {
  std::function<void(std::string_view)> on_message;  // one line, now and then
  std::function<void(const MetricsRow&)> on_step;    // after the row is in the file
  std::function<std::string(const Network&)>
      make_sample;  // text that continues options.sample_prompt
  std::function<void(idx step, std::string_view)> on_sample;
  std::function<bool()> stop_requested;  // asked after each step
};

struct TrainSummary {
  idx first_step = 0;                       // updates done before this call
  idx step = 0;                             // and after it
  idx steps = 0;                            // of the whole run
  bool finished = false;                    // all steps are done
  double loss = 0;                          // of the last step
  std::optional<double> val_bits_per_byte;  // the last one measured
  idx tokens = 0;                           // of the whole run
  double elapsed_s = 0;                     // of the whole run
  double tokens_per_s = 0;                  // of the steps of this call
};

// Trains in options.out. resume continues from its newest checkpoint, or starts if there is no run
// yet. All that can be refused is refused before anything is written. A loss or gradient norm that
// is not finite is a numeric Error naming the step; the checkpoints stay as they are.
TrainSummary train(const TrainOptions& options, const TokenData& data, bool resume,
                   const TrainHooks& hooks);

}  // namespace mmfree
