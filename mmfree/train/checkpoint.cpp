#include "mmfree/train/checkpoint.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/model/weights.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kPrefix = "step-";

fs::path checkpoints_of(const fs::path& run) {
  return run / "trainer" / "checkpoints";
}

std::optional<idx> step_of(const std::string& name) {
  if (name.compare(0, kPrefix.size(), kPrefix) != 0) return std::nullopt;
  idx step = 0;
  const char* end = name.data() + name.size();
  const auto r = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (r.ec != std::errc() || r.ptr != end || step < 0) return std::nullopt;
  return step;
}

void remove_tree(const fs::path& path) {
  std::error_code ec;
  fs::remove_all(path, ec);
  if (ec) fail(ErrorKind::io, fmt::format("{}: cannot remove: {}", path.string(), ec.message()));
}

void rename_path(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_errno("rename", from.string());
}

// A checkpoint that is being deleted must not look complete, so it loses its name first.
void delete_checkpoint(const Checkpoint& c) {
  fs::path aside = c.directory;
  aside += ".tmp";
  remove_tree(aside);
  rename_path(c.directory, aside);
  sync_directory(c.directory.parent_path());
  remove_tree(aside);
}

void write_optimizer(const fs::path& path, const Network& net, const OptimizerState& o) {
  std::vector<TensorToWrite> tensors;
  for (const ParamInfo& p : net.table)
    tensors.push_back({"exp_avg." + p.name, DType::f32, p.shape, o.m.data() + p.offset});
  for (const ParamInfo& p : net.table)
    tensors.push_back({"exp_avg_sq." + p.name, DType::f32, p.shape, o.v.data() + p.offset});
  write_safetensors(path, tensors, {{"format", "pt"}});
}

std::string state_json(const RunState& s) {
  nlohmann::ordered_json o;
  o["step"] = s.step;
  o["tokens"] = s.tokens;
  o["elapsed_s"] = s.elapsed_s;
  o["val_bits_per_byte"] = s.val_bits_per_byte ? json(*s.val_bits_per_byte) : json(nullptr);
  return o.dump(1) + "\n";
}

void copy_bytes(const fs::path& from, const fs::path& to) {
  const MappedFile source(from);
  AtomicFile target(to);
  target.write(source.bytes().data(), source.bytes().size());
  target.commit();
}

// What AtomicFile and this file leave when they are killed: NAME.tmp and NAME.tmp.PID of the files
// of a run.
bool is_leftover(const std::string& name) {
  for (const std::string_view ours :
       {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json",
        "generation_config.json", "options.json", "metrics.jsonl", "samples.jsonl"})
    if (name.starts_with(ours) && name.substr(ours.size()).starts_with(".tmp")) return true;
  return name.starts_with(kPrefix) && name.ends_with(".tmp");
}

}  // namespace

std::vector<Checkpoint> list_checkpoints(const fs::path& run) {
  std::vector<Checkpoint> list;
  std::error_code ec;
  for (fs::directory_iterator it(checkpoints_of(run), ec), end; !ec && it != end; it.increment(ec))
    if (const auto step = step_of(it->path().filename().string()))
      list.push_back({*step, it->path()});
  if (ec && ec != std::errc::no_such_file_or_directory)
    fail(ErrorKind::io,
         fmt::format("{}: cannot list: {}", checkpoints_of(run).string(), ec.message()));
  std::sort(list.begin(), list.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step < b.step; });
  return list;
}

void save_checkpoint(const fs::path& run, const Network& net, const OptimizerState& optimizer,
                     const RunState& state, idx keep) {
  const fs::path parent = checkpoints_of(run);
  const Checkpoint c{state.step, parent / fmt::format("{}{:08}", kPrefix, state.step)};
  std::error_code ec;
  if (!fs::exists(c.directory, ec)) {
    fs::path aside = c.directory;
    aside += ".tmp";
    try {
      remove_tree(aside);
      make_directories(aside);
      save_network(net, aside);
      write_optimizer(aside / "optimizer.safetensors", net, optimizer);
      write_file_atomically(aside / "state.json", state_json(state));
      sync_directory(aside);
      rename_path(aside, c.directory);
      sync_directory(parent);
    } catch (const Error& e) {
      std::error_code ignored;
      fs::remove_all(aside, ignored);
      const std::vector<Checkpoint> before = list_checkpoints(run);
      fail(e.kind(), fmt::format("checkpoint of step {} not saved: {}; {}", state.step, e.what(),
                                 before.empty() ? std::string("there is no earlier checkpoint")
                                                : fmt::format("the checkpoint of step {} is intact",
                                                              before.back().step)));
    }
  }
  publish_weights(run, c);
  const std::vector<Checkpoint> all = list_checkpoints(run);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < all.size(); ++i)
    delete_checkpoint(all[i]);
}

void publish_weights(const fs::path& run, const Checkpoint& c) {
  const fs::path from = c.directory / "model.safetensors";
  const fs::path to = run / "model.safetensors";
  std::error_code ec;
  if (fs::equivalent(from, to, ec)) return;
  fs::path aside = to;
  aside += ".tmp";
  fs::remove(aside, ec);
  if (::link(from.c_str(), aside.c_str()) == 0) {
    rename_path(aside, to);
    sync_directory(run);
  } else {
    copy_bytes(from, to);  // a file system without hard links
  }
}

RunState load_run_state(const Checkpoint& c) {
  const fs::path path = c.directory / "state.json";
  const json o = json::parse(read_text_file(path), nullptr, /*allow_exceptions=*/false);
  RunState s;
  try {
    s.step = o.at("step").get<idx>();
    s.tokens = o.at("tokens").get<idx>();
    s.elapsed_s = o.at("elapsed_s").get<double>();
    if (!o.at("val_bits_per_byte").is_null())
      s.val_bits_per_byte = o["val_bits_per_byte"].get<double>();
  } catch (const json::exception& e) {
    fail(ErrorKind::format, fmt::format("{}: not the state of a run: {}", path.string(), e.what()));
  }
  if (s.step != c.step || s.tokens < 0)
    fail(ErrorKind::format, fmt::format("{}: step {} and {} tokens, expected step {}",
                                        path.string(), s.step, s.tokens, c.step));
  return s;
}

void load_optimizer(const Checkpoint& c, const Network& net, OptimizerState& optimizer) {
  const SafetensorsFile file(c.directory / "optimizer.safetensors");
  const auto load = [&](const std::string& name, const ParamInfo& p, Buffer<float>& to) {
    const TensorView& t = file.get(name);
    if (t.dtype != DType::f32 || t.shape != p.shape)
      fail(ErrorKind::format,
           fmt::format("{}: {} is {} {}, expected F32 {}", file.path(), name, dtype_name(t.dtype),
                       shape_text(t.shape), shape_text(p.shape)));
    read_as_f32(t, to.data() + p.offset, 0, p.size());
    file.release_pages(t);
  };
  for (const ParamInfo& p : net.table) {
    load("exp_avg." + p.name, p, optimizer.m);
    load("exp_avg_sq." + p.name, p, optimizer.v);
  }
}

void remove_leftovers(const fs::path& run) {
  for (const fs::path& directory : {run, run / "trainer", checkpoints_of(run)}) {
    std::error_code ec;
    std::vector<fs::path> leftovers;
    for (fs::directory_iterator it(directory, ec), end; !ec && it != end; it.increment(ec))
      if (is_leftover(it->path().filename().string())) leftovers.push_back(it->path());
    for (const fs::path& p : leftovers) remove_tree(p);
  }
}

RunLock::RunLock(const fs::path& run) {
  const fs::path path = run / "trainer" / "lock";
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno("create", path.string());
  if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int code = errno;
    close(fd_);
    if (code == EWOULDBLOCK)
      fail(ErrorKind::usage, run.string() + ": another process is training in this directory");
    errno = code;
    fail_errno("lock", path.string());
  }
}

RunLock::~RunLock() {
  close(fd_);
}

}  // namespace mmfree
