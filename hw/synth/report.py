#!/usr/bin/env python3
"""Tables of docs/hardware.md and the figure of areas, from the JSON in docs/results/hw/synth.

usage: hw/synth/report.py      prints the tables, writes docs/results/hw/synth/area.svg (gnuplot)
"""
import json
import subprocess

from common import RESULTS

TARGETS = ["ice40", "ecp5", "gowin", "xilinx7", "intel_alm", "osu018"]
RUNS = ["tile_ecp5", "row_hx8k", "tile_gowin", "core_ecp5"]


def load(name):
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def main():
    print("| target | ternary | int8, smallest | ratio | int8, Booth | ratio | flip-flops: ternary, int8 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    data = []
    for target in TARGETS:
        area = load(f"area_{target}.json")
        if not area:
            continue
        measure = area["measure"]
        ternary, int8, booth = (min((r for r in area["rows"] if r["design"] == d), key=lambda r: r[measure])
                                for d in (area["ternary_form"], area["int8_form"], "int8_booth"))
        unit = "" if measure == "luts" else " (cell area)"
        print(f"| {area['target']} | {ternary[measure]:.0f}{unit} | {int8[measure]:.0f} | **{area['ratio']:.2f}** | {booth[measure]:.0f} | "
              f"{booth[measure] / ternary[measure]:.2f} | {ternary['ffs']}, {int8['ffs']} |")
        data.append(f'"{area["target"]}" {area["ratio"]} {booth[measure] / ternary[measure]:.3f} {area["ratios"]["int8_tool"]}')
    print("\n| unit | device | MHz over seeds: lowest, median, highest | seeds | used |\n| --- | --- | --- | --- | --- |")
    for name in RUNS:
        run = load(f"pnr_{name}.json")
        if run:
            used = ", ".join(f"{k} {v}" for k, v in run["used"].items() if "IO" not in k and k not in ("DCCA", "SB_GB"))
            print(f"| {run['what'].split(';')[0]} | {run['device']} | {run['mhz_min']}, {run['mhz_median']}, {run['mhz_max']} | {len(run['seeds'])} | {used} |")
    sta = load("sta_osu018.json")
    if sta:
        for row in sta["rows"]:
            print(f"OSU 0.18 um, {row['design']} ({row['yosys']}): {row['path_ns']} ns, {row['mhz']} MHz")
    script = "\n".join([
        "set terminal svg size 760,380 font 'sans,12'", f"set output '{RESULTS / 'area.svg'}'", "set style data histograms",
        "set style histogram clustered gap 1", "set style fill solid 0.8 border -1", "set yrange [0:*]", "set grid ytics", "set key top right",
        "set ylabel 'area of int8 tile / ternary tile'", "set title 'The same 5 x 64 tile with int8 weights, no DSP blocks (synthesised)'",
        "$data << EOD", *data, "EOD",
        "plot $data using 2:xtic(1) title 'smallest int8 form', '' using 3 title 'Booth', '' using 4 title 'multiplier of the tool', "
        "4 with lines dashtype 2 lc rgb 'black' title '4'"]) + "\n"
    subprocess.run(["gnuplot"], input=script, text=True, check=True)


main()
