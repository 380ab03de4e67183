#!/usr/bin/env python3
"""Cells of the ternary tile and of its int8 twins without DSP blocks, by synthesis for FPGA families and for a cell library.

The rows and decoders are alike, so each is synthesised once (no flattening) and counted as often as it is there.
Each tile stands in its forms, all of the same results and latency. Ternary: as in the core; with choices among sums and differences of
pairs; with carry inputs from logic, where chains have such. int8: the tool's own multiplier, its Booth multiplier (newer Yosys only), rows
of the product, base 4 with shared multiples. The ratio is of the smallest int8 to the smallest ternary form, each with whichever Yosys
makes it smaller.

usage: hw/synth/area.py [TARGET...]      writes docs/results/hw/synth/area_TARGET.json
"""
import json
import re
import sys

from common import BUILD, INT8, TERNARY, run, version, write_json, yowasp

OSU = "/usr/share/qflow/tech/osu018/osu018_stdcells.lib"


def total(cells, *patterns):
    return sum(n for name, n in cells.items() if any(re.fullmatch(p, name) for p in patterns))


# Script, and how cells count: LUTs are what a design occupies of the logic, so that cells of carry chains, which take the place of
# LUTs, are in it where they do.
TARGETS = {
    "ice40": ("Lattice iCE40", "synth_ice40 -noflatten", {
        "luts": lambda c: total(c, "SB_LUT4"), "carry": lambda c: total(c, "SB_CARRY"), "ffs": lambda c: total(c, "SB_DFF.*")}),
    "ecp5": ("Lattice ECP5", "synth_ecp5 -noflatten -nodsp", {
        "luts": lambda c: total(c, "LUT4") + 2 * total(c, "CCU2C"), "carry": lambda c: total(c, "CCU2C"),
        "ffs": lambda c: total(c, "TRELLIS_FF")}),
    "xilinx7": ("Xilinx 7 series", "synth_xilinx -family xc7 -nodsp -noiopad -noclkbuf -nosrl", {
        "luts": lambda c: total(c, "LUT[1-6]", "INV"), "carry": lambda c: total(c, "CARRY4"), "ffs": lambda c: total(c, "FD[RSCP]E")}),
    "intel_alm": ("Intel Cyclone V", "synth_intel_alm -family cyclonev -noflatten -nodsp -noiopad -noclkbuf", {
        "luts": lambda c: total(c, "MISTRAL_ALUT[2-6]", "MISTRAL_ALUT_ARITH", "MISTRAL_NOT"),
        "carry": lambda c: total(c, "MISTRAL_ALUT_ARITH"), "ffs": lambda c: total(c, "MISTRAL_FF")}),
    "gowin": ("Gowin", "synth_gowin -noflatten -noiopads -nodffe", {
        "luts": lambda c: total(c, "LUT[1-4]", "ALU"), "carry": lambda c: total(c, "ALU"), "ffs": lambda c: total(c, "DFF.*")}),
    "osu018": ("OSU 0.18 um cells", "synth", {"ffs": lambda c: total(c, "DFF.*", "LATCH")}),
}
FORBIDDEN = r"SB_MAC16|MULT.*|DSP.*|MISTRAL_MUL.*|.*RAM.*|DP16.*"
DESIGNS = {
    "ternary": ("mmf_core_tile", ""), "ternary_pairs": ("mmf_core_tile", "-set Pairs 1"), "ternary_carry": ("mmf_core_tile", "-set CarryInput 1"),
    "int8_tool": ("mmf_int8_tile", "-set Kind 0"), "int8_booth": ("mmf_int8_tile", "-set Kind 0"), "int8_rows": ("mmf_int8_tile", "-set Kind 1"),
    "int8_base4": ("mmf_int8_tile", "-set Kind 2")}
CARRY_INPUTS = ("xilinx7", "osu018")  # elsewhere a carry from logic takes a position of the chain, whatever synthesis counts


def script(target, design, tool, netlist):
    top, parameters = DESIGNS[design]
    synth = TARGETS[target][1]
    if target == "gowin" and tool == "pypi":
        synth += " -nodsp"  # Yosys 0.23 knows no DSP blocks of Gowin
    lines = [f"read_verilog -sv {' '.join(TERNARY if top == 'mmf_core_tile' else INT8)}"]
    if parameters:
        lines.append(f"chparam {parameters} {top}")
    lines.append(f"hierarchy -check -top {top}")
    if design == "int8_booth":
        lines += ["proc", "opt", "wreduce", "booth"]
    if target == "osu018":
        lines += [f"synth -top {top}", f"dfflibmap -liberty {OSU}", f"abc -liberty {OSU}", "opt_clean",
                  f"tee -q -o {netlist}.area stat -liberty {OSU} -top {top}"]
    else:
        lines.append(f"{synth} -top {top}")
    lines += [f"tee -q -o {netlist}.stat stat -json -top {top}", f"write_verilog -noattr {netlist}.v"]
    return "\n".join(lines) + "\n"


def one(target, design, tool, command):
    folder = BUILD / "area"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{target}_{design}_{tool}"
    netlist = f"build/synth/area/{name}"
    (folder / f"{name}.ys").write_text(script(target, design, tool, netlist))
    run([command, "-q", f"{netlist}.ys"], f"area/{name}.log")
    text = (folder / f"{name}.stat").read_text()
    # Yosys 0.23 prints the hierarchy as text inside its JSON: take the object of the whole design alone.
    found, _ = json.JSONDecoder().raw_decode(text[text.rindex('"design":') + len('"design":'):].lstrip())
    cells = {k.lstrip("\\"): v for k, v in found["num_cells_by_type"].items()}
    cells = {k: v for k, v in cells.items() if not re.match(r"(\$paramod.*)?\\?mmf_", k)}
    bad = [k for k in cells if re.fullmatch(FORBIDDEN, k)]
    if bad:
        sys.exit(f"area.py: {name} has {bad}; expected logic only")
    row = {"design": design, "yosys": tool}
    row.update({k: count(cells) for k, count in TARGETS[target][2].items()})
    if target == "osu018":
        row["area"] = float(re.findall(r"Chip area for top module[^:]*: *([0-9.]+)", (folder / f"{name}.area").read_text())[-1])
    row["cells"] = cells
    print(target, design, tool, {k: v for k, v in row.items() if k in ("luts", "area", "ffs", "carry")}, flush=True)
    return row


def main():
    tools = {"debian": "yosys", "pypi": yowasp("yosys")}
    versions = {name: version([command, "-V"]) for name, command in tools.items()}
    for target in sys.argv[1:] or TARGETS:
        measure = "area" if target == "osu018" else "luts"
        rows = [one(target, design, tool, command) for design in DESIGNS for tool, command in tools.items()
                if not (design == "int8_booth" and tool == "debian") and (design != "ternary_carry" or target in CARRY_INPUTS)]
        smallest = {r["design"]: r for r in sorted(rows, key=lambda r: -r[measure])}
        ternary, twin = (min((r for d, r in smallest.items() if d.startswith(kind)), key=lambda r: r[measure]) for kind in ("ternary", "int8"))
        write_json(f"area_{target}.json", {
            "what": "5 x 64 tile, synthesised, before placement, never measured", "target": TARGETS[target][0],
            "synthesis": TARGETS[target][1] if target != "osu018" else "synth; dfflibmap; abc -liberty osu018_stdcells.lib",
            "versions": versions, "measure": measure, "ternary": ternary[measure], "ternary_form": ternary["design"],
            "int8": twin[measure], "int8_form": twin["design"],
            "ratio": round(twin[measure] / ternary[measure], 3),
            "ratios": {d: round(r[measure] / ternary[measure], 3) for d, r in smallest.items() if d != ternary["design"]}, "rows": rows})


main()
