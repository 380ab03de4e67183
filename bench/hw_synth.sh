#!/bin/sh
# The physical study of docs/hardware.md by open tools: cells of the ternary tile and its int8 twins for FPGA families and OSU 0.18 um,
# placement and routing with timing, as JSON in docs/results/hw/synth, then the tables and the figure. About an hour; no board is needed.
# usage: bench/hw_synth.sh      installs what is missing (scripts/setup.sh --synth, hw/synth/setup.sh)
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh --synth
hw/synth/setup.sh
hw/synth/area.py
hw/synth/sta.py
hw/synth/pnr.py row_hx8k 1 2 3 4 5
hw/synth/pnr.py tile_ecp5 1 2 3
hw/synth/pnr.py tile_gowin 1 2 3
hw/synth/pnr.py core_ecp5 1 2 3
hw/synth/cells.py
hw/synth/report.py
