#!/bin/bash
# That hw/rtl stays within what Verilator, Icarus and Yosys all accept, and that a unit still synthesises to logic alone, no latches.
# Debian's packages only; under a minute. usage: hw/synth/smoke.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
files="hw/rtl/generated/mmf_num_pkg.sv hw/rtl/generated/mmf_isa_pkg.sv $(ls hw/rtl/generated/*_rom.sv hw/rtl/*.sv | tr '\n' ' ')"
for top in mmf_top mmf_int8_tile; do
  verilator --lint-only -Wall -Wno-UNUSED -Wno-PINCONNECTEMPTY --top-module $top $files
  # Icarus 11 says of each part select in an always block that it watches all bits, which is right.
  iverilog -g2012 -t null -s $top $files 2>&1 | { grep -v 'sorry: constant selects in always_' || true; }
  echo "$top: Verilator and Icarus accept it"
done
# Memories stay memories and nothing is mapped, which takes long for the core; proc shows what is not synthesisable.
yosys -q -p "read_verilog -sv $files; hierarchy -check -top mmf_top; proc; check -assert; select -assert-none t:\$dlatch t:\$_DLATCH*_"
echo "mmf_top: Yosys accepts it, no latches"
yosys -q -p "read_verilog -sv $files; synth_ecp5 -noflatten -top mmf_core_tile; tee -q -o $work/tile stat -top mmf_core_tile"
awk '/design hierarchy/ { whole = 1 } whole && $1 == "LUT4" { luts += $2 } whole && $1 == "CCU2C" { luts += 2 * $2 }
  END { print "tile: " luts " LUTs of ECP5"; exit !(luts > 0 && luts < 9000) }' "$work/tile"
