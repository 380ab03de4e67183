#pragma once
// Between run directories and GGUF files, streaming one tensor at a time. Either way only where
// nothing is lost that the caller did not ask to lose.
#include <filesystem>
#include <string_view>

#include "mmfree/core/parallel.h"
#include "mmfree/core/progress.h"
#include "mmfree/io/gguf.h"
#include "mmfree/model/latent.h"

namespace mmfree {

enum class StoredWeights { tq1_0, tq2_0, f32, f16, bf16 };

struct ConvertOptions {
  StoredWeights weights = StoredWeights::tq1_0;
  bool allow_rounding = false;  // f16 and bf16 may round weights that do not fit them; overflow is
                                // refused all the same
  bool overwrite = false;
};

// Latent weights to a GGUF file of ternary codes, or of latent weights in the stated type. Norm
// gains and lower bounds of ternary files are F32; everything else keeps its type. Numbers that the
// stated type cannot hold exactly are format Errors unless rounding is allowed.
void write_gguf(const Ctx& ctx, const LatentModel& model, const std::filesystem::path& out,
                const ConvertOptions& options, const Progress& progress = {});

// Latent weights to a run directory; every tensor keeps its type. The folder may exist, but not
// hold a model unless `overwrite` is set.
void write_run_directory(const Ctx& ctx, const LatentModel& model, const std::filesystem::path& out,
                         bool overwrite, const Progress& progress = {});

}  // namespace mmfree
