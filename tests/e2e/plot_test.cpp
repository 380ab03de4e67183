// The plot command on metrics written here.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/train/metrics.h"
#include "mmfree/train/plot.h"
#include "mmfree/train/run_directory.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;

void write_run(const fs::path& run, idx steps, bool measured) {
  make_directories(run / "trainer");
  LineLog log(metrics_path(run));
  for (idx i = 1; i <= steps; ++i) {
    MetricsRow r;
    r.step = i;
    r.loss = 8.0 / static_cast<double>(i);
    r.lr = 0.01;
    r.grad_norm = 1.0 / static_cast<double>(i);
    if (measured && i % 5 == 0) {
      r.val_bits_per_byte = 2.0;
      r.health = Health{
          i - 5, {{{0.3, 0.4, 0.3, 0.1}, {}}, {{0.2, 0.5, 0.3, {}}, {}}}, {}, {0.3, 0.4, 0.3, 0.1}};
    }
    log.append(metrics_line(r));
  }
}

// Runs with `path` as PATH.
ErrorKind error_of(const std::vector<fs::path>& runs, const fs::path& out, const char* path) {
  const char* before = std::getenv("PATH");
  const std::string saved = before == nullptr ? "" : before;
  if (path != nullptr) setenv("PATH", path, 1);
  ErrorKind kind = ErrorKind::numeric;  // plot has no such error
  std::string message;
  try {
    plot_runs(runs, out);
  } catch (const Error& e) {
    kind = e.kind();
    message = e.what();
  }
  setenv("PATH", saved.c_str(), 1);
  if (kind == ErrorKind::resource) {
    EXPECT_NE(message.find("gnuplot-nox"), std::string::npos) << message;
  }
  return kind;
}

TEST(Plot, DrawsOneRunAndSeveralAndRunsWithoutMeasurements) {
  if (std::system("gnuplot --version > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "gnuplot is not installed";
  test::TempDir dir;
  const fs::path a = dir.path() / "it's a run", b = dir.path() / "b_2";
  write_run(a, 5000, true);
  write_run(b, 3, false);
  for (const std::vector<fs::path>& runs : {std::vector{a}, std::vector{b}, std::vector{a, b}})
    for (const char* name : {"out.svg", "it's.png"}) {
      plot_runs(runs, dir.path() / name);
      const std::string picture = read_text_file(dir.path() / name);
      if (std::string_view(name).ends_with("svg")) {
        EXPECT_NE(picture.find("<svg"), std::string::npos);
        EXPECT_NE(picture.find("</svg>"), std::string::npos);
        EXPECT_EQ(picture.find("not measured") != std::string::npos,
                  runs.size() == 1 && runs[0] == b);
      } else {
        EXPECT_TRUE(picture.starts_with("\x89PNG"));
      }
      EXPECT_GT(picture.size(), 5000U);
      fs::remove(dir.path() / name);
    }
  for (const auto& entry : fs::directory_iterator(dir.path()))  // no temporary files stay
    EXPECT_TRUE(entry.path() == a || entry.path() == b) << entry.path();
}

TEST(Plot, SaysWhatIsWrong) {
  test::TempDir dir;
  write_run(dir.path() / "run", 3, true);
  const std::vector<fs::path> runs{dir.path() / "run"};
  EXPECT_EQ(error_of(runs, dir.path() / "out.pdf", nullptr), ErrorKind::usage);
  EXPECT_EQ(error_of({dir.path() / "absent"}, dir.path() / "out.svg", nullptr), ErrorKind::usage);
  EXPECT_EQ(error_of(runs, dir.path() / "out.svg", "/nonexistent"), ErrorKind::resource);
  EXPECT_FALSE(fs::exists(dir.path() / "out.svg"));
}

}  // namespace
}  // namespace mmfree
