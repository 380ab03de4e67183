#include "mmfree/hw/machine.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "mmfree/core/error.h"

namespace mmfree::hw {
namespace {

std::size_t size(std::uint64_t n) {
  return static_cast<std::size_t>(n);
}

std::uint32_t bits_of(std::span<const std::int32_t> v) {
  std::uint32_t bits = 0;
  for (const std::int32_t x : v) bits |= static_cast<std::uint32_t>(x ^ (x >> 31));
  return bits;
}

std::uint32_t pack(Scalar s) {
  return s.mantissa | static_cast<std::uint32_t>(static_cast<std::uint16_t>(s.exponent)) << 16;
}
std::uint32_t pack(Scale s) {
  return s.mantissa | static_cast<std::uint32_t>(s.shift) << 16;
}
Scalar as_scalar(std::uint32_t r) {
  return {static_cast<std::uint16_t>(r),
          static_cast<std::int16_t>(static_cast<std::uint16_t>(r >> 16))};
}
Scale as_scale(std::uint32_t r) {
  return {static_cast<std::uint16_t>(r), static_cast<std::uint8_t>((r >> 16) & 63U)};
}

template <class T>
std::uint32_t digest_of(std::uint32_t crc, const std::vector<T>& v, std::uint64_t n) {
  return crc32c(crc, v.data(), size(n) * sizeof(T));
}

}  // namespace

void tile_sums(const std::uint8_t* beat, idx beats, const std::int8_t* codes, std::int32_t* sums,
               idx ports) noexcept {
  std::int32_t lanes[kRows][kLanes] = {};
  for (idx k = 0; k < beats; ++k, beat += kBeatBytes * ports, codes += kLanes) {
    std::uint16_t rest[kLanes];
    for (int j = 0; j < kLanes; ++j) rest[j] = beat[j];
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < kLanes; ++j) {
        const auto digits = static_cast<std::uint16_t>(rest[j] * 3);
        rest[j] = digits & 255U;
        lanes[r][j] += ((digits >> 8) - 1) * codes[j];
      }
  }
  for (int r = 0; r < kRows; ++r) {
    sums[r] = 0;
    for (int j = 0; j < kLanes; ++j) sums[r] += lanes[r][j];
  }
}

Machine::Machine(const Ctx& ctx, const Image& image, int streams)
    : ctx_(ctx),
      image_(&image),
      shape_(image.shape()),
      stream_(static_cast<std::size_t>(streams)),
      inputs_(stream_.size()) {
  const Shape& n = shape_;
  const auto widest = static_cast<std::size_t>(std::max({n.d, n.m, n.f}));
  for (StreamMemory& m : stream_) {
    m.x.resize(static_cast<std::size_t>(n.d));
    m.z.resize(widest);
    m.t.resize(widest);
    m.h.resize(static_cast<std::size_t>(n.layers * n.m));
    for (auto& q : m.q) q.resize(widest);
  }
  for (auto& c : constants_) c.resize((widest + 31) / 32 * 32);
  const idx most = std::max({n.d, n.m, n.f, n.vocab}), group = n.group_rows();
  sums_.resize(static_cast<std::size_t>((most + group - 1) / group * group));
}

const std::uint8_t* Machine::take(std::uint64_t wanted) {
  const auto beats = static_cast<std::uint64_t>(shape_.padded(static_cast<idx>(wanted)));
  while (run_ < runs_.size() && runs_[run_].beats == 0) ++run_;
  if (run_ == runs_.size() || runs_[run_].beats < beats)
    fail(ErrorKind::format,
         fmt::format("{}: instruction {} takes {} beats, and the stream has {} left",
                     image_->name(), pc_, beats, run_ == runs_.size() ? 0 : runs_[run_].beats));
  const auto* p =
      reinterpret_cast<const std::uint8_t*>(image_->bytes().data() + runs_[run_].offset);
  runs_[run_].offset += beats * kBeatBytes;
  runs_[run_].beats -= beats;
  beats_ += beats;
  return p;
}

// More runs than the prefetcher's queue holds, and the sequencer would wait for ever.
void Machine::check_queue() const {
  std::size_t pending = 0;
  for (std::size_t r = run_; r < runs_.size(); ++r) pending += runs_[r].beats > 0 ? 1 : 0;
  if (pending > kRunQueue)
    fail(ErrorKind::format,
         fmt::format("{}: instruction {} makes {} runs of beats wait, expected at most {}",
                     image_->name(), pc_, pending, kRunQueue));
}

void Machine::run(std::span<const TokenInput> inputs, bool with_logits,
                  const std::function<void(const Retired&)>& observer) {
  if (inputs.size() != stream_.size())
    fail(ErrorKind::usage, fmt::format("{} tokens for {} streams", inputs.size(), stream_.size()));
  for (std::size_t s = 0; s < inputs.size(); ++s) {
    if (inputs[s].token < 0 || inputs[s].token >= image_->shape().vocab)
      fail(ErrorKind::usage, fmt::format("token {} of stream {} is outside the vocabulary of {}",
                                         inputs[s].token, s, image_->shape().vocab));
    stream_[s].token = inputs[s].token;
    inputs_[s] = inputs[s];
  }
  runs_.clear();
  run_ = 0;
  layer_ = 0;
  beats_ = instructions_ = 0;
  std::uint64_t count = 0;
  const std::span<const Instruction> program = image_->program();
  for (pc_ = 0;; ++pc_) {
    const Instruction& i = program[pc_];
    if ((i.flags() & kFLAG_LOGITS) != 0 && !with_logits) continue;
    ++instructions_;
    const std::size_t pc = pc_;
    const idx layer = layer_;
    switch (i.op()) {
      case Op::LOOP:
        count = i.field("count");
        layer_ = 0;
        break;
      case Op::ENDL:
        if (static_cast<std::uint64_t>(++layer_) < count) {
          pc_ = size(i.field("target")) - 1;
        } else {
          layer_ = 0;
        }
        break;
      case Op::WST:
        runs_.push_back({i.field("page") * kPageBytes, i.field("beats")});
        check_queue();
        break;
      case Op::TOK:
        for (StreamMemory& m : stream_) m.token = m.best_row;
        break;
      default:
        execute(i);
    }
    if (observer) observer({pc, layer, digest(i)});
    if (i.op() == Op::HALT) break;
  }
  std::uint64_t left = 0;
  for (const Run& r : runs_) left += r.beats;
  if (left != 0)
    fail(ErrorKind::format, fmt::format("{}: the program asks for {} beats that it does not take",
                                        image_->name(), left));
}

void Machine::execute(const Instruction& i) {
  switch (i.op()) {
    case Op::EMB:
      return embed(i);
    case Op::LDC:
      std::memcpy(constants_[i.dst()].data(), take(i.len()), size(i.len()) * kBeatBytes);
      return;
    case Op::LDS: {
      const std::uint8_t* beat = take(1);
      for (StreamMemory& m : stream_) std::memcpy(m.s + i.dst(), beat, kBeatBytes);
      return;
    }
    case Op::TMM:
      return matrix(i);
    default:
      break;
  }
  for (StreamMemory& m : stream_) {
    if (i.op() == Op::STAT) statistics(i, m);
    if (i.op() == Op::QNT) quantize(i, m);
    if (i.op() == Op::SFU) scalar(i, m);
  }
}

void Machine::embed(const Instruction& i) {
  if (i.a() >= stream_.size())
    fail(ErrorKind::format, fmt::format("{}: instruction {} is for stream {} of {}", image_->name(),
                                        pc_, i.a(), stream_.size()));
  StreamMemory& m = stream_[i.a()];
  const auto beats = static_cast<std::uint64_t>(shape_.padded(static_cast<idx>(i.len())));
  const std::uint64_t row = static_cast<std::uint64_t>(m.token) * beats * kBeatBytes;
  runs_.push_back({i.field("page") * kPageBytes + row, beats});
  const std::uint8_t* p = take(i.len());
  for (std::size_t k = 0; k < m.x.size(); ++k) {
    std::int16_t v = 0;
    std::memcpy(&v, p + 2 * k, 2);
    m.x[k] = std::int32_t{v} * (1 << i.field("shift"));
  }
  m.x_bits = bits_of(m.x);
}

void Machine::statistics(const Instruction& i, StreamMemory& m) {
  const std::vector<std::int32_t>& v = i.a() == kVEC_X ? m.x : m.z;
  const int shift = normal_shift(i.a() == kVEC_X ? m.x_bits : m.z_bits);
  const std::vector<std::int16_t>& gains = constants_[i.b()];
  const auto mode = static_cast<unsigned>(i.field("mode"));
  std::uint64_t squares = 0;
  std::uint32_t largest = 0;
  for (std::size_t k = 0; k < size(i.len()) * kLanes; ++k) {
    const std::int32_t normal = normalize(v[k], shift);
    const std::int32_t p = normal * gains[k];
    const std::int32_t t = squared_term(normal, gains[k], mode == kMODE_RAWSSMX);
    squares += static_cast<std::uint64_t>(std::int64_t{t} * t);
    largest = std::max(largest, static_cast<std::uint32_t>(p < 0 ? -p : p));
  }
  if ((mode & kMODE_SS) != 0) m.s[i.dst()] = pack(scalar_from_uint(squares));
  if ((mode & kMODE_MX) != 0) m.s[i.field("mx")] = pack(scalar_from_uint(largest));
}

void Machine::quantize(const Instruction& i, StreamMemory& m) {
  const std::vector<std::int32_t>& v = i.a() == kVEC_X ? m.x : m.z;
  const int shift = normal_shift(i.a() == kVEC_X ? m.x_bits : m.z_bits);
  const std::vector<std::int16_t>& gains = constants_[i.b()];
  const Scale r = as_scale(m.s[i.field("r")]);
  for (std::size_t k = 0; k < size(i.len()) * kLanes; ++k)
    m.q[i.dst()][k] = code(normalize(v[k], shift) * gains[k], r);
}

void Machine::scalar(const Instruction& i, StreamMemory& m) {
  const Scalar a = as_scalar(m.s[i.a()]);
  const Scalar b = as_scalar(m.s[i.b()]);
  switch (static_cast<unsigned>(i.field("fn"))) {
    case kFN_RSQ:
      m.s[i.dst()] = pack(reciprocal_sqrt(a));
      break;
    case kFN_RCP:
      m.s[i.dst()] = pack(scale_from_scalar(reciprocal127(a), 0));
      break;
    case kFN_MUL:
      m.s[i.dst()] = pack(multiply(a, b));
      break;
    case kFN_SCL:
      m.s[i.dst()] = pack(scale_from_scalar(multiply(a, b), static_cast<int>(i.field("frac"))));
      break;
    case kFN_SCT:
      m.s[i.dst()] = pack(scale_from_scalar(multiply(a, input(m).sampling.inverse_temperature),
                                            static_cast<int>(i.field("frac"))));
      break;
  }
}

void Machine::matrix(const Instruction& i) {
  const auto rows = static_cast<idx>(i.field("rows"));
  const idx ports = shape_.ports;
  const idx groups = (rows + shape_.group_rows() - 1) / shape_.group_rows();
  const idx k = static_cast<idx>(i.len());
  const std::uint8_t* weights = take(static_cast<std::uint64_t>(groups * k * ports));
  for (StreamMemory& m : stream_) {
    parallel_for(ctx_, groups * ports, 8, [&](idx begin, idx end) {
      for (idx t = begin; t < end; ++t)  // a group's tile of a port
        tile_sums(weights + (t / ports * k * ports + t % ports) * kBeatBytes, k, m.q[i.a()].data(),
                  sums_.data() + t * kRows, ports);
    });
    epilogue(i, m);
  }
}

void Machine::epilogue(const Instruction& i, StreamMemory& m) {
  const Shape n = image_->shape();
  const auto rows = size(i.field("rows"));
  const Scale s = as_scale(m.s[i.b()]);
  const bool fresh = input(m).fresh;
  std::int32_t* h = m.h.data() + layer_ * n.m;
  const auto act = [&](std::size_t r) {
    return static_cast<std::int32_t>(apply_scale(sums_[r], s, kActBits));
  };
  switch (static_cast<unsigned>(i.field("epi"))) {
    case kEPI_SIGF:
      for (std::size_t r = 0; r < rows; ++r)
        m.t[r] = forget_gate(act(r),
                             static_cast<std::uint16_t>(constants_[i.field("bank")][r]) & 0x7fff);
      break;
    case kEPI_STATE:
      for (std::size_t r = 0; r < rows; ++r) h[r] = update_state(fresh ? 0 : h[r], m.t[r], act(r));
      break;
    case kEPI_SWISHG:
      for (std::size_t r = 0; r < rows; ++r)
        m.z[r] = gated_value(sums_[r], silu(state_as_act(h[r])));
      m.z_bits = bits_of({m.z.data(), rows});
      break;
    case kEPI_RESADD:
      for (std::size_t r = 0; r < rows; ++r)
        m.x[r] = static_cast<std::int32_t>(
            saturate(m.x[r] + apply_scale(sums_[r], s, kVecBits), kVecBits));
      m.x_bits = bits_of({m.x.data(), rows});
      break;
    case kEPI_SILU:
      for (std::size_t r = 0; r < rows; ++r) m.t[r] = silu(act(r));
      break;
    case kEPI_MULT:
      for (std::size_t r = 0; r < rows; ++r) m.z[r] = gated_value(sums_[r], m.t[r]);
      m.z_bits = bits_of({m.z.data(), rows});
      break;
    case kEPI_ARGMAX:
      return choose(rows, {}, {}, m);
    case kEPI_SAMPLE:
      return choose(rows, s, input(m).sampling, m);
  }
}

void Machine::choose(std::size_t rows, Scale scale, const Sampling& sampling, StreamMemory& m) {
  for (std::size_t r = 0; r < rows; ++r) {
    const std::int64_t key = sample_key(sums_[r], scale, sampling, static_cast<std::uint32_t>(r));
    if (r > 0 && key <= m.best_key) continue;
    m.best_row = static_cast<std::int32_t>(r);
    m.best_key = key;
  }
}

std::uint32_t Machine::digest(const Instruction& i) const {
  if (i.op() == Op::EMB) return digest_of(0, stream_[i.a()].x, stream_[i.a()].x.size());
  if (i.op() == Op::LDC) return digest_of(0, constants_[i.dst()], std::uint64_t{i.len()} * 32);
  std::uint32_t crc = 0;
  for (const StreamMemory& m : stream_) crc = digest(i, m, crc);
  return crc;
}

std::uint32_t Machine::digest(const Instruction& i, const StreamMemory& m,
                              std::uint32_t crc) const {
  switch (i.op()) {
    case Op::LDS:
      return crc32c(crc, m.s + i.dst(), kBeatBytes);
    case Op::QNT:
      return digest_of(crc, m.q[i.dst()], std::uint64_t{i.len()} * kLanes);
    case Op::STAT: {
      const std::uint32_t both[2] = {m.s[i.dst()], m.s[i.field("mx")]};
      const auto mode = static_cast<unsigned>(i.field("mode"));
      if (mode == kMODE_SS) return crc32c(crc, &both[0], 4);
      if (mode == kMODE_MX) return crc32c(crc, &both[1], 4);
      return crc32c(crc, both, 8);
    }
    case Op::SFU:
      return crc32c(crc, &m.s[i.dst()], 4);
    case Op::TMM: {
      const std::uint64_t rows = i.field("rows");
      switch (static_cast<unsigned>(i.field("epi"))) {
        case kEPI_SIGF:
        case kEPI_SILU:
          return digest_of(crc, m.t, rows);
        case kEPI_STATE:
          return crc32c(crc, m.h.data() + layer_ * image_->shape().m, size(rows) * 4);
        case kEPI_SWISHG:
        case kEPI_MULT:
          return digest_of(crc, m.z, rows);
        case kEPI_RESADD:
          return digest_of(crc, m.x, rows);
        default: {
          crc = crc32c(crc, &m.best_row, 4);
          return crc32c(crc, &m.best_key, 8);
        }
      }
    }
    default:
      return 0;
  }
}

}  // namespace mmfree::hw
