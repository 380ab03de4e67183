#include "mmfree/hw/isa.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "mmfree/core/error.h"

namespace mmfree::hw {
namespace {

constexpr OpInfo kOps[] = {
#define MMF_OP(NAME, code, UNIT, meaning) {#NAME, Op::NAME, Unit::UNIT, meaning},
#include "hw/isa/isa.def"
};
constexpr FieldInfo kFields[] = {
#define MMF_FIELD(OP, field, low, width, KIND, meaning) \
  {Op::OP, #field, low, width, Kind::KIND, meaning},
#include "hw/isa/isa.def"
};
constexpr ValueInfo kValues[] = {
#define MMF_VALUE(KIND, NAME, value, meaning) {Kind::KIND, #NAME, value, meaning},
#include "hw/isa/isa.def"
};

const FieldInfo* find_field(Op op, std::string_view name) {
  const auto it = std::find_if(std::begin(kFields), std::end(kFields),
                               [&](const FieldInfo& f) { return f.op == op && f.name == name; });
  return it == std::end(kFields) ? nullptr : it;
}

const ValueInfo* find_value(Kind kind, std::string_view name) {
  const auto it = std::find_if(std::begin(kValues), std::end(kValues), [&](const ValueInfo& v) {
    return v.kind == kind && v.name == name;
  });
  return it == std::end(kValues) ? nullptr : it;
}

const ValueInfo* find_value(Kind kind, std::uint64_t value) {
  const auto it = std::find_if(std::begin(kValues), std::end(kValues), [&](const ValueInfo& v) {
    return v.kind == kind && v.value == value;
  });
  return it == std::end(kValues) ? nullptr : it;
}

std::string lower(std::string_view s) {
  std::string r(s);
  for (char& c : r) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return r;
}

std::vector<std::string_view> words(std::string_view line) {
  std::vector<std::string_view> r;
  std::size_t i = 0;
  while (true) {
    while (i < line.size() && std::isspace(static_cast<unsigned char>(line[i])) != 0) ++i;
    if (i == line.size() || line[i] == ';') return r;
    const std::size_t begin = i;
    while (i < line.size() && line[i] != ';' &&
           std::isspace(static_cast<unsigned char>(line[i])) == 0)
      ++i;
    r.push_back(line.substr(begin, i - begin));
  }
}

void set_field(Instruction& i, const FieldInfo& f, std::uint64_t value, const std::string& where) {
  if (value >> f.width != 0)
    fail(ErrorKind::config, fmt::format("{}: {} is {}, expected at most {}", where, f.name, value,
                                        (std::uint64_t{1} << f.width) - 1));
  i.set_bits(f.low, f.width, value);
}

std::uint64_t parse_value(const FieldInfo& f, std::string_view text, const std::string& where) {
  if (const ValueInfo* v = f.kind == Kind::INT ? nullptr : find_value(f.kind, text))
    return v->value;
  std::uint64_t value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || rest != text.data() + text.size())
    fail(ErrorKind::format,
         fmt::format("{}: {} is '{}', expected {}", where, f.name, text,
                     f.kind == Kind::INT ? "a number" : "a number or one of its names"));
  return value;
}

}  // namespace

std::span<const OpInfo> ops() {
  return kOps;
}
std::span<const FieldInfo> fields() {
  return kFields;
}
std::span<const ValueInfo> values() {
  return kValues;
}

const OpInfo* find_op(std::uint8_t code) {
  for (const OpInfo& o : kOps)
    if (o.op == static_cast<Op>(code)) return &o;
  return nullptr;
}

std::uint64_t Instruction::bits(int at, int width) const {
  const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
  if (at >= 64) return (high >> (at - 64)) & mask;
  std::uint64_t v = low >> at;
  if (at + width > 64) v |= high << (64 - at);
  return v & mask;
}

void Instruction::set_bits(int at, int width, std::uint64_t value) {
  for (int k = 0; k < width; ++k) {
    std::uint64_t& word = at + k < 64 ? low : high;
    const std::uint64_t bit = std::uint64_t{1} << ((at + k) & 63);
    word = ((value >> k) & 1U) != 0 ? word | bit : word & ~bit;
  }
}

std::uint64_t Instruction::field(std::string_view name) const {
  const FieldInfo* f = find_field(op(), name);
  MMFREE_ASSERT(f != nullptr);
  return f == nullptr ? 0 : bits(f->low, f->width);
}

Instruction make_instruction(Op op, std::initializer_list<FieldValue> list, unsigned flags) {
  Instruction i;
  i.set_bits(0, 8, static_cast<std::uint64_t>(op));
  i.set_bits(8, 8, flags);
  for (const FieldValue& v : list) {
    const FieldInfo* f = find_field(op, v.name);
    MMFREE_ASSERT(f != nullptr);
    if (f != nullptr) set_field(i, *f, v.value, "program");
  }
  return i;
}

void check_instruction(const Instruction& i, const std::string& where) {
  const OpInfo* o = find_op(static_cast<std::uint8_t>(i.bits(0, 8)));
  if (o == nullptr)
    fail(ErrorKind::format, fmt::format("{}: operation 0x{:02x} is unknown to this instruction set",
                                        where, i.bits(0, 8)));
  if (i.flags() > kFLAG_LOGITS)
    fail(ErrorKind::format,
         fmt::format("{}: flags are 0x{:02x}, expected 0 or 1", where, i.flags()));
  Instruction rest = i;
  rest.set_bits(0, 16, 0);
  for (const FieldInfo& f : kFields) {
    if (f.op != o->op) continue;
    if (f.kind != Kind::INT && find_value(f.kind, i.bits(f.low, f.width)) == nullptr)
      fail(ErrorKind::format,
           fmt::format("{}: {} has no {} {}", where, o->name, f.name, i.bits(f.low, f.width)));
    rest.set_bits(f.low, f.width, 0);
  }
  if (rest.low != 0 || rest.high != 0)
    fail(ErrorKind::format,
         fmt::format("{}: bits are set outside the fields of {}", where, o->name));
}

std::string disassemble(const Instruction& i) {
  const OpInfo* o = find_op(static_cast<std::uint8_t>(i.bits(0, 8)));
  if (o == nullptr) return fmt::format("; unknown operation 0x{:02x}", i.bits(0, 8));
  std::string text = lower(o->name);
  for (const FieldInfo& f : kFields) {
    if (f.op != o->op) continue;
    const std::uint64_t v = i.bits(f.low, f.width);
    const ValueInfo* named = f.kind == Kind::INT ? nullptr : find_value(f.kind, v);
    text += named == nullptr ? fmt::format(" {}={}", f.name, v)
                             : fmt::format(" {}={}", f.name, named->name);
  }
  if ((i.flags() & kFLAG_LOGITS) != 0) text += " LOGITS";
  return text;
}

Instruction assemble_line(std::string_view line, const std::string& where) {
  const std::vector<std::string_view> w = words(line);
  if (w.empty()) fail(ErrorKind::format, where + ": expected an instruction");
  const auto op = std::find_if(std::begin(kOps), std::end(kOps),
                               [&](const OpInfo& o) { return lower(o.name) == lower(w[0]); });
  if (op == std::end(kOps))
    fail(ErrorKind::format, fmt::format("{}: unknown operation '{}'", where, w[0]));
  Instruction i = make_instruction(op->op, {});
  std::vector<std::string_view> given;
  for (std::size_t k = 1; k < w.size(); ++k) {
    if (const ValueInfo* flag = find_value(Kind::FLAG, w[k])) {
      i.set_bits(8, 8, i.flags() | flag->value);
      continue;
    }
    const std::size_t equals = w[k].find('=');
    const std::string_view name = w[k].substr(0, equals);
    const FieldInfo* f = equals == std::string_view::npos ? nullptr : find_field(op->op, name);
    if (f == nullptr)
      fail(ErrorKind::format,
           fmt::format("{}: '{}' is no field=value of {}", where, w[k], op->name));
    if (std::find(given.begin(), given.end(), name) != given.end())
      fail(ErrorKind::format, fmt::format("{}: {} is given twice", where, name));
    given.push_back(name);
    set_field(i, *f, parse_value(*f, w[k].substr(equals + 1), where), where);
  }
  check_instruction(i, where);
  return i;
}

std::vector<Instruction> assemble(std::string_view text, const std::string& name) {
  std::vector<Instruction> program;
  for (std::size_t begin = 0, n = 1; begin < text.size(); ++n) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    if (!words(line).empty())
      program.push_back(assemble_line(line, fmt::format("{}: line {}", name, n)));
    begin = end + 1;
  }
  return program;
}

std::string disassemble(std::span<const Instruction> program) {
  std::string text;
  for (std::size_t i = 0; i < program.size(); ++i)
    text += fmt::format("{:<60} ; {}\n", disassemble(program[i]), i);
  return text;
}

}  // namespace mmfree::hw
