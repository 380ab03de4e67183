#pragma once
// The instruction set as tables (from hw/isa/isa.def), instructions as 128-bit words, and their
// text.
//
//   text: one instruction a line, "op field=value ...", ';' starts a comment, FLAG names stand
//   alone:
//       tmm a=1 b=5 len=16 epi=RESADD rows=1024
//       wst page=12 beats=4096 LOGITS
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mmfree::hw {

enum class Unit : std::uint8_t {
#define MMF_UNIT(NAME, value, meaning) NAME = value,
#include "hw/isa/isa.def"
};

enum class Op : std::uint8_t {
#define MMF_OP(NAME, code, UNIT, meaning) NAME = code,
#include "hw/isa/isa.def"
};

// Named values of fields: kEPI_SIGF, kMODE_SS, kVEC_X, kFLAG_LOGITS, ...
#define MMF_VALUE(KIND, NAME, value, meaning) inline constexpr unsigned k##KIND##_##NAME = value;
#include "hw/isa/isa.def"

enum class Kind : std::uint8_t { INT, FLAG, VEC, MODE, FN, EPI, ERROR };

struct OpInfo {
  std::string_view name;
  Op op;
  Unit unit;
  std::string_view meaning;
};
struct FieldInfo {
  Op op;
  std::string_view name;
  int low, width;
  Kind kind;
  std::string_view meaning;
};
struct ValueInfo {
  Kind kind;
  std::string_view name;
  unsigned value;
  std::string_view meaning;
};
std::span<const OpInfo> ops();
std::span<const FieldInfo> fields();
std::span<const ValueInfo> values();
const OpInfo* find_op(std::uint8_t code);  // null: unknown

struct Instruction {
  std::uint64_t low = 0, high = 0;
  friend bool operator==(const Instruction&, const Instruction&) = default;

  std::uint64_t bits(int at, int width) const;  // width <= 32
  void set_bits(int at, int width, std::uint64_t value);

  Op op() const { return static_cast<Op>(bits(0, 8)); }
  unsigned flags() const { return static_cast<unsigned>(bits(8, 8)); }
  unsigned dst() const { return static_cast<unsigned>(bits(16, 8)); }
  unsigned a() const { return static_cast<unsigned>(bits(24, 8)); }
  unsigned b() const { return static_cast<unsigned>(bits(32, 8)); }
  unsigned len() const { return static_cast<unsigned>(bits(40, 16)); }
  // A field of the operation by name; it must exist.
  std::uint64_t field(std::string_view name) const;
};

// {"len", 16} and so on. A value that does not fit its field is a config Error that names both.
struct FieldValue {
  std::string_view name;
  std::uint64_t value;
};
Instruction make_instruction(Op op, std::initializer_list<FieldValue> values, unsigned flags = 0);

// Throws a format Error (`where` names the place) for an unknown operation, an undefined flag or
// value, and bits set outside the operation's fields.
void check_instruction(const Instruction& i, const std::string& where);

std::string disassemble(const Instruction& i);  // of a checked instruction
Instruction assemble_line(std::string_view line, const std::string& where);
std::vector<Instruction> assemble(std::string_view text, const std::string& name);
std::string disassemble(std::span<const Instruction> program);

}  // namespace mmfree::hw
