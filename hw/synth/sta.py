#!/usr/bin/env python3
"""Static timing of the tiles as OSU 0.18 um cells by OpenSTA: the netlists that area.py wrote, wires without delay, before placement.

usage: hw/synth/sta.py      after hw/synth/area.py osu018; writes docs/results/hw/synth/sta_osu018.json
"""
import json
import re
import sys

from common import BUILD, RESULTS, run, write_json

OSU = "/usr/share/qflow/tech/osu018/osu018_stdcells.lib"
PERIOD = 10.0  # ns; only its slack counts


def main():
    area = json.loads((RESULTS / "area_osu018.json").read_text())
    rows = []
    for row in (r for r in area["rows"] if r["design"] in ("ternary", "int8_booth", "int8_base4")):
        name = f"osu018_{row['design']}_{row['yosys']}"
        netlist = BUILD / "area" / f"{name}.v"
        if not netlist.exists():
            sys.exit(f"sta.py: {netlist} does not exist; run hw/synth/area.py osu018")
        top = "mmf_core_tile" if row["design"].startswith("ternary") else "mmf_int8_tile"
        # OpenSTA reads no concatenations at the ports of modules.
        flat = BUILD / "area" / f"{name}_flat.v"
        run(["yosys", "-q", "-p", f"read_liberty -lib {OSU}; read_verilog {netlist}; hierarchy -top {top}; flatten; splitnets -ports; opt_clean; "
             f"write_verilog -noattr -noexpr {flat}"], f"area/{name}_flat.log")
        script = BUILD / "area" / f"{name}.tcl"
        script.write_text(f"""read_liberty {OSU}
read_verilog {flat}
link_design {top}
create_clock -name clk -period {PERIOD} [get_ports clk_i]
set_input_delay 0 -clock clk [all_inputs]
report_checks -path_delay max -digits 4
exit
""")
        text = run(["sta", "-exit", str(script)], f"area/{name}_sta.log")
        slack = re.search(r"(-?[0-9.]+) +slack", text)
        if not slack:
            sys.exit(f"sta.py: {name}: OpenSTA reported no path:\n{text[-800:]}")
        ends = re.findall(r"^(?:Startpoint|Endpoint): (\S+)", text, re.M)
        worst = PERIOD - float(slack.group(1))
        rows.append({"design": row["design"], "yosys": row["yosys"], "area": row["area"], "path_ns": round(worst, 3),
                     "mhz": round(1000 / worst, 1), "from": ends[0], "to": ends[1]})
        print(rows[-1], flush=True)
    write_json("sta_osu018.json", {
        "what": "5 x 64 tile as OSU 0.18 um cells, typical corner of the library, wires without delay, cells chosen for area: "
                "synthesised, before placement, never measured", "tool": "OpenSTA", "rows": rows})


main()
