#pragma once
// RUN/trainer/metrics.jsonl: one JSON object for each step, in order. docs/training.md lists the
// keys.
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/core/types.h"
#include "mmfree/train/health.h"

namespace mmfree {

struct MetricsRow {
  idx step = 0;     // updates done, this one included
  double loss = 0;  // nats per token of the batch, before the update
  double lr = 0;
  double weight_decay = 0;
  double grad_norm = 0;             // before clipping
  idx tokens = 0;                   // seen since the start of the run
  double tokens_per_s = 0;          // of this step
  double elapsed_s = 0;             // since the start of the run, pauses between resumes left out
  std::optional<idx> device_bytes;  // GPU memory in use
  std::optional<double> mfu;        // model FLOPs of this step / peak of the GPU in bf16
  std::optional<double> val_loss;   // nats per token
  std::optional<double> val_bits_per_byte;
  std::optional<Health> health;
};

// One line without its end. Numbers read back to the same bits.
std::string metrics_line(const MetricsRow& row);

// The rows of a file. A torn last line (a run that was killed, or is writing now) is left out; any
// other bad line is a format Error with its number.
std::vector<MetricsRow> read_metrics(const std::filesystem::path& path);

// Lines added one by one, each handed to the system at once.
class LineLog {
 public:
  explicit LineLog(std::filesystem::path path);  // created if absent
  LineLog(const LineLog&) = delete;
  LineLog& operator=(const LineLog&) = delete;
  ~LineLog();
  void append(std::string_view line);  // an io Error if it cannot be written whole
  void sync();

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

// Rewrites a file of JSON lines with the complete ones whose "step" is at most `step`; atomic. A
// missing file is fine.
void truncate_lines_after(const std::filesystem::path& path, idx step);

}  // namespace mmfree
