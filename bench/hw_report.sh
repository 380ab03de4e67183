#!/bin/sh
# What docs/hardware.md quotes of the cycle model and of the integer network, as the JSON that the commands print.
# usage: bench/hw_report.sh [MODEL TEXT]     MODEL and TEXT: also bits per byte of the integer network on TEXT
set -eu
cd "$(dirname "$0")/.."
mmfree=build/release/mmfree
out=docs/results/hw
mkdir -p "$out"
for size in 370m 1.3b 2.7b; do
  for streams in 1 8; do
    "$mmfree" hw report --random --size $size --streams $streams --json >"$out/report_${size}_b$streams.json"
  done
  for ports in 2 4; do
    "$mmfree" hw report --random --size $size --ports $ports --json >"$out/report_${size}_p$ports.json"
  done
done
if [ $# -eq 2 ]; then
  for numerics in integer fixed; do
    "$mmfree" eval "$1" --text "$2" --numerics $numerics --json >"$out/eval_$numerics.json"
  done
fi
