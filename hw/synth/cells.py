#!/usr/bin/env python3
"""Cells of the complete core by unit, from the netlist that pnr.py core_ecp5 synthesised (before placement).

usage: hw/synth/cells.py      writes docs/results/hw/synth/cells_core_ecp5.json
"""
import collections
import json
import re
import sys

from common import BUILD, write_json

UNITS = {"g_tile[0]": "tile", "g_vec[0]": "vector unit", "g_epi[0]": "epilogue", "g_sfu[0]": "scalar unit", "g_fetch[0]": "prefetcher",
         "u_decode": "decoder", "u_board": "scoreboard", "s_regs": "scalar registers"}
LUTS = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}  # a LUT RAM has four LUTs that store and two that write


def main():
    netlist = BUILD / "pnr" / "core_ecp5.json"
    if not netlist.exists():
        sys.exit(f"cells.py: {netlist} does not exist; run hw/synth/pnr.py core_ecp5")
    luts, others = collections.Counter(), collections.Counter()
    for name, cell in json.loads(netlist.read_text())["modules"]["pnr_core"]["cells"].items():
        kind = cell["type"]
        if kind in LUTS:
            unit = re.match(r"u_core\.([a-z]+_[a-z]+(\[0\])?)", name.lstrip("\\"))
            where = "sequencer, load unit, memories" if name.lstrip("\\").startswith("u_core.") else "shift registers around it"
            where = UNITS.get(unit.group(1), where) if unit else where
            luts[where] += LUTS[kind]
        if kind in ("DP16KD", "PDPW16KD", "MULT18X18D", "TRELLIS_FF", "TRELLIS_DPR16X4"):
            others[kind] += 1
    write_json("cells_core_ecp5.json", {
        "what": "complete core of 16 lanes, width 256 and state 768, one stream, for Lattice ECP5: synthesised, before placement, never measured",
        "luts": dict(luts.most_common()), "luts_total": sum(luts.values()), "cells": dict(others)})


main()
