#include <fmt/core.h>

#include <filesystem>
#include <string>
#include <vector>

#include "mmfree/cli/options.h"
#include "mmfree/train/plot.h"

namespace mmfree {

int cmd_plot(Args args) {
  std::vector<std::filesystem::path> runs;
  std::string out;
  CLI::App app("Draws the curves of training runs (needs gnuplot)", "mmfree plot");
  app.add_option("RUN", runs, "run directories")->required();
  app.add_option("--out", out, "picture to write: .svg or .png")->required();
  if (!parse_options(app, args)) return 0;
  plot_runs(runs, out);
  return 0;
}

}  // namespace mmfree
