#include "mmfree/train/metrics.h"

#include <gtest/gtest.h>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

MetricsRow row(idx step) {
  MetricsRow r;
  r.step = step;
  r.loss = 1.0 / 3 + static_cast<double>(step);
  r.lr = 0.1;
  r.weight_decay = 0.1;
  r.grad_norm = 2.0 / 7;
  r.tokens = step * 64;
  r.tokens_per_s = 1000;
  r.elapsed_s = 0.064 * static_cast<double>(step);
  return r;
}

TEST(Metrics, RowsReadBackToTheSameBits) {
  test::TempDir dir;
  const auto path = dir.path() / "metrics.jsonl";
  MetricsRow full = row(2);
  full.device_bytes = idx{1} << 36;
  full.mfu = 3.0 / 7;
  full.val_loss = 1.0 / 9;
  full.val_bits_per_byte = 2.0 / 9;
  full.health = Health{1, {{{0.3, 0.4, 0.3, 0.01}, {0.1, 0.2, 0.3, 0.4}}}, {0.2, 0.6, 0.2, {}}, {}};
  {
    LineLog log(path);
    log.append(metrics_line(row(1)));
    log.append(metrics_line(full));
  }
  const std::vector<MetricsRow> rows = read_metrics(path);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(metrics_line(rows[0]), metrics_line(row(1)));
  EXPECT_EQ(metrics_line(rows[1]), metrics_line(full));
  EXPECT_EQ(rows[0].loss, row(1).loss);
  EXPECT_FALSE(rows[0].health);
  EXPECT_FALSE(rows[0].mfu);
  EXPECT_EQ(rows[1].mfu, full.mfu);
  EXPECT_EQ(rows[1].health->layers.at(0).saturation.mlp_out, 0.4);
  EXPECT_EQ(rows[1].health->layers.at(0).codes.flips, 0.01);
  EXPECT_FALSE(rows[1].health->head.flips);
}

TEST(Metrics, ATornLastLineIsLeftOutAndABadOneElsewhereIsAnError) {
  test::TempDir dir;
  const auto path = dir.path() / "metrics.jsonl";
  const std::string good = metrics_line(row(1)) + "\n";
  write_file_atomically(path, good + R"({"step":2,"lo)");
  EXPECT_EQ(read_metrics(path).size(), 1U);
  write_file_atomically(path, good + "{\"step\":2,\"lo\n" + metrics_line(row(3)) + "\n");
  try {
    read_metrics(path);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::format);
    EXPECT_NE(std::string(e.what()).find(":2:"), std::string::npos) << e.what();
  }
}

TEST(Metrics, TruncationKeepsTheBytesOfEarlierRows) {
  test::TempDir dir;
  const auto path = dir.path() / "metrics.jsonl";
  const std::string two = metrics_line(row(1)) + "\n" + metrics_line(row(2)) + "\n";
  write_file_atomically(path, two + metrics_line(row(3)) + "\n" + R"({"step":4,)");
  truncate_lines_after(path, 2);
  EXPECT_EQ(read_text_file(path), two);
  truncate_lines_after(dir.path() / "absent.jsonl", 2);
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "absent.jsonl"));
}

}  // namespace
}  // namespace mmfree
