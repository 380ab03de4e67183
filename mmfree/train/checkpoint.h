#pragma once
// Checkpoints of a run, under RUN/trainer/checkpoints:
//
//   step-00000100/model.safetensors      latent weights, float32 (with a config.json beside it)
//   step-00000100/optimizer.safetensors  exp_avg.NAME and exp_avg_sq.NAME for every parameter
//   step-00000100/state.json             the rest
//
// A checkpoint is written into step-N.tmp, every file and folder synced, then renamed: a folder
// without .tmp is complete. RUN/model.safetensors is always the newest checkpoint's (a hard link,
// or a copy where the file system has none).
#include <filesystem>
#include <optional>
#include <vector>

#include "mmfree/model/matmulfree.h"
#include "mmfree/train/optimizer.h"

namespace mmfree {

// What continues a run besides weights and moments. The data position is the step: batches are a
// function of it.
struct RunState {
  idx step = 0;
  idx tokens = 0;
  double elapsed_s = 0;
  std::optional<double> val_bits_per_byte;  // the last one measured
};

struct Checkpoint {
  idx step = 0;
  std::filesystem::path directory;
};

// Complete checkpoints, oldest first.
std::vector<Checkpoint> list_checkpoints(const std::filesystem::path& run);

// Saves, publishes RUN/model.safetensors and deletes all but the last `keep` checkpoints. On an
// Error what was saved before is intact.
void save_checkpoint(const std::filesystem::path& run, const Network& net,
                     const OptimizerState& optimizer, const RunState& state, idx keep);

RunState load_run_state(const Checkpoint& checkpoint);
void load_optimizer(const Checkpoint& checkpoint, const Network& net, OptimizerState& optimizer);

// RUN/model.safetensors := the checkpoint's.
void publish_weights(const std::filesystem::path& run, const Checkpoint& checkpoint);

// Removes what killed runs left half-written. Only for the owner of the run (RunLock).
void remove_leftovers(const std::filesystem::path& run);

// Held while a process trains in RUN; vanishes with the process. An Error says that another one
// holds it.
class RunLock {
 public:
  explicit RunLock(const std::filesystem::path& run);  // RUN/trainer must exist
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock();

 private:
  int fd_ = -1;
};

}  // namespace mmfree
