#include "mmfree/train/plot.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/train/metrics.h"
#include "mmfree/train/run_directory.h"

extern char** environ;

namespace mmfree {
namespace {

namespace fs = std::filesystem;

constexpr double kSmoothedShare = 0.02;  // of a run: the span of the smoothed loss
constexpr double kMaxSpan = 50;          // steps
constexpr idx kMaxPoints = 3000;         // of a curve; more are not seen and make large files
constexpr const char* kColors[] = {"#1f6fb4", "#d95f02", "#2a9d62",
                                   "#b0347a", "#7a5cc2", "#a6761d"};

struct Curves {
  std::string name;
  std::vector<MetricsRow> rows;
  std::size_t layers = 0;  // in the health reports; 0 without any
  bool validated = false;
};

Curves load_curves(const fs::path& run) {
  Curves c;
  const fs::path path = metrics_path(run);
  std::error_code ec;
  if (!fs::exists(path, ec))
    fail(ErrorKind::usage,
         fmt::format("{} is no training run: expected {}", run.string(), path.string()));
  c.rows = read_metrics(path);
  if (c.rows.empty()) fail(ErrorKind::usage, fmt::format("{}: no steps yet", path.string()));
  const fs::path plain = run.lexically_normal();
  c.name = (plain.has_filename() ? plain : plain.parent_path()).filename().string();
  for (const MetricsRow& r : c.rows) {
    if (r.health) c.layers = std::max(c.layers, r.health->layers.size());
    c.validated = c.validated || r.val_bits_per_byte;
  }
  return c;
}

// gnuplot's single-quoted strings know one escape: a quote is doubled. Line ends would end the
// command.
std::string quoted(const std::string& text) {
  std::string s = "'";
  for (const char ch : text) {
    if (ch == '\'')
      s += "''";
    else if (static_cast<unsigned char>(ch) < ' ')
      s += '?';
    else
      s += ch;
  }
  return s + "'";
}

// $stepK: step, loss, smoothed loss, lr, grad norm.
std::string step_block(const Curves& c, std::size_t k) {
  std::string s = fmt::format("$step{} << EOD\n", k);
  const idx stride = static_cast<idx>(c.rows.size()) / kMaxPoints + 1;
  const double n = static_cast<double>(c.rows.size());
  const double keep = 1 - 1 / std::clamp(kSmoothedShare * n, 1.0, kMaxSpan);
  double smooth = 0, weight = 0;
  for (std::size_t i = 0; i < c.rows.size(); ++i) {
    const MetricsRow& r = c.rows[i];
    weight = keep * weight + (1 - keep);
    smooth += (1 - keep) / weight * (r.loss - smooth);
    if (static_cast<idx>(i) % stride == 0 || i + 1 == c.rows.size())
      s += fmt::format("{} {} {} {} {}\n", r.step, r.loss, smooth, r.lr, r.grad_norm);
  }
  return s + "EOD\n";
}

std::string validation_block(const Curves& c, std::size_t k) {
  std::string s = fmt::format("$val{} << EOD\n", k);
  for (const MetricsRow& r : c.rows)
    if (r.val_bits_per_byte) s += fmt::format("{} {}\n", r.step, *r.val_bits_per_byte);
  return s + "EOD\n";
}

// $healthK: step, then zeros and flips in per cent of all codes, then the pair for each layer.
std::string health_block(const Curves& c, std::size_t k) {
  std::string s = fmt::format("$health{} << EOD\n", k);
  const auto pair = [](const CodeShares& codes) {
    return fmt::format(" {} {}", 100 * codes.zero,
                       codes.flips ? fmt::format("{}", 100 * *codes.flips) : "NaN");
  };
  for (const MetricsRow& r : c.rows) {
    if (!r.health) continue;
    s += fmt::format("{}{}", r.step, pair(r.health->all));
    for (const LayerHealth& l : r.health->layers) s += pair(l.codes);
    s += '\n';
  }
  return s + "EOD\n";
}

const char* color(std::size_t k) {
  return kColors[k % std::size(kColors)];
}

class Script {
 public:
  explicit Script(const std::vector<Curves>& runs) : runs_(runs) {
    for (std::size_t k = 0; k < runs.size(); ++k) {
      text_ += step_block(runs[k], k);
      if (runs[k].validated) text_ += validation_block(runs[k], k);
      if (runs[k].layers > 0) text_ += health_block(runs[k], k);
    }
  }

  std::string finish(const fs::path& out, bool svg) {
    std::string head =
        svg ? "set terminal svg size 1280,860 font 'Helvetica,13' background '#ffffff'\n"
            : "set terminal pngcairo size 1280,860 font 'Sans,10' background '#ffffff'\n";
    idx last = 1;
    for (const Curves& c : runs_) last = std::max(last, c.rows.back().step);
    head += fmt::format("set output {}\nset xrange [0:{}]\n", quoted(out.string()), last);
    head +=
        "set border 3 lc rgb '#888888'\nset tics nomirror out scale 0.5 textcolor rgb '#333333'\n"
        "set grid lc rgb '#e4e4e4' lw 1 lt 1\nset style data lines\nset xlabel 'step' tc rgb "
        "'#333333'\n"
        "set key top right noenhanced samplen 1.5 spacing 1.1 tc rgb '#333333'\n"
        "set multiplot layout 2,3 margins 0.06,0.985,0.07,0.95 spacing "
        "0.06,0.11\n";
    panel("loss, nats per token", "set autoscale y");
    std::vector<std::string> loss;
    for (std::size_t k = 0; k < runs_.size();
         ++k)  // the single steps pale, below all smoothed curves
      loss.push_back(
          fmt::format("$step{} using 1:2 lw 0.7 lc rgb '#a0{}' notitle", k, color(k) + 1));
    for (std::size_t k = 0; k < runs_.size(); ++k)
      loss.push_back(fmt::format("$step{} using 1:3 lw 2 lc rgb '{}' title {}", k, color(k),
                                 quoted(runs_[k].name)));
    plot(loss);
    validation();
    panel("learning rate", "set yrange [0:*]\nset format y '%g'");
    plot(steps(4));
    panel("gradient norm before clipping", "set autoscale y\nset format y '%g'\nset logscale y");
    plot(steps(5));
    health("zeros among the codes, %", 2);
    health("codes flipped between reports, %", 3);
    return head + text_ + "unset multiplot\nunset output\n";
  }

 private:
  void panel(const std::string& title, const std::string& axis) {
    text_ += fmt::format(
        "unset logscale\nset format y '%g'\n{}\nset title {} tc rgb '#111111' offset 0,-0.4\n",
        axis, quoted(title));
  }
  void plot(const std::vector<std::string>& curves) {
    if (curves.empty()) {  // an empty panel keeps its place
      text_ +=
          "set label 1 'not measured' at graph 0.5,0.5 center tc rgb '#888888'\n"
          "plot [0:1][0:1] NaN notitle\nunset label 1\n";
      return;
    }
    text_ += "plot ";
    for (std::size_t i = 0; i < curves.size(); ++i) text_ += (i > 0 ? ", \\\n  " : "") + curves[i];
    text_ += '\n';
  }
  std::vector<std::string> steps(int column) const {
    std::vector<std::string> list;
    for (std::size_t k = 0; k < runs_.size(); ++k)
      list.push_back(
          fmt::format("$step{} using 1:{} lw 1.5 lc rgb '{}' notitle", k, column, color(k)));
    return list;
  }
  void validation() {
    panel("validation, bits per byte", "set autoscale y");
    std::vector<std::string> list;
    for (std::size_t k = 0; k < runs_.size(); ++k)
      if (runs_[k].validated)
        list.push_back(fmt::format(
            "$val{} using 1:2 with linespoints pt 7 ps 0.4 lw 2 lc rgb '{}' notitle", k, color(k)));
    plot(list);
  }
  // One run: a curve for each layer, from light (first) to dark, and all of them together. Several:
  // one curve each.
  void health(const std::string& title, int column) {
    panel(title, "set autoscale y");
    std::vector<std::string> list;
    for (std::size_t k = 0; k < runs_.size(); ++k) {
      const std::size_t layers = runs_.size() == 1 ? runs_[k].layers : 0;
      for (std::size_t l = 0; l < layers; ++l) {
        const double t =
            layers > 1 ? static_cast<double>(l) / static_cast<double>(layers - 1) : 1.0;
        const int grey = static_cast<int>(std::lround(220 - 130 * t));
        const bool ends = l == 0 || l + 1 == layers;
        list.push_back(
            fmt::format("$health{} using 1:{} with linespoints pt 7 ps 0.2 lw 1 lc rgb "
                        "'#{:02x}{:02x}{:02x}' {}",
                        k, column + 2 * static_cast<int>(l + 1), grey, grey, grey,
                        ends ? fmt::format("title 'layer {}'", l) : "notitle"));
      }
      if (runs_[k].layers > 0)
        list.push_back(
            fmt::format("$health{} using 1:{} with linespoints pt 7 ps 0.4 lw 2 lc rgb '{}' {}", k,
                        column, color(k), layers > 0 ? "title 'all'" : "notitle"));
    }
    plot(list);
  }

  const std::vector<Curves>& runs_;
  std::string text_;
};

// What gnuplot says goes to a file and is shown if it fails: it warns about every flat curve.
void run_gnuplot(const fs::path& script, const fs::path& said) {
  std::string program = "gnuplot", settings = "-d", file = script.string();
  char* argv[] = {program.data(), settings.data(), file.data(), nullptr};
  pid_t pid = 0;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, said.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0644);
  const int code = posix_spawnp(&pid, program.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (code == ENOENT)
    fail(ErrorKind::resource,
         "gnuplot is not installed; expected it in PATH (Debian package gnuplot-nox)");
  if (code != 0)
    fail(ErrorKind::resource, fmt::format("gnuplot cannot be started: {}", std::strerror(code)));
  int status = 0;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) fail_errno("wait for", program);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    fail(ErrorKind::resource,
         fmt::format("gnuplot failed (wait status {}): {}", status, read_text_file(said)));
}

// Removes what is left of a file at the end of the scope.
struct Temporary {
  fs::path path;
  ~Temporary() {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
};

}  // namespace

void plot_runs(const std::vector<fs::path>& runs, const fs::path& out) {
  const std::string ending = out.extension().string();
  if (ending != ".svg" && ending != ".png")
    fail(ErrorKind::usage,
         fmt::format("--out is {}, expected a name that ends in .svg or .png", out.string()));
  std::vector<Curves> curves;
  for (const fs::path& run : runs) curves.push_back(load_curves(run));

  const std::string aside = fmt::format("{}.tmp.{}", out.string(), getpid());
  const Temporary script{aside + ".gp"}, image{aside}, said{aside + ".log"};
  write_file_atomically(script.path, Script(curves).finish(image.path, ending == ".svg"));
  run_gnuplot(script.path, said.path);
  std::error_code ec;
  fs::rename(image.path, out, ec);
  if (ec) fail(ErrorKind::io, fmt::format("{}: cannot write: {}", out.string(), ec.message()));
}

}  // namespace mmfree
