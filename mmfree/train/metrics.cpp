#include "mmfree/train/metrics.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"

namespace mmfree {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

ordered_json codes_json(const CodeShares& c) {
  ordered_json o = {{"minus", c.minus}, {"zero", c.zero}, {"plus", c.plus}};
  if (c.flips) o["flips"] = *c.flips;
  return o;
}

ordered_json health_json(const Health& h) {
  ordered_json layers = ordered_json::array();
  for (const LayerHealth& l : h.layers) {
    ordered_json o = codes_json(l.codes);
    const LayerSaturation& s = l.saturation;
    o["saturation"] = {{"mixer_in", s.mixer_in},
                       {"mixer_out", s.mixer_out},
                       {"mlp_in", s.mlp_in},
                       {"mlp_out", s.mlp_out}};
    layers.push_back(std::move(o));
  }
  ordered_json o;
  o["flips_since_step"] = h.flips_since_step;
  o["all"] = codes_json(h.all);
  o["layers"] = std::move(layers);
  o["head"] = codes_json(h.head);
  return o;
}

CodeShares codes_from(const json& o) {
  CodeShares c{o.at("minus").get<double>(), o.at("zero").get<double>(), o.at("plus").get<double>(),
               std::nullopt};
  if (o.contains("flips")) c.flips = o["flips"].get<double>();
  return c;
}

Health health_from(const json& o) {
  Health h;
  h.flips_since_step = o.at("flips_since_step").get<idx>();
  h.all = codes_from(o.at("all"));
  h.head = codes_from(o.at("head"));
  for (const json& l : o.at("layers")) {
    const json& s = l.at("saturation");
    h.layers.push_back({codes_from(l),
                        {s.at("mixer_in").get<double>(), s.at("mixer_out").get<double>(),
                         s.at("mlp_in").get<double>(), s.at("mlp_out").get<double>()}});
  }
  return h;
}

MetricsRow row_from(const json& o) {
  MetricsRow r;
  r.step = o.at("step").get<idx>();
  r.loss = o.at("loss").get<double>();
  r.lr = o.at("lr").get<double>();
  r.weight_decay = o.at("weight_decay").get<double>();
  r.grad_norm = o.at("grad_norm").get<double>();
  r.tokens = o.at("tokens").get<idx>();
  r.tokens_per_s = o.at("tokens_per_s").get<double>();
  r.elapsed_s = o.at("elapsed_s").get<double>();
  if (o.contains("device_bytes")) r.device_bytes = o["device_bytes"].get<idx>();
  if (o.contains("mfu")) r.mfu = o["mfu"].get<double>();
  if (o.contains("val_loss")) r.val_loss = o["val_loss"].get<double>();
  if (o.contains("val_bits_per_byte")) r.val_bits_per_byte = o["val_bits_per_byte"].get<double>();
  if (o.contains("health")) r.health = health_from(o["health"]);
  return r;
}

// Calls f(line, number, last) for each line; `last` is true for one without a line end.
void for_each_line(std::string_view text,
                   const std::function<void(std::string_view, idx, bool)>& f) {
  idx number = 1;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const bool torn = end == std::string_view::npos;
    f(text.substr(0, end), number++, torn);
    text.remove_prefix(torn ? text.size() : end + 1);
  }
}

}  // namespace

std::string metrics_line(const MetricsRow& r) {
  ordered_json o;
  o["step"] = r.step;
  o["loss"] = r.loss;
  o["lr"] = r.lr;
  o["weight_decay"] = r.weight_decay;
  o["grad_norm"] = r.grad_norm;
  o["tokens"] = r.tokens;
  o["tokens_per_s"] = r.tokens_per_s;
  o["elapsed_s"] = r.elapsed_s;
  if (r.device_bytes) o["device_bytes"] = *r.device_bytes;
  if (r.mfu) o["mfu"] = *r.mfu;
  if (r.val_loss) o["val_loss"] = *r.val_loss;
  if (r.val_bits_per_byte) o["val_bits_per_byte"] = *r.val_bits_per_byte;
  if (r.health) o["health"] = health_json(*r.health);
  return o.dump();
}

std::vector<MetricsRow> read_metrics(const std::filesystem::path& path) {
  const std::string text = read_text_file(path);
  std::vector<MetricsRow> rows;
  for_each_line(text, [&](std::string_view line, idx number, bool torn) {
    const json o = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (o.is_discarded() && torn) return;
    try {
      if (!o.is_object()) throw std::invalid_argument("not a JSON object");
      rows.push_back(row_from(o));
    } catch (const std::exception& e) {
      fail(ErrorKind::format,
           fmt::format("{}:{}: not a row of metrics: {}", path.string(), number, e.what()));
    }
  });
  return rows;
}

LineLog::LineLog(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno("open", path_.string());
}

LineLog::~LineLog() {
  close(fd_);
}

void LineLog::append(std::string_view line) {
  std::string text(line);
  text += '\n';
  std::string_view left = text;
  while (!left.empty()) {
    const ssize_t n = ::write(fd_, left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("write", path_.string());
    left.remove_prefix(static_cast<std::size_t>(n));
  }
}

void LineLog::sync() {
  if (fsync(fd_) != 0) fail_errno("sync", path_.string());
}

void truncate_lines_after(const std::filesystem::path& path, idx step) {
  std::error_code ec;
  if (!std::filesystem::exists(path, ec)) return;
  const std::string text = read_text_file(path);
  std::string kept;
  for_each_line(text, [&](std::string_view line, idx, bool) {
    const json o = json::parse(line, nullptr, /*allow_exceptions=*/false);
    const auto it = o.is_object() ? o.find("step") : o.end();
    if (!o.is_object() || it == o.end() || !it->is_number_integer() || it->get<idx>() > step)
      return;
    kept.append(line);
    kept += '\n';
  });
  if (kept != text) write_file_atomically(path, kept);
}

}  // namespace mmfree
