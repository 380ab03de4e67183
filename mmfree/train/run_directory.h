#pragma once
// The run directory of a training run: who may start or continue it, and the files that do not
// change.
//
//   RUN/config.json, model.safetensors, tokenizer.model, tokenizer_config.json,
//   generation_config.json   Hugging Face's RUN/trainer/options.json, metrics.jsonl, samples.jsonl,
//   checkpoints/, lock                           the trainer's
#include <filesystem>
#include <optional>

#include "mmfree/tokenizer/tokenizer.h"
#include "mmfree/train/checkpoint.h"
#include "mmfree/train/options.h"

namespace mmfree {

std::filesystem::path metrics_path(const std::filesystem::path& run);
std::filesystem::path samples_path(const std::filesystem::path& run);
std::filesystem::path options_path(const std::filesystem::path& run);

// The options of the run in a directory, or none if no run was started there.
std::optional<TrainOptions> find_run_options(const std::filesystem::path& run);

// Refuses, before anything is written, a directory in which the options cannot start (resume false:
// it holds a run or a model) or continue (resume true: options that change the result differ, or
// its checkpoints are gone).
void check_run_directory(const TrainOptions& options, bool resume);

// Writes everything but weights and metrics; the tokenizer is the data set's.
void write_run_files(const TrainOptions& options, const Tokenizer& tokenizer);

}  // namespace mmfree
