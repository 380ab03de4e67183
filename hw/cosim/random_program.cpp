#include "hw/cosim/random_program.h"

#include <algorithm>
#include <cstring>

#include "mmfree/core/rng.h"
#include "mmfree/hw/compile.h"
#include "mmfree/hw/fixed.h"

namespace mmfree::hw {
namespace {

// Beats at the start of the layers' section that hold scalars, for LDS.
constexpr std::uint64_t kScalarBeats = 16;

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : seed_(seed) {}
  std::uint64_t below(std::uint64_t n) { return random_bits(seed_, 0, at_++) % n; }
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + below(high - low + 1);
  }
  bool chance(unsigned percent) { return below(100) < percent; }

 private:
  std::uint64_t seed_, at_ = 0;
};

std::uint64_t u(idx v) {
  return static_cast<std::uint64_t>(v);
}

// What decides which instructions are legal next. The scalars of all registers may be used as
// scalars; only some are scales.
struct Known {
  std::uint64_t x = 0, z = 0;  // elements that the vector's OR covers
  std::uint64_t gates = 0;     // first elements of T that are forget gates
  std::uint32_t scales = 0;    // registers that hold a scale
  bool best = false;           // ARGMAX or SAMPLE has been executed
  void forget() { *this = {.best = best}; }
};

class Generator {
 public:
  Generator(std::uint64_t seed, const Shape& shape, const Addresses& at, int streams)
      : dice_(seed), n_(shape), at_(at), streams_(streams) {
    widest_ = u(std::max({n_.d, n_.m, n_.f}));
    eager_ = dice_.chance(30);
  }

  std::vector<Instruction> program(std::size_t most) {
    prologue();
    // A loop costs two instructions, an executed run one more each.
    const std::size_t end = most - 3;
    while (size() + kRoom < end) {
      if (dice_.chance(12)) {
        loop(end);
      } else if (dice_.chance(10)) {
        conditional();
      } else {
        step();
      }
    }
    flush();
    put(Op::HALT, {});
    flush();
    return program_;
  }

 private:
  static constexpr std::size_t kRoom = 14;  // instructions that one choice below may add at most
  struct Run {
    std::size_t first, last;  // in body_
    std::uint64_t beats;
    bool scalars;
  };

  std::size_t size() const { return program_.size() + 2 * body_.size(); }
  void put(Op op, std::initializer_list<FieldValue> values) {
    body_.push_back(make_instruction(op, values, flags_));
  }

  // Fills all memories, so that nothing is read before it was written.
  void prologue() {
    for (int s = 0; s < streams_; ++s) embed(u(s));
    known_.x = u(n_.d);
    load_scalars(0);
    load_scalars(16);
    for (unsigned bank = 0; bank < kConstBanks; ++bank)
      put(Op::LDC, {{"dst", bank}, {"len", (widest_ + 31) / 32}});
    put(Op::STAT, {{"dst", 1}, {"b", 0}, {"len", u(n_.d) / 64}, {"mx", 2}, {"mode", kMODE_SSMX}});
    put(Op::SFU, {{"dst", 3}, {"a", 2}, {"fn", kFN_RCP}});
    known_.scales |= 8U;
    for (unsigned q = 0; q < kCodeBanks; ++q)
      put(Op::QNT, {{"dst", q}, {"b", q}, {"len", u(n_.d) / 64}, {"r", 3}});
    matrix(kEPI_SIGF, u(n_.m));
    matrix(kEPI_STATE, u(n_.m));
    matrix(kEPI_SILU, u(n_.f));
    matrix(kEPI_MULT, u(n_.f));
    flush();
  }

  void loop(std::size_t end) {
    flush();
    put(Op::LOOP, {{"count", dice_.between(1, u(n_.layers))}});
    flush();
    const std::uint64_t target = program_.size();
    known_.forget();
    const std::uint64_t steps = dice_.between(1, 12);
    for (std::uint64_t k = 0; k < steps && size() + kRoom < end; ++k) step();
    flush();
    put(Op::ENDL, {{"target", target}});
    flush();
    known_.forget();
  }

  // Executed for some tokens only: nothing after it may rely on it.
  void conditional() {
    flush();
    const Known before = known_;
    flags_ = kFLAG_LOGITS;
    const std::uint64_t steps = dice_.between(1, 4);
    for (std::uint64_t k = 0; k < steps; ++k) step();
    flush();
    flags_ = 0;
    known_.forget();
    known_.best = before.best;
  }

  void step() {
    switch (dice_.below(16)) {
      case 0:
        if (flags_ == 0 && dice_.chance(50)) {
          const std::uint64_t stream = dice_.below(u(streams_));
          flush();
          embed(stream);
          // The other streams' X stays what it was.
          known_.x = streams_ == 1 ? u(n_.d) : std::min(known_.x, u(n_.d));
        }
        return;
      case 1:
        return load_scalars(dice_.below(kScalars - 15));
      case 2:
      case 3:
      case 4:
        return load_constants();
      case 5:
      case 6:
        return statistics();
      case 7:
      case 8:
        return quantize();
      case 9:
      case 10:
        return scalar();
      case 11: {
        const Op quiet[] = {Op::NOP, Op::FENCE, Op::TOK};
        const Op op = quiet[dice_.below(3)];
        if (op != Op::TOK || known_.best) put(op, {});
        return;
      }
      default:
        return any_matrix();
    }
  }

  void embed(std::uint64_t stream) {
    put(Op::EMB, {{"a", stream},
                  {"len", u(n_.embedding_row_beats())},
                  {"page", at_.embedding},
                  {"shift", dice_.below(17)}});
    flush();
  }
  void load_constants() {
    put(Op::LDC,
        {{"dst", dice_.below(kConstBanks)}, {"len", dice_.between(1, (widest_ + 31) / 32)}});
  }
  void load_scalars(std::uint64_t first) {
    put(Op::LDS, {{"dst", first}});
    known_.scales &= ~(0xffffU << first);
  }
  std::uint64_t covered(std::uint64_t vec) const {
    return (vec == kVEC_X ? known_.x : known_.z) / kLanes;
  }
  void statistics() {
    const std::uint64_t vec = dice_.below(2);
    if (covered(vec) == 0) return;
    const std::uint64_t modes[] = {kMODE_SS, kMODE_MX, kMODE_SSMX, kMODE_RAWSSMX};
    const std::uint64_t mode = modes[dice_.below(4)], ss = dice_.below(kScalars),
                        mx = dice_.below(kScalars);
    put(Op::STAT, {{"dst", ss},
                   {"a", vec},
                   {"b", dice_.below(kConstBanks)},
                   {"len", dice_.between(1, covered(vec))},
                   {"mx", mx},
                   {"mode", mode}});
    if ((mode & kMODE_SS) != 0) known_.scales &= ~(1U << ss);
    if ((mode & kMODE_MX) != 0) known_.scales &= ~(1U << mx);
  }
  void quantize() {
    const std::uint64_t vec = dice_.below(2);
    if (covered(vec) == 0) return;
    const std::uint64_t bank = dice_.below(kConstBanks), len = dice_.between(1, covered(vec));
    std::uint64_t r = scale();
    if (dice_.chance(70)) {  // codes that use their range
      r = dice_.below(kScalars);
      put(Op::STAT,
          {{"dst", r}, {"a", vec}, {"b", bank}, {"len", len}, {"mx", r}, {"mode", kMODE_MX}});
      put(Op::SFU, {{"dst", r}, {"a", r}, {"fn", kFN_RCP}});
      known_.scales |= 1U << r;
    }
    put(Op::QNT,
        {{"dst", dice_.below(kCodeBanks)}, {"a", vec}, {"b", bank}, {"len", len}, {"r", r}});
  }
  void scalar() {
    const std::uint64_t fn = dice_.below(5), dst = dice_.below(kScalars);
    put(Op::SFU, {{"dst", dst},
                  {"a", dice_.below(kScalars)},
                  {"b", dice_.below(kScalars)},
                  {"fn", fn},
                  {"frac", dice_.below(64)}});
    const std::uint32_t bit = 1U << dst;
    known_.scales = fn == kFN_RCP || fn == kFN_SCL || fn == kFN_SCT ? known_.scales | bit
                                                                    : known_.scales & ~bit;
  }
  // A register that holds a scale; makes one if there is none.
  std::uint64_t scale() {
    const std::uint64_t start = dice_.below(kScalars);
    for (std::uint64_t k = 0; k < kScalars; ++k) {
      const std::uint64_t r = (start + k) % kScalars;
      if ((known_.scales >> r & 1U) != 0) return r;
    }
    const std::uint64_t dst = start;
    put(Op::SFU, {{"dst", dst},
                  {"a", dice_.below(kScalars)},
                  {"b", dice_.below(kScalars)},
                  {"fn", kFN_SCL},
                  {"frac", dice_.below(24)}});
    known_.scales |= 1U << dst;
    return dst;
  }
  void any_matrix() {
    const auto epi = static_cast<unsigned>(dice_.below(8));
    if (epi == kEPI_STATE && known_.gates < kLeastRows) return;
    std::uint64_t most = keeps_row(epi)                           ? u(n_.vocab)
                         : epi == kEPI_RESADD                     ? u(n_.d)
                         : epi == kEPI_STATE                      ? std::min(known_.gates, u(n_.m))
                         : epi == kEPI_SIGF || epi == kEPI_SWISHG ? u(n_.m)
                                                                  : u(n_.f);
    const std::uint64_t least = keeps_row(epi) ? 1 : kLeastRows;
    std::uint64_t rows = dice_.chance(40) ? most : dice_.between(least, most);
    if (dice_.chance(15)) rows = std::min(most, dice_.between(least, 12));
    matrix(epi, rows);
    if (eager_ && dice_.chance(50))
      for (int k = 0; k < 2; ++k) load_constants();
  }
  void matrix(unsigned epi, std::uint64_t rows) {
    const bool scaled = epi != kEPI_SWISHG && epi != kEPI_MULT && epi != kEPI_ARGMAX;
    const std::uint64_t b = scaled ? scale() : dice_.below(kScalars);
    // A matrix of the widest vectors may have more beats than a small image holds.
    const std::uint64_t most = std::min(widest_ / kLanes, available() / matrix_beats(rows, 1));
    put(Op::TMM, {{"a", dice_.below(kCodeBanks)},
                  {"b", b},
                  {"len", dice_.chance(40) ? 1 : dice_.between(1, most)},
                  {"epi", epi},
                  {"rows", rows},
                  {"bank", dice_.below(kConstBanks)}});
    if (epi == kEPI_SIGF) known_.gates = std::max(known_.gates, rows);
    if (epi == kEPI_SILU) known_.gates = 0;
    if (epi == kEPI_SWISHG || epi == kEPI_MULT) known_.z = rows;
    if (epi == kEPI_RESADD) known_.x = rows;
    if (keeps_row(epi) && flags_ == 0) known_.best = true;
  }

  std::uint64_t taken(const Instruction& i) const {
    switch (i.op()) {
      case Op::LDC:
        return u(n_.padded(static_cast<idx>(i.len())));
      case Op::LDS:
        return u(n_.ports);
      case Op::TMM:
        return matrix_beats(i.field("rows"), i.len());
      default:
        return 0;
    }
  }

  std::uint64_t matrix_beats(std::uint64_t rows, std::uint64_t len) const {
    return u(n_.matrix_beats(static_cast<idx>(rows), static_cast<idx>(len) * kLanes));
  }

  // Moves body_ into the program: the beats that it takes become runs, appended somewhere before
  // their first consumer.
  void flush() {
    std::vector<Run> runs;
    for (std::size_t k = 0; k < body_.size(); ++k) {
      const std::uint64_t beats = taken(body_[k]);
      if (beats == 0) continue;
      const bool scalars = body_[k].op() == Op::LDS;
      const std::uint64_t most = scalars ? kScalarBeats : available();
      const bool join = !runs.empty() && runs.back().scalars == scalars &&
                        runs.back().beats + beats <= most && dice_.chance(eager_ ? 5 : 60);
      if (join) {
        runs.back().last = k;
        runs.back().beats += beats;
      } else {
        runs.push_back({k, k, beats, scalars});
      }
    }
    std::size_t next = 0;
    for (std::size_t k = 0; k < body_.size(); ++k) {
      while (next < runs.size()) {
        std::size_t pending = 0;
        for (std::size_t r = 0; r < next; ++r) pending += runs[r].last >= k ? 1 : 0;
        const bool now =
            runs[next].first == k || (pending < kRunQueue && (eager_ || dice_.chance(40)));
        if (!now) break;
        append(runs[next++]);
      }
      program_.push_back(body_[k]);
    }
    body_.clear();
  }
  // Beats from the second page of the layers to the end of the head.
  std::uint64_t available() const { return (at_.head - at_.layers - 1) * 64 + u(n_.head_beats()); }
  void append(const Run& r) {
    std::uint64_t page = at_.layers;
    if (!r.scalars) {
      const std::uint64_t spare = (available() - r.beats) / 64;
      page = at_.layers + 1 + dice_.below(spare + 1);
    }
    program_.push_back(make_instruction(Op::WST, {{"page", page}, {"beats", r.beats}}, flags_));
  }

  Dice dice_;
  Shape n_;
  Addresses at_;
  int streams_;
  std::uint64_t widest_ = 0;
  // Appends many short runs as early as it may: behind a long matrix they fill the queue, and WST
  // waits.
  bool eager_ = false;
  unsigned flags_ = 0;
  Known known_;
  std::vector<Instruction> program_, body_;
};

}  // namespace

std::vector<std::byte> random_program_image(std::uint64_t seed, int streams, std::size_t most,
                                            int ports) {
  Dice dice(~seed);
  const std::uint64_t widest = dice.chance(25) ? 10 : 5;
  const auto width = [&] { return static_cast<idx>(dice.between(1, widest)) * kLanes; };
  Shape shape{};
  shape.d = width();
  shape.m = width();
  shape.f = width();
  shape.layers = static_cast<idx>(dice.between(1, 3));
  shape.vocab = static_cast<idx>(dice.between(1, 150));
  shape.ports = ports;
  const Addresses at = place_sections(shape, most * 16);
  const std::vector<Instruction> program = Generator(seed, shape, at, streams).program(most);

  ImageHeader h{};
  h.magic = kImageMagic;
  h.version = kImageVersion;
  h.isa = kIsaVersion;
  h.lanes = kLanes;
  h.rows = kRows;
  h.ports = static_cast<std::uint32_t>(ports);
  h.d = static_cast<std::uint32_t>(shape.d);
  h.m = static_cast<std::uint32_t>(shape.m);
  h.f = static_cast<std::uint32_t>(shape.f);
  h.layers = static_cast<std::uint32_t>(shape.layers);
  h.vocab = static_cast<std::uint32_t>(shape.vocab);
  h.bos = h.eos = -1;
  const std::uint64_t lengths[kSections] = {
      program.size() * 16, u(shape.vocab * shape.padded(shape.embedding_row_beats())) * kBeatBytes,
      u(shape.layers * shape.layer_beats()) * kBeatBytes, u(shape.head_beats()) * kBeatBytes, 0};
  std::uint64_t end = kPageBytes;
  for (std::size_t s = 0; s < kSections; ++s) {
    h.sections[s].offset = end;
    h.sections[s].bytes = lengths[s];
    end = (end + lengths[s] + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
  std::vector<std::byte> bytes(end);
  for (std::size_t k = static_cast<std::size_t>(at.embedding) * kPageBytes; k < bytes.size(); ++k)
    bytes[k] = std::byte{static_cast<unsigned char>(random_bits(seed, 1, k) & 255U)};
  std::byte* scalars = bytes.data() + at.layers * kPageBytes;
  for (std::size_t k = 0; k < kScalarBeats * 16; ++k) {
    const int span = dice.chance(3) ? 2000 : 30;
    const std::uint16_t mantissa =
        dice.chance(5) ? 0 : static_cast<std::uint16_t>(0x8000U | dice.below(0x8000));
    const auto exponent = static_cast<std::int16_t>(
        mantissa == 0 ? 0 : static_cast<int>(dice.below(u(2 * span))) - span);
    std::memcpy(scalars + 4 * k, &mantissa, 2);
    std::memcpy(scalars + 4 * k + 2, &exponent, 2);
  }
  for (std::size_t k = 0; k < program.size(); ++k) {
    std::memcpy(bytes.data() + kPageBytes + 16 * k, &program[k].low, 8);
    std::memcpy(bytes.data() + kPageBytes + 16 * k + 8, &program[k].high, 8);
  }
  for (SectionEntry& s : h.sections) s.crc = crc32c(0, bytes.data() + s.offset, s.bytes);
  h.file_bytes = bytes.size();
  h.crc = crc32c(0, &h, offsetof(ImageHeader, crc));
  std::memcpy(bytes.data(), &h, sizeof h);
  return bytes;
}

}  // namespace mmfree::hw
