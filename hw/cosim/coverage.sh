#!/bin/bash
# Line coverage of hw/rtl over all benches, merged, as JSON: per file and in total. Generated tables (*_rom.sv) are data, an entry a line,
# and left out: hw_noise_test and hw_generated_files_are_current compare them with their source. Needs a built preset hw.
# The core has two ports there, one stream, and behind the registers one port, two streams. usage: hw/cosim/coverage.sh [BUILD_DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${1:-build/hw}")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/data"
if command -v ccache >/dev/null; then export OBJCACHE=ccache; fi
flags="-std=c++20 -O1 -fopenmp -I$root -DFMT_SHARED -DMMF_RTL_ONE_CORE=2 -DMMF_RTL_ONE_TOP=1 -DMMF_RTL_WIDTH=2048 -DMMF_RTL_STATE=4096 -DMMF_RTL_PROGRAM=128"
libraries="$build/libmmfree.a -fopenmp -lgtest_main -lgtest -lfmt -lsentencepiece_train -lsentencepiece"
packages="hw/rtl/generated/mmf_num_pkg.sv hw/rtl/generated/mmf_isa_pkg.sv hw/rtl/generated/mmf_sigmoid_rom.sv hw/rtl/generated/mmf_noise_rom.sv"
for source in rtl_core_test random_program_test random_program; do
  g++ $flags -c hw/cosim/$source.cpp -o "$work/$source.o"
done
verilator --cc --exe --build -j 2 --coverage-line --Mdir "$work/core" --prefix Vmmf_core --top-module mmf_core -Wno-fatal -O1 \
  -GPorts=2 -GWidth=2048 -GStateSize=4096 hw/cosim/rtl_core.vlt $packages hw/rtl/mmf_core.sv hw/rtl/mmf_core_*.sv -CFLAGS "$flags" \
  -LDFLAGS "$work/rtl_core_test.o $work/random_program_test.o $work/random_program.o $libraries" "$root/hw/cosim/rtl_core.cpp" \
  -o test >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }
verilator --cc --exe --build -j 2 --coverage-line --Mdir "$work/top" --prefix Vmmf_top --top-module mmf_top -Wno-fatal -O1 \
  -GWidth=320 -GStateSize=1024 -GStreams=2 $packages hw/rtl/mmf_core.sv hw/rtl/mmf_core_*.sv hw/rtl/mmf_top.sv -CFLAGS "$flags" \
  -LDFLAGS "$libraries" "$root/hw/cosim/rtl_top_test.cpp" -o test >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }
MMF_COVERAGE="$work/data" "$work/core/test" --gtest_filter='RtlCore.Equals*:RtlCore.Takes*:RandomPrograms.*' >&2
MMF_COVERAGE="$work/data" "$work/top/test" >&2
verilator_coverage --write-info "$work/lines.info" "$work"/data/*.dat >/dev/null
awk -F'[:,]' '
  /^SF:/ { n = split($2, part, "/"); file = part[n]; order[++files] = file }
  /^DA:/ { lines[file]++; if ($3 > 0) covered[file]++; else missing[file] = missing[file] " " $2 }
  END {
    printf "{\n  \"what\": \"line coverage of hw/rtl without generated tables, simulated\",\n  \"files\": ["
    for (i = 1; i <= files; i++) {
      f = order[i]; if (f ~ /_rom\.sv$/) continue
      total += lines[f]; all += covered[f]
      printf "%s\n    {\"file\": \"%s\", \"lines\": %d, \"covered\": %d, \"not_covered\": \"%s\"}", (n_out++ ? "," : ""), f, lines[f], covered[f],
        substr(missing[f], 2)
    }
    printf "\n  ],\n  \"lines\": %d,\n  \"covered\": %d,\n  \"share\": %.4f\n}\n", total, all, all / total
    exit all / total < 0.95
  }' "$work/lines.info"
