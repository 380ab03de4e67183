#pragma once
// The options of a training run, as RUN/trainer/options.json keeps them.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/model/config.h"
#include "mmfree/train/data.h"
#include "mmfree/train/schedule.h"

namespace mmfree {

struct TrainOptions {
  // What is computed. A run keeps these for life: with the same ones its losses are the same bits.
  std::string preset = "mmfree";
  MatmulFreeConfig config;
  std::string data_hash;  // of the token shards
  Schedule schedule;
  idx batch_tokens = 8192;  // of one update: a multiple of seq
  idx seq = 512;            // T: tokens a sequence
  idx micro_batch = 0;      // sequences a forward and backward; sums depend on it in the last bits
  double clip = 1.0;        // largest gradient norm of an update; 0 = no clipping
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  std::uint64_t seed = 1;

  // How it is done. May change when a run is resumed.
  std::filesystem::path data;
  std::filesystem::path out;
  int threads = 1;
  std::string device = "cpu";       // or "cuda"; the last bits of the sums depend on it
  std::string precision = "bf16";   // of activations and gradients on the GPU: bf16 or float32
  std::string backward = "bf16";    // operands of the layers' input gradients there: bf16 or fp8
  std::string moments = "float32";  // AdamW's, as stored on the GPU: float32 or bf16
  double device_memory_gib = 0;     // of the GPU to use at most; 0 = what is free
  idx checkpoint_every = 100;
  idx keep = 2;             // checkpoints
  idx eval_every = 100;     // 0 = never
  idx eval_tokens = 65536;  // of the validation split, at most
  idx health_every = 50;    // 0 = never
  idx sample_every = 0;     // 0 = never
  idx sample_tokens = 64;
  std::string sample_prompt;
  idx stop_after = 0;  // updates of this call after which it saves and stops; 0 = none

  idx sequences() const { return batch_tokens / seq; }
};

// Identifies the contents of a data set wherever it lies: 16 hexadecimal digits over all ids of
// both splits.
std::string hash_data(const TokenData& data);

// Defaults that depend on other options.
double default_peak_lr(idx hidden_size);  // the paper's at its sizes, 4e-3 below them
idx default_warmup_steps(idx steps);
idx default_micro_batch(const MatmulFreeConfig& config, idx seq, idx sequences);
idx default_gpu_micro_batch(idx seq, idx sequences);  // 32768 tokens fill a large GPU

// Throws a usage Error naming the option, its value and what would be right. The configuration is
// checked elsewhere.
void validate(const TrainOptions& options);

std::string options_to_json(const TrainOptions& options);
TrainOptions options_from_json(std::string_view text, std::string_view name);

// "batch_tokens is 8192 in the run and 4096 now", for every option of the first kind that differs.
std::vector<std::string> differing_options(const TrainOptions& run, const TrainOptions& now);

}  // namespace mmfree
