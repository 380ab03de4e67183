// Runs the program as a user does, kills it, resumes it, and compares bits.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/core/rng.h"
#include "mmfree/train/checkpoint.h"
#include "mmfree/train/data.h"
#include "mmfree/train/metrics.h"
#include "mmfree/train/run_directory.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using Arguments = std::vector<std::string>;

struct Limits {
  long kill_after_us = -1;  // SIGKILL then; -1 = never
  int signal = SIGKILL;
  rlim_t file_bytes = RLIM_INFINITY;
};

// Exit code of the program, or minus the signal that ended it. Its output goes to `log`.
int run_program(const Arguments& arguments, const fs::path& log, const Limits& limits = {}) {
  std::vector<std::string> words{MMFREE_PROGRAM};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    signal(SIGXFSZ, SIG_IGN);  // so that the limit shows as a failed write, as a full disk does
    const rlimit limit{limits.file_bytes, limits.file_bytes};
    setrlimit(RLIMIT_FSIZE, &limit);
    execv(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  if (limits.kill_after_us >= 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(limits.kill_after_us));
    kill(pid, limits.signal);  // it is our child and not waited for: the number is still its own
  }
  waitpid(pid, &status, 0);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

// A scalar option may be given once, so it is replaced where it is there.
void set_option(Arguments& a, const std::string& name, const std::string& value) {
  for (std::size_t i = 0; i + 1 < a.size(); ++i) {
    if (a[i] != name) continue;
    a[i + 1] = value;
    return;
  }
  a.insert(a.end(), {name, value});
}

class Resume : public ::testing::Test {
 protected:
  static constexpr idx kSteps = 12;

  void SetUp() override {
    std::string text;
    for (std::uint64_t i = 0; i < 3000; ++i) {
      static constexpr const char* kWords[] = {"the ", "cat ",  "sat ", "on ",
                                               "a ",   "mat, ", "and ", "ran.\n"};
      text += kWords[random_bits(3, 0, i) % 8];
    }
    write_file_atomically(dir_.path() / "text.txt", text);
    PrepareOptions prepare;
    prepare.files = {dir_.path() / "text.txt"};
    prepare.out = data();
    prepare.vocab_size = 290;
    prepare.val_fraction = 0.1;
    prepare_data(prepare, [](std::string_view, std::uint64_t, std::uint64_t) {});
  }

  fs::path data() const { return dir_.path() / "data"; }
  fs::path run(const std::string& name) const { return dir_.path() / name; }
  fs::path log() const { return dir_.path() / "log"; }
  std::string log_text() const { return read_text_file(log()); }

  Arguments command(const std::string& name, const Arguments& more = {}) const {
    Arguments a{"train",
                "--data",
                data().string(),
                "--out",
                run(name).string(),
                "--hidden",
                "32",
                "--layers",
                "2",
                "--intermediate",
                "48",
                "--seq",
                "16",
                "--batch-tokens",
                "64",
                "--micro-batch",
                "3",
                "--steps",
                std::to_string(kSteps),
                "--lr",
                "0.01",
                "--threads",
                "1",
                "--eval-every",
                "4",
                "--health-every",
                "3"};
    for (std::size_t i = 0; i < more.size(); ++i) {
      const bool flag = i + 1 == more.size() || more[i + 1].starts_with("--");
      if (flag) {
        a.push_back(more[i]);
      } else {
        set_option(a, more[i], more[i + 1]);
        ++i;
      }
    }
    return a;
  }

  void expect_success(const Arguments& arguments) const {
    ASSERT_EQ(run_program(arguments, log()), 0) << log_text();
  }

  static std::vector<std::string> results(const fs::path& run) {
    std::vector<std::string> list;
    for (const MetricsRow& r : read_metrics(metrics_path(run)))
      list.push_back(std::to_string(r.step) + " " + std::to_string(r.tokens) + " " + exact(r.loss) +
                     " " + exact(r.grad_norm) + " " + (r.val_loss ? exact(*r.val_loss) : "-"));
    return list;
  }
  static std::string exact(double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%a", x);
    return text;
  }

  static void expect_same_file(const fs::path& a, const fs::path& b) {  // binary: not to be printed
    EXPECT_TRUE(read_text_file(a) == read_text_file(b)) << a << " and " << b << " differ";
  }

  void expect_same_bits(const std::string& a, const std::string& b) const {
    EXPECT_EQ(results(run(a)).size(), static_cast<std::size_t>(kSteps));
    EXPECT_EQ(results(run(a)), results(run(b)));
    expect_same_file(run(a) / "model.safetensors", run(b) / "model.safetensors");
    const Checkpoint ca = list_checkpoints(run(a)).back(), cb = list_checkpoints(run(b)).back();
    EXPECT_EQ(ca.step, kSteps);
    EXPECT_EQ(cb.step, kSteps);
    expect_same_file(ca.directory / "optimizer.safetensors",
                     cb.directory / "optimizer.safetensors");
  }

  // Files that only a write in progress may have.
  static std::vector<std::string> leftovers(const fs::path& run) {
    std::vector<std::string> list;
    for (const auto& entry : fs::recursive_directory_iterator(run))
      if (entry.path().filename().string().find(".tmp") != std::string::npos)
        list.push_back(entry.path().string());
    return list;
  }

  test::TempDir dir_;
};

TEST_F(Resume, KilledAtAnyMomentARunEndsWithTheSameBits) {
  const auto start = std::chrono::steady_clock::now();
  expect_success(command("whole", {"--checkpoint-every", "1"}));
  const double took_us =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();

  const Arguments killed = command("killed", {"--checkpoint-every", "1", "--resume"});
  int kills = 0;
  for (std::uint64_t i = 0; i < 20; ++i) {
    const double share = random_uniform(11, 0, i) * 0.9;
    const int code =
        run_program(killed, log(), {.kill_after_us = static_cast<long>(share * took_us)});
    ASSERT_TRUE(code == 0 || code == -SIGKILL) << code << "\n" << log_text();
    if (code == 0) {  // it finished before the signal: begin again
      expect_same_bits("whole", "killed");
      fs::remove_all(run("killed"));
    } else {
      ++kills;
    }
  }
  expect_success(killed);
  EXPECT_GE(kills, 8);
  expect_same_bits("whole", "killed");
  EXPECT_EQ(leftovers(run("killed")), std::vector<std::string>{});
}

TEST_F(Resume, ThreadsDoNotChangeTheBits) {
  // Wide enough that every op splits its work.
  const Arguments wide{"--hidden", "128", "--intermediate", "256",
                       "--seq",    "64",  "--batch-tokens", "256"};
  Arguments two = command("two", wide);
  set_option(two, "--threads", "2");
  expect_success(command("one", wide));
  expect_success(two);
  expect_same_bits("one", "two");
}

TEST_F(Resume, AStoppedRunContinuesFromItsOwnOptions) {
  expect_success(command("whole"));
  expect_success(command("stopped", {"--stop-after", "5"}));
  EXPECT_EQ(list_checkpoints(run("stopped")).back().step, 5);
  expect_success({"train", "--out", run("stopped").string(), "--resume"});
  expect_same_bits("whole", "stopped");
}

TEST_F(Resume, SigtermFinishesTheStepAndSaves) {
  const Arguments endless =
      command("endless", {"--checkpoint-every", "1000000", "--steps", "1000000"});
  const int code = run_program(endless, log(), {.kill_after_us = 1'500'000, .signal = SIGTERM});
  ASSERT_EQ(code, 0) << log_text();
  const std::vector<MetricsRow> rows = read_metrics(metrics_path(run("endless")));
  EXPECT_EQ(list_checkpoints(run("endless")).back().step, rows.empty() ? 0 : rows.back().step);
  EXPECT_NE(log_text().find("--resume"), std::string::npos) << log_text();
}

TEST_F(Resume, OptionsThatChangeTheResultAreRefused) {
  expect_success(command("run", {"--stop-after", "2"}));
  const std::vector<std::string> before = results(run("run"));
  for (const Arguments& other :
       {Arguments{"--lr", "0.02"}, Arguments{"--seed", "2"}, Arguments{"--seq", "8"},
        Arguments{"--hidden", "64"}, Arguments{"--steps", "13"}}) {
    Arguments a{"train", "--out", run("run").string(), "--resume"};
    a.insert(a.end(), other.begin(), other.end());
    EXPECT_EQ(run_program(a, log()), 2) << log_text();
    EXPECT_NE(log_text().find("cannot be resumed with other options"), std::string::npos)
        << log_text();
  }
  EXPECT_EQ(results(run("run")), before);
}

TEST_F(Resume, AnExistingRunIsRefusedWithoutResume) {
  expect_success(command("run", {"--stop-after", "2"}));
  EXPECT_EQ(run_program(command("run"), log()), 2);
  EXPECT_NE(log_text().find("--resume"), std::string::npos) << log_text();
}

TEST_F(Resume, WrongOptionsWriteNothing) {
  for (const Arguments& wrong :
       {Arguments{"--batch-tokens", "65"}, Arguments{"--steps", "0"}, Arguments{"--lr", "x"},
        Arguments{"--schedule", "linear"}, Arguments{"--hidden", "0"},
        Arguments{"--data", (dir_.path() / "absent").string()}}) {
    EXPECT_EQ(run_program(command("run", wrong), log()), 2) << wrong[0] << "\n" << log_text();
    EXPECT_FALSE(fs::exists(run("run"))) << wrong[0];
  }
}

TEST_F(Resume, AFullDiskLeavesTheEarlierCheckpoint) {
  expect_success(command("whole"));
  expect_success(command("full", {"--stop-after", "3"}));
  const rlim_t limit = fs::file_size(run("full") / "model.safetensors") / 2;
  const Arguments resume{"train", "--out", run("full").string(), "--resume", "--stop-after", "2"};
  EXPECT_EQ(run_program(resume, log(), {.file_bytes = limit}), 2) << log_text();
  EXPECT_NE(log_text().find("the checkpoint of step 3 is intact"), std::string::npos) << log_text();
  EXPECT_EQ(list_checkpoints(run("full")).back().step, 3);
  EXPECT_EQ(leftovers(run("full")), std::vector<std::string>{});
  expect_success({"train", "--out", run("full").string(), "--resume", "--stop-after", "0"});
  expect_same_bits("whole", "full");
}

TEST_F(Resume, ALossThatIsNotFiniteEndsTheRunAndKeepsTheCheckpoint) {
  const Arguments wild =
      command("wild", {"--lr", "1000", "--clip", "0", "--warmup", "0", "--steps", "200"});
  EXPECT_EQ(run_program(wild, log()), 1) << log_text();
  EXPECT_NE(log_text().find("expected a finite number"), std::string::npos) << log_text();
  const std::vector<MetricsRow> rows = read_metrics(metrics_path(run("wild")));
  const std::string step = "step " + std::to_string(rows.empty() ? 1 : rows.back().step + 1);
  EXPECT_NE(log_text().find(step + ":"), std::string::npos) << log_text();
  EXPECT_EQ(list_checkpoints(run("wild")).back().step, 0);
}

TEST_F(Resume, TwoProcessesCannotTrainInOneDirectory) {
  expect_success(command("run", {"--stop-after", "2"}));
  const RunLock held(run("run"));
  EXPECT_EQ(run_program(command("run", {"--resume"}), log()), 2);
  EXPECT_NE(log_text().find("another process"), std::string::npos) << log_text();
}

TEST_F(Resume, OnlyTheLastCheckpointsAreKept) {
  expect_success(command("run", {"--checkpoint-every", "2", "--keep", "3"}));
  std::vector<idx> steps;
  for (const Checkpoint& c : list_checkpoints(run("run"))) steps.push_back(c.step);
  EXPECT_EQ(steps, (std::vector<idx>{8, 10, 12}));
  expect_same_file(run("run") / "model.safetensors",
                   list_checkpoints(run("run")).back().directory / "model.safetensors");
}

}  // namespace
}  // namespace mmfree
