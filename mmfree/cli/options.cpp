#include "mmfree/cli/options.h"

#include <fmt/core.h>
#include <sys/resource.h>

#include "mmfree/core/error.h"
#include "mmfree/core/parallel.h"

namespace mmfree {

bool parse_options(CLI::App& app, Args args) {
  try {
    app.parse(static_cast<int>(args.size()), args.data());
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return false;
  } catch (const CLI::ParseError& e) {
    fail(ErrorKind::usage, fmt::format("{} ({} --help tells more)", e.what(), app.get_name()));
  }
  return true;
}

void add_threads_option(CLI::App& app, int& threads) {
  threads = default_threads();
  app.add_option("--threads", threads, "CPU threads; results do not depend on it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

void add_numerics_option(CLI::App& app, std::string& numerics) {
  app.add_option("--numerics", numerics,
                 "integer: int8 times ternary, the rest in fp32; fixed: integers only, bit for bit "
                 "what the accelerator computes")
      ->check(CLI::IsMember({"integer", "fixed"}))
      ->capture_default_str();
}

long long peak_rss_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024LL;  // Linux counts in KiB
}

}  // namespace mmfree
