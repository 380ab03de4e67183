#!/usr/bin/env python3
"""Synthesis, placement and routing with timing of a unit on a named FPGA, once a seed.

Clocks are what the router's static timing analysis gives after routing; nothing ran on a board.

usage: hw/synth/pnr.py RUN [SEED...]      RUN: a key of RUNS; writes docs/results/hw/synth/pnr_RUN.json. Seeds that have been routed for
the same netlist with the same options are not routed again.
"""
import json
import re
import statistics
import sys
import time

from common import BUILD, RTL, TERNARY, run, version, write_json, yowasp

CORE = [f"{RTL}/generated/mmf_num_pkg.sv", f"{RTL}/generated/mmf_isa_pkg.sv", f"{RTL}/generated/mmf_sigmoid_rom.sv",
        f"{RTL}/generated/mmf_noise_rom.sv", *TERNARY,
        *(f"{RTL}/mmf_core_{name}.sv" for name in ("decode", "board", "fetch", "sfu", "vec", "noise", "epi")), f"{RTL}/mmf_core.sv"]
ECP5 = {"device": "Lattice ECP5-85F, speed grade 8", "yosys": "yosys", "synth": "synth_ecp5", "nextpnr": "nextpnr-ecp5",
        "options": ["--85k", "--package", "CABGA756", "--speed", "8", "--lpf-allow-unconstrained"]}
ICE40 = {"device": "Lattice iCE40 HX8K", "yosys": "yosys", "synth": "synth_ice40", "nextpnr": "/usr/bin/nextpnr-ice40",
         "options": ["--hx8k", "--package", "ct256"]}
GOWIN = {"device": "Gowin GW2A-18, GW2A-LV18PG256C8/I7", "yosys": "pypi", "synth": "synth_gowin -family gw2a", "nextpnr": "nextpnr-himbaechel-gowin",
         "options": ["--device", "GW2A-LV18PG256C8/I7", "--vopt", "family=GW2A-18", "--vopt", "cst=hw/synth/pnr_tile.cst"]}

# mhz: what the router aims at.
RUNS = {
    "tile_ecp5": {**ECP5, "what": "5 x 64 tile of the core", "top": "pnr_tile", "mhz": 220, "files": [*TERNARY, "hw/synth/pnr_tile.sv"]},
    "row_hx8k": {**ICE40, "what": "64 lanes: a row with a register after each level", "top": "pnr_row", "mhz": 170,
                 "files": [TERNARY[1], "hw/synth/pnr_row.sv"]},
    "tile_gowin": {**GOWIN, "what": "5 x 64 tile of the core", "top": "pnr_tile", "mhz": 120, "files": [*TERNARY, "hw/synth/pnr_tile.sv"]},
    # Units one by one, as the whole at once takes several times longer; the table of the sigmoid in LUTs, because block RAM is slow.
    "core_ecp5": {**ECP5, "synth": "synth_ecp5 -noflatten", "before": "proc -norom mmf_sigmoid_rom; ", "what": "complete core: 16 lanes, 4 of the vector unit, width 256, state 768, 128 instructions, FIFO of 128 beats, one stream", "top": "pnr_core",
                  "mhz": 110, "files": [*CORE, "hw/synth/pnr_core.sv"]},
}


def synthesise(name, job):
    netlist = BUILD / "pnr" / f"{name}.json"
    netlist.parent.mkdir(parents=True, exist_ok=True)
    yosys = yowasp("yosys") if job["yosys"] == "pypi" else job["yosys"]
    script = f"read_verilog -sv {' '.join(job['files'])}; hierarchy -check -top {job['top']}; {job.get('before', '')}"
    fresh = netlist.with_suffix(".new")
    script += f"{job['synth']} -top {job['top']}; flatten; opt_clean; write_json {fresh.relative_to(BUILD.parents[1])}"
    run([yosys, "-q", "-p", script], f"pnr/{name}_yosys.log")
    if not netlist.exists() or netlist.read_bytes() != fresh.read_bytes():
        fresh.replace(netlist)
    fresh.unlink(missing_ok=True)
    return netlist, version([yosys, "-V"])


def place(name, job, netlist, seed):
    tool = job["nextpnr"] if job["nextpnr"].startswith("/") else yowasp(job["nextpnr"])
    report = BUILD / "pnr" / f"{name}_{seed}_report.json"
    root = BUILD.parents[1]
    began = time.time()
    command = [str(c) for c in (tool, *job["options"], "--json", netlist.relative_to(root), "--freq", job["mhz"], "--seed", seed,
                                "--timing-allow-fail", "--report", report.relative_to(root))]
    routed = report.with_suffix(".command")  # written when its report is whole
    if not routed.exists() or routed.read_text() != "\n".join(command) or report.stat().st_mtime < netlist.stat().st_mtime:
        routed.unlink(missing_ok=True)
        run(command, f"pnr/{name}_{seed}.log")
        routed.write_text("\n".join(command))
    found = json.loads(report.read_text())
    mhz = {re.sub(r"\$.*", "", clock): round(v["achieved"], 1) for clock, v in found["fmax"].items()}
    used = {k: v["used"] for k, v in found["utilization"].items() if v["used"]}
    available = {k: v["available"] for k, v in found["utilization"].items() if v["used"]}
    path = next((p for p in found.get("critical_paths", []) if p["from"].startswith("posedge") and p["to"].startswith("posedge")), None)
    steps = [{"type": s["type"], "ns": round(s["delay"], 2), "to": f"{s['to'].get('cell')}.{s['to'].get('port')}"} for s in path["path"]] if path else []
    print(name, seed, mhz, f"{time.time() - began:.0f} s", flush=True)
    return {"seed": seed, "mhz": min(mhz.values())}, used, available, steps, version([tool, "--version"])


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in RUNS:
        sys.exit(f"usage: hw/synth/pnr.py RUN [SEED...], RUN one of {', '.join(RUNS)}")
    name = sys.argv[1]
    job = RUNS[name]
    seeds = [int(s) for s in sys.argv[2:]] or [1, 2, 3]
    netlist, yosys = synthesise(name, job)
    runs, worst = [], None
    for seed in seeds:
        row, used, available, steps, nextpnr = place(name, job, netlist, seed)
        runs.append(row)
        if worst is None or row["mhz"] <= min(r["mhz"] for r in runs):
            worst = steps
        clocks = [r["mhz"] for r in runs]
        write_json(f"pnr_{name}.json", {
            "what": job["what"] + "; placed and routed with the shift registers around it, static timing, never measured", "device": job["device"],
            "synthesis": job["synth"], "yosys": yosys, "nextpnr": nextpnr, "aim_mhz": job["mhz"], "mhz_min": min(clocks),
            "mhz_median": round(statistics.median(clocks), 1), "mhz_max": max(clocks), "seeds": runs, "used": used, "available": available,
            "critical_path_of_slowest": worst})


main()
