// Writes what derives from mmfree/hw/numbers.def and hw/isa/isa.def: the tables of the sigmoid and
// of Gumbel noise (C++ and SystemVerilog), the SystemVerilog packages, docs/hw_isa.md. With --check
// it only compares and names the files that differ (a test).
//
// usage: hw_generate ROOT [--check]
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <string_view>

namespace {

#define MMF_NUMBER(Name, NAME, value, meaning) constexpr int NAME = value;
#include "mmfree/hw/numbers.def"
#undef MMF_NUMBER

constexpr const char* kNotice =
    "Written by hw/isa/generate.cpp; change numbers.def or isa.def instead.";

struct Segment {
  long value, slope;
};

// Straight lines through the segment's ends, moved by half of their largest error: sigmoid is
// concave for x >= 0, so a chord lies below the curve.
Segment segment(int i) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  const double unit = std::ldexp(1.0, SIG_F + SEG_EXTRA);
  const double width = std::ldexp(1.0, SEG_F - ACT_F);
  const double x0 = i * width, x1 = x0 + width;
  double gap = 0;
  for (int k = 0; k <= 64; ++k) {
    const double t = k / 64.0;
    gap = std::fmax(gap, sigmoid(x0 + t * width) - ((1 - t) * sigmoid(x0) + t * sigmoid(x1)));
  }
  const double start = i == 0 ? 0.5 : sigmoid(x0) + gap / 2;  // sigmoid(0) is exactly 1/2
  const double end = sigmoid(x1) + gap / 2;
  const long value = std::min(std::lround((start - 0.5) * unit), (1L << SEG_VALUE_W) - 1);
  return {value, std::lround((end - start) * unit)};
}

// Gumbel noise of a uniform number, in octaves of its distance v from the nearer end of (0, 1): v =
// (16 + segment + inside) / 16 * 2^-(octave + 2). side 0: the number is 1 - v and the noise large;
// side 1: it is v. Lines as above; the centre of what a step inside the segment stands for is
// exact.
Segment noise_segment(int side, int octave, int i) {
  const auto noise = [side](double v) {
    return -std::log(-(side == 0 ? std::log1p(-v) : std::log(v)));
  };
  const double unit = std::ldexp(1.0, NOISE_F);
  const double step = std::ldexp(1.0, -(octave + 2) - NOISE_SEG_W);
  const double v0 = step * ((1 << NOISE_SEG_W) + i), v1 = v0 + step;
  double low = 0, high = 0;
  for (int k = 0; k <= 64; ++k) {
    const double t = k / 64.0;
    const double gap = noise(v0 + t * step) - ((1 - t) * noise(v0) + t * noise(v1));
    low = std::fmin(low, gap);
    high = std::fmax(high, gap);
  }
  const double growth = (noise(v1) - noise(v0)) * unit;
  const double start =
      (noise(v0) + (low + high) / 2) * unit + std::ldexp(growth, -NOISE_INSIDE_W - 1);
  return {std::lround(start), std::lround(std::fabs(growth))};
}

std::string noise_inc() {
  std::string s = fmt::format("// {}\n", kNotice);
  int n = 0;
  for (int side = 0; side < 2; ++side)
    for (int octave = 0; octave < 32; ++octave)
      for (int i = 0; i < 1 << NOISE_SEG_W; ++i, ++n) {
        const Segment g = noise_segment(side, octave, i);
        s += fmt::format("{}{{{}, {}}},{}", n % 6 == 0 ? "    " : " ", g.value, g.slope,
                         n % 6 == 5 ? "\n" : "");
      }
  return s + "\n";
}

std::string noise_rom() {
  const int address = 6 + NOISE_SEG_W, width = NOISE_W + NOISE_SLOPE_W;
  std::string s = fmt::format(
      "// {}\n// Gumbel noise: value at the start of the segment and change over it. Address "
      "{{side, octave, segment}}. One cycle.\n"
      "module mmf_noise_rom (\n  input  logic clk_i,\n  input  logic [{}:0] addr_i,\n"
      "  output logic [{}:0] data_q  // {{value[{}:0], slope[{}:0]}}\n);\n"
      "  always_ff @(posedge clk_i) begin\n    case (addr_i)\n",
      kNotice, address - 1, width - 1, NOISE_W - 1, NOISE_SLOPE_W - 1);
  for (int n = 0; n < 1 << address; ++n) {
    const int segments = 1 << NOISE_SEG_W;
    const Segment g = noise_segment(n / segments / 32, n / segments % 32, n % segments);
    const unsigned long value = static_cast<unsigned long>(g.value) & ((1UL << NOISE_W) - 1);
    s += fmt::format("      {}'d{}: data_q <= {}'h{:08x};\n", address, n, width,
                     value << NOISE_SLOPE_W | static_cast<unsigned long>(g.slope));
  }
  return s + fmt::format("      default: data_q <= {}'h0;\n    endcase\n  end\nendmodule\n", width);
}

std::string table_inc() {
  std::string s = fmt::format("// {}\n", kNotice);
  for (int i = 0; i < 1 << SEG_W; ++i) {
    const Segment g = segment(i);
    s += fmt::format("{}{{{}, {}}},{}", i % 6 == 0 ? "    " : " ", g.value, g.slope,
                     i % 6 == 5 ? "\n" : "");
  }
  return s + "\n";
}

std::string table_rom() {
  const int width = SEG_VALUE_W + SEG_SLOPE_W;
  std::string s = fmt::format(
      "// {}\n// Sigmoid over [0, 16): value at the start of the segment and growth over it. One "
      "cycle.\n"
      "module mmf_sigmoid_rom (\n  input  logic clk_i,\n  input  logic en_i,\n  input  logic "
      "[{}:0] addr_i,\n"
      "  output logic [{}:0] data_q  // {{value[{}:0], slope[{}:0]}}\n);\n"
      "  always_ff @(posedge clk_i) begin\n    if (en_i) begin\n      case (addr_i)\n",
      kNotice, SEG_W - 1, width - 1, SEG_VALUE_W - 1, SEG_SLOPE_W - 1);
  for (int i = 0; i < 1 << SEG_W; ++i) {
    const Segment g = segment(i);
    const unsigned long word =
        (static_cast<unsigned long>(g.value) << SEG_SLOPE_W) | static_cast<unsigned long>(g.slope);
    s += fmt::format("        {}'d{}: data_q <= {}'h{:07x};\n", SEG_W, i, width, word);
  }
  return s + fmt::format(
                 "        default: data_q <= {}'h0;\n      endcase\n    end\n  end\nendmodule\n",
                 width);
}

std::string numbers_package() {
  std::string s = fmt::format(
      "// {}\n// Number formats; mmfree/hw/fixed.h is the arithmetic, bit for bit.\npackage "
      "mmf_num_pkg;\n",
      kNotice);
#define MMF_NUMBER(Name, NAME, value, meaning) \
  s += fmt::format("  localparam int {} = {};  // {}\n", #NAME, value, meaning);
#include "mmfree/hw/numbers.def"
#undef MMF_NUMBER
  return s + "endpackage\n";
}

std::string isa_package() {
  std::string s = fmt::format("// {}\npackage mmf_isa_pkg;\n", kNotice);
  s += "  localparam int INSTR_W = 128;\n  localparam int FLAGS_LSB = 8;\n";
#define MMF_UNIT(NAME, value, meaning) \
  s += fmt::format("  localparam logic [2:0] UNIT_{} = 3'd{};  // {}\n", #NAME, value, meaning);
#include "hw/isa/isa.def"
#define MMF_VALUE(KIND, NAME, value, meaning) \
  s += fmt::format("  localparam int {}_{} = {};  // {}\n", #KIND, #NAME, value, meaning);
#include "hw/isa/isa.def"
#define MMF_OP(NAME, code, UNIT, meaning) \
  s += fmt::format("  localparam logic [7:0] OP_{} = 8'h{:02x};  // {}\n", #NAME, code, meaning);
#include "hw/isa/isa.def"
#define MMF_FIELD(OP, field, low, width, KIND, meaning)                                            \
  s += fmt::format("  localparam int F_{0}_{1}_LSB = {2};\n  localparam int F_{0}_{1}_W = {3};\n", \
                   #OP, upper(#field), low, width);
  const auto upper = [](std::string_view t) {
    std::string r(t);
    for (char& c : r) c = static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c);
    return r;
  };
#include "hw/isa/isa.def"
  return s + "endpackage\n";
}

std::string isa_page() {
  std::string s = fmt::format(
      "# Instruction set of the accelerator\n\n{} Semantics in numbers: `mmfree/hw/fixed.h`; "
      "timing: `docs/hardware.md`.\n\n"
      "An instruction is 128 bits, little endian: `op [7:0]`, `flags [15:8]`, `dst [23:16]`, `a "
      "[31:24]`, `b [39:32]`, "
      "`len [55:40]`, the rest by operation. Bits outside an operation's fields are zero.\n\n## "
      "Units\n\n| unit | does |\n| --- | --- |\n",
      kNotice);
#define MMF_UNIT(NAME, value, meaning) s += fmt::format("| {} | {} |\n", #NAME, meaning);
#include "hw/isa/isa.def"
  s += "\n## Operations\n\n| operation | code | unit | does |\n| --- | --- | --- | --- |\n";
#define MMF_OP(NAME, code, UNIT, meaning) \
  s += fmt::format("| {} | 0x{:02x} | {} | {} |\n", #NAME, code, #UNIT, meaning);
#include "hw/isa/isa.def"
  s += "\n## Fields\n\n| operation | field | bits | values | meaning |\n| --- | --- | --- | --- | "
       "--- |\n";
#define MMF_FIELD(OP, field, low, width, KIND, meaning)                                         \
  s += fmt::format("| {} | {} | {}:{} | {} | {} |\n", #OP, #field, low + width - 1, low, #KIND, \
                   meaning);
#include "hw/isa/isa.def"
  s += "\n## Named values\n\n| kind | name | value | meaning |\n| --- | --- | --- | --- |\n";
#define MMF_VALUE(KIND, NAME, value, meaning) \
  s += fmt::format("| {} | {} | {} | {} |\n", #KIND, #NAME, value, meaning);
#include "hw/isa/isa.def"
  return s;
}

std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace

int main(int argc, char** argv) {
  const bool check = argc == 3 && std::string_view(argv[2]) == "--check";
  if (argc < 2 || argc > 3 || (argc == 3 && !check)) {
    fmt::print(stderr, "usage: hw_generate ROOT [--check]\n");
    return 2;
  }
  const std::map<std::string, std::string> files = {
      {"mmfree/hw/generated/sigmoid_table.inc", table_inc()},
      {"mmfree/hw/generated/noise_table.inc", noise_inc()},
      {"hw/rtl/generated/mmf_noise_rom.sv", noise_rom()},
      {"hw/rtl/generated/mmf_num_pkg.sv", numbers_package()},
      {"hw/rtl/generated/mmf_isa_pkg.sv", isa_package()},
      {"hw/rtl/generated/mmf_sigmoid_rom.sv", table_rom()},
      {"docs/hw_isa.md", isa_page()},
  };
  int stale = 0;
  for (const auto& [name, text] : files) {
    const std::filesystem::path path = std::filesystem::path(argv[1]) / name;
    if (read(path) == text) continue;
    if (check) {
      fmt::print(stderr, "hw_generate: {} is not what the sources give; run hw_generate {}\n", name,
                 argv[1]);
      ++stale;
      continue;
    }
    std::filesystem::create_directories(path.parent_path());
    std::ofstream out(path, std::ios::binary);
    out << text;
    if (!out.flush()) {
      fmt::print(stderr, "hw_generate: cannot write {}\n", path.string());
      return 1;
    }
  }
  return stale == 0 ? 0 : 1;
}
