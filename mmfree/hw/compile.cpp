#include "mmfree/hw/compile.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "mmfree/core/error.h"

namespace mmfree::hw {
namespace {

// Scalar registers of a layer. Constants come first from the stream, 16 registers at once.
constexpr unsigned kConstants = 16;
enum Constant : unsigned { f_c = kConstants, i_c, o_c, p_c, down_c };

class Builder {
 public:
  Builder(const Shape& shape) : n_(shape) {}
  std::vector<Instruction> program;

  void add(Op op, std::initializer_list<FieldValue> values) {
    program.push_back(make_instruction(op, values, flags));
  }
  unsigned flags = 0;

  void constants(unsigned bank, idx n) {
    add(Op::LDC, {{"dst", bank}, {"len", u(constant_beats(n))}});
  }
  void stat(unsigned vec, unsigned bank, idx n, unsigned mode, unsigned squares, unsigned maximum) {
    add(Op::STAT, {{"dst", squares},
                   {"a", vec},
                   {"b", bank},
                   {"len", u(n / kLanes)},
                   {"mx", maximum},
                   {"mode", mode}});
  }
  void codes(unsigned q, unsigned vec, unsigned bank, idx n, unsigned r) {
    add(Op::QNT, {{"dst", q}, {"a", vec}, {"b", bank}, {"len", u(n / kLanes)}, {"r", r}});
  }
  void sfu(unsigned fn, unsigned dst, unsigned a, unsigned b = 0, int frac = 0) {
    add(Op::SFU, {{"dst", dst}, {"a", a}, {"b", b}, {"fn", fn}, {"frac", u(frac)}});
  }
  // scale = maximum * root * constant * 2^frac, through register t.
  void scale(unsigned dst, unsigned maximum, unsigned root, unsigned constant, int frac,
             unsigned t) {
    sfu(kFN_MUL, t, maximum, root);
    sfu(kFN_SCL, dst, t, constant, frac);
  }
  void matrix(unsigned q, unsigned scale_register, idx inputs, unsigned epi, idx rows,
              unsigned bank = 0) {
    add(Op::TMM, {{"a", q},
                  {"b", scale_register},
                  {"len", u(inputs / kLanes)},
                  {"epi", epi},
                  {"rows", u(rows)},
                  {"bank", bank}});
  }

  // Loads come as early as the banks allow, where the tile waits for codes anyway; statistics and
  // codes of the next projection run beside the tile. The stream's order (write_layer) is the order
  // of the loads and matrices here.
  void layer() {
    const idx d = n_.d, m = n_.m, f = n_.f;
    add(Op::LDS, {{"dst", kConstants}});
    constants(0, d);  // attn_g1
    stat(kVEC_X, 0, d, kMODE_SS, 0, 0);
    constants(1, d);  // f_g
    stat(kVEC_X, 1, d, kMODE_MX, 0, 2);
    sfu(kFN_RSQ, 1, 0);
    sfu(kFN_RCP, 3, 2);
    constants(2, m);  // bound
    constants(3, d);  // i_g
    codes(0, kVEC_X, 1, d, 3);
    scale(5, 2, 1, f_c, kActFrac, 4);
    stat(kVEC_X, 3, d, kMODE_MX, 0, 6);
    constants(0, d);  // g_g
    matrix(0, 5, d, kEPI_SIGF, m, 2);
    sfu(kFN_RCP, 7, 6);
    codes(1, kVEC_X, 3, d, 7);
    scale(9, 6, 1, i_c, kActFrac, 8);
    stat(kVEC_X, 0, d, kMODE_MX, 0, 10);
    sfu(kFN_RCP, 11, 10);
    matrix(1, 9, d, kEPI_STATE, m);
    codes(0, kVEC_X, 0, d, 11);
    matrix(0, 0, d, kEPI_SWISHG, m);

    constants(1, m);  // o_g1
    stat(kVEC_Z, 1, m, kMODE_SS, 12, 0);
    constants(3, m);  // o_g
    stat(kVEC_Z, 3, m, kMODE_MX, 0, 13);
    sfu(kFN_RSQ, 15, 12);
    sfu(kFN_RCP, 14, 13);
    constants(0, d);  // mlp_g1
    constants(2, d);  // gate_g
    codes(1, kVEC_Z, 3, m, 14);
    scale(22, 13, 15, o_c, kResidualFrac, 21);
    matrix(1, 22, m, kEPI_RESADD, d);

    stat(kVEC_X, 0, d, kMODE_SS, 0, 0);
    stat(kVEC_X, 2, d, kMODE_MX, 0, 2);
    sfu(kFN_RSQ, 1, 0);
    sfu(kFN_RCP, 3, 2);
    constants(1, f);  // down_g
    codes(0, kVEC_X, 2, d, 3);
    scale(5, 2, 1, p_c, kActFrac, 4);
    matrix(0, 5, d, kEPI_SILU, f);
    matrix(0, 0, d, kEPI_MULT, f);

    stat(kVEC_Z, 1, f, kMODE_RAWSSMX, 6, 7);
    sfu(kFN_RCP, 8, 7);
    sfu(kFN_RSQ, 9, 6);
    codes(1, kVEC_Z, 1, f, 8);
    scale(11, 7, 9, down_c, kResidualFrac, 10);
    matrix(1, 11, f, kEPI_RESADD, d);
  }

  void head() {
    add(Op::LDS, {{"dst", kConstants}});
    constants(0, n_.d);  // head_g1, for the scale of logits; codes do not need it
    stat(kVEC_X, 0, n_.d, kMODE_SS, 0, 0);
    constants(1, n_.d);  // head_g
    stat(kVEC_X, 1, n_.d, kMODE_MX, 0, 2);
    sfu(kFN_RSQ, 1, 0);
    sfu(kFN_RCP, 3, 2);
    codes(0, kVEC_X, 1, n_.d, 3);
    sfu(kFN_MUL, 4, 2, 1);
    sfu(kFN_MUL, 5, 4, kConstants);
    sfu(kFN_SCT, 6, 5, 0, kLogitFrac);
    matrix(0, 6, n_.d, kEPI_SAMPLE, n_.vocab);
  }

  static std::uint64_t u(idx v) { return static_cast<std::uint64_t>(v); }

 private:
  Shape n_;
};

std::uint64_t pages(std::uint64_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes;
}

// Writes a section and keeps its entry.
class Writer {
 public:
  Writer(const std::filesystem::path& path, const Shape& shape) : file_(path), shape_(shape) {}
  ImageHeader header{};

  idx ports() const { return shape_.ports; }
  void begin(Section s) {
    pad(kPageBytes);
    entry_ = &header.sections[static_cast<std::size_t>(s)];
    entry_->offset = file_.position();
  }
  void put(const void* data, std::size_t bytes) {
    file_.write(data, bytes);
    entry_->crc = crc32c(entry_->crc, data, bytes);
    entry_->bytes += bytes;
  }
  // All that is in the stream begins with a wide beat.
  void put_padded(const void* data, std::size_t bytes) {
    put(data, bytes);
    const std::size_t wide = kBeatBytes * static_cast<std::size_t>(shape_.ports);
    const std::vector<std::byte> zeros((wide - bytes % wide) % wide);
    put(zeros.data(), zeros.size());
  }
  void put_constants(const Gains& g) { put_padded(g.data(), g.size() * 2); }
  // A beat of scalars, at most 16.
  void put_scalars(std::initializer_list<Scalar> scalars) {
    struct Pair {
      std::uint16_t mantissa;
      std::int16_t exponent;
    };
    Pair pairs[16] = {};
    static_assert(sizeof pairs == kBeatBytes);
    std::size_t k = 0;
    for (const Scalar s : scalars) pairs[k++] = {s.mantissa, s.exponent};
    put_padded(pairs, sizeof pairs);
  }
  void skip_header() {
    const std::vector<std::byte> zeros(kPageBytes);
    file_.write(zeros.data(), zeros.size());
  }
  void commit() {
    header.file_bytes = file_.position();
    header.crc = crc32c(0, &header, offsetof(ImageHeader, crc));
    file_.seek(0);
    file_.write(&header, sizeof header);
    file_.commit();
  }

 private:
  void pad(std::size_t multiple) {
    const std::vector<std::byte> zeros((multiple - file_.position() % multiple) % multiple);
    file_.write(zeros.data(), zeros.size());
  }
  AtomicFile file_;
  Shape shape_;
  SectionEntry* entry_ = nullptr;
};

// Rows in groups of five a port, a wide beat for each 64 inputs of a group; a port's five lie in
// its beat.
void put_matrix(const Ctx& ctx, Writer& out, const FixedModel& model, Matrix matrix, idx layer) {
  const idx rows = model.rows(matrix);
  const idx k = model.inputs(matrix);
  const idx ports = out.ports();
  const idx groups = (rows + kRows * ports - 1) / (kRows * ports);
  constexpr idx kAtOnce = 1024;  // groups in memory
  const idx group_bytes = k * ports;
  std::vector<std::uint8_t> beats(
      static_cast<std::size_t>(std::min(groups, kAtOnce) * group_bytes));
  for (idx first = 0; first < groups; first += kAtOnce) {
    const idx n = std::min(kAtOnce, groups - first);
    parallel_for(ctx, n, 1, [&](idx begin, idx end) {
      std::vector<std::int8_t> trits(static_cast<std::size_t>(kRows * k));
      for (idx part = begin * ports; part < end * ports; ++part) {  // of a group, a port's
        const idx g = part / ports, port = part % ports;
        for (idx r = 0; r < kRows; ++r) {
          const idx row = (first * ports + part) * kRows + r;
          if (row < rows) {
            model.trits(matrix, layer, row, trits.data() + r * k);
          } else {
            std::fill_n(trits.data() + r * k, k, std::int8_t{0});
          }
        }
        for (idx j = 0; j < k; ++j) {
          std::int8_t column[kRows];
          for (idx r = 0; r < kRows; ++r) column[r] = trits[static_cast<std::size_t>(r * k + j)];
          const idx beat = j / kLanes * ports + port;
          beats[static_cast<std::size_t>(g * group_bytes + beat * kLanes + j % kLanes)] =
              encode_trits(column);
        }
      }
    });
    out.put(beats.data(), static_cast<std::size_t>(n * group_bytes));
  }
}

void put_layer(const Ctx& ctx, Writer& out, const FixedModel& model, idx l) {
  const FixedLayer& n = model.layers[static_cast<std::size_t>(l)];
  out.put_scalars({n.f_c, n.i_c, n.o_c, n.p_c, n.down_c});
  for (const Gains* g : {&n.attn_g1, &n.f_g, &n.bound, &n.i_g, &n.g_g}) out.put_constants(*g);
  put_matrix(ctx, out, model, Matrix::f, l);
  put_matrix(ctx, out, model, Matrix::i, l);
  put_matrix(ctx, out, model, Matrix::g, l);
  for (const Gains* g : {&n.o_g1, &n.o_g, &n.mlp_g1, &n.gate_g}) out.put_constants(*g);
  put_matrix(ctx, out, model, Matrix::o, l);
  out.put_constants(n.down_g);
  put_matrix(ctx, out, model, Matrix::p, l);
  put_matrix(ctx, out, model, Matrix::q, l);
  put_matrix(ctx, out, model, Matrix::down, l);
}

}  // namespace

std::vector<Instruction> make_program(const Shape& shape, int embedding_shift, const Addresses& at,
                                      int streams) {
  Builder b(shape);
  for (int s = 0; s < streams; ++s)
    b.add(Op::EMB, {{"a", Builder::u(s)},
                    {"len", Builder::u(shape.embedding_row_beats())},
                    {"page", at.embedding},
                    {"shift", Builder::u(embedding_shift)}});
  b.add(Op::WST, {{"page", at.layers}, {"beats", Builder::u(shape.layers * shape.layer_beats())}});
  b.flags = kFLAG_LOGITS;
  b.add(Op::WST, {{"page", at.head}, {"beats", Builder::u(shape.head_beats())}});
  b.flags = 0;
  b.add(Op::LOOP, {{"count", Builder::u(shape.layers)}});
  const std::uint64_t target = b.program.size();
  b.layer();
  b.add(Op::ENDL, {{"target", target}});
  b.flags = kFLAG_LOGITS;
  b.head();
  b.add(Op::TOK, {});
  b.flags = 0;
  b.add(Op::HALT, {});
  return b.program;
}

Addresses place_sections(const Shape& shape, std::size_t code_bytes) {
  const auto bytes = [](idx beats) { return static_cast<std::uint64_t>(beats) * kBeatBytes; };
  Addresses at{};
  at.embedding = 1 + pages(code_bytes);
  at.layers = at.embedding + pages(bytes(shape.vocab * shape.padded(shape.embedding_row_beats())));
  at.head = at.layers + pages(bytes(shape.layers * shape.layer_beats()));
  return at;
}

void write_image(const Ctx& ctx, const FixedModel& model, const std::filesystem::path& path,
                 int streams, const Progress& progress, int ports) {
  if (ports < 1 || !ports_exist(static_cast<std::uint64_t>(ports)))
    fail(ErrorKind::usage,
         fmt::format("{} memory ports; expected 1, 2, 4 or {}", ports, kMaxPorts));
  const Shape shape{model.d, model.m, model.f, model.layers_count, model.vocab, ports};
  const std::size_t code_bytes =
      make_program(shape, model.embedding_shift, {}, streams).size() * 16;
  const Addresses at = place_sections(shape, code_bytes);
  const std::vector<Instruction> program = make_program(shape, model.embedding_shift, at, streams);

  Writer out(path, shape);
  const auto id = [](const std::optional<idx>& v) {
    return v ? static_cast<std::int32_t>(*v) : -1;
  };
  const auto u32 = [](idx v) { return static_cast<std::uint32_t>(v); };
  ImageHeader& h = out.header;
  h.magic = kImageMagic;
  h.version = kImageVersion;
  h.isa = kIsaVersion;
  h.lanes = kLanes;
  h.rows = kRows;
  h.ports = u32(ports);
  h.d = u32(model.d);
  h.m = u32(model.m);
  h.f = u32(model.f);
  h.layers = u32(model.layers_count);
  h.vocab = u32(model.vocab);
  h.bos = id(model.config.bos_token_id);
  h.eos = id(model.config.eos_token_id);
  out.skip_header();
  out.begin(Section::code);
  for (const Instruction& i : program) {
    out.put(&i.low, 8);
    out.put(&i.high, 8);
  }
  out.begin(Section::embedding);
  for (idx v = 0; v < model.vocab; ++v)
    out.put_constants(
        Gains(model.embedding.begin() + v * model.d, model.embedding.begin() + (v + 1) * model.d));
  out.begin(Section::layers);
  for (idx l = 0; l < model.layers_count; ++l) {
    put_layer(ctx, out, model, l);
    if (progress)
      progress("layers", static_cast<std::uint64_t>(l + 1),
               static_cast<std::uint64_t>(model.layers_count));
  }
  out.begin(Section::head);
  out.put_scalars({model.head_c});
  out.put_constants(model.head_g1);
  out.put_constants(model.head_g);
  put_matrix(ctx, out, model, Matrix::head, 0);
  out.begin(Section::tokenizer);
  out.put(model.sentencepiece.data(), model.sentencepiece.size());
  MMFREE_ASSERT(h.sections[static_cast<std::size_t>(Section::head)].offset == at.head * kPageBytes);
  out.commit();
}

}  // namespace mmfree::hw
