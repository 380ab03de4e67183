#pragma once
// Curves of training runs, drawn by gnuplot.
#include <filesystem>
#include <vector>

namespace mmfree {

// Draws loss, learning rate, gradient norm, validation bits per byte, share of zero codes and
// flipped codes of one or more run directories into a .svg or .png file (by its ending). Reads each
// run's metrics.jsonl, also while the run is writing it. A usage Error if the ending is another one
// or a run has no metrics yet, a resource Error if gnuplot is missing.
void plot_runs(const std::vector<std::filesystem::path>& runs, const std::filesystem::path& out);

}  // namespace mmfree
