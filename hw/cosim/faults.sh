#!/bin/bash
# Puts each fault of faults.txt into a copy of the RTL, alone, and runs the lock-step test, which must fail. Prints JSON.
# Needs a built preset hw. usage: hw/cosim/faults.sh [BUILD_DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${1:-build/hw}")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
width=2048 state=4096 program=128
for source in rtl_core_test random_program_test random_program; do
  g++ -std=c++20 -O1 -fopenmp -I. -DFMT_SHARED -DMMF_RTL_ONE_STREAM -c hw/cosim/$source.cpp -o "$work/$source.o"
done

# Verilates the RTL in $1 and runs the test: 0 if it passes, 1 if it fails, 2 if there is no test to run.
try() {
  local rtl=$1
  verilator --cc --exe --build -j 2 --Mdir "$rtl/obj" --prefix Vmmf_core --top-module mmf_core -Wno-fatal -O1 \
    -GWidth=$width -GStateSize=$state -GProgramSize=$program hw/cosim/rtl_core.vlt \
    "$rtl"/generated/mmf_num_pkg.sv "$rtl"/generated/mmf_isa_pkg.sv "$rtl"/generated/*_rom.sv "$rtl"/mmf_core*.sv \
    -CFLAGS "-std=c++20 -O1 -fopenmp -I$root -DFMT_SHARED -DMMF_RTL_ONE_STREAM -DMMF_RTL_WIDTH=$width -DMMF_RTL_STATE=$state -DMMF_RTL_PROGRAM=$program" \
    -LDFLAGS "$work/rtl_core_test.o $work/random_program_test.o $work/random_program.o $build/libmmfree.a -fopenmp -lgtest_main -lgtest -lfmt -lsentencepiece_train -lsentencepiece" \
    "$root/hw/cosim/rtl_core.cpp" -o test >"$rtl/log" 2>&1 || { tail -5 "$rtl/log" >&2; return 2; }
  MMF_PROGRAMS=200 timeout 300 "$rtl/obj/test" --gtest_fail_fast \
    --gtest_filter='RtlCore.Equals*:RtlCore.Takes*:RandomPrograms.*' >"$rtl/log" 2>&1 && return 0
  return 1
}

cp -r hw/rtl "$work/good"
try "$work/good" || { echo "faults.sh: the test fails without a fault" >&2; exit 1; }
total=0 caught=0 rows=
while IFS='|' read -r file expression name; do
  case $file in '#'* | '') continue ;; esac
  # A '|' of the expression splits it: the name is what follows the last one.
  rest="$expression|$name"
  expression=${rest%|*} name=${rest##*|}
  file=$(echo "$file" | xargs)
  cp -r hw/rtl "$work/bad"
  sed -i "$(echo "$expression" | sed 's/^ *//; s/ *$//')" "$work/bad/$file"
  if cmp -s "hw/rtl/$file" "$work/bad/$file"; then
    echo "faults.sh: the fault '$name' changes nothing" >&2
    exit 1
  fi
  result=0
  try "$work/bad" || result=$?
  [ $result -ne 2 ] || { echo "faults.sh: the fault '$name' does not compile" >&2; exit 1; }
  total=$((total + 1))
  caught=$((caught + result))
  rows="$rows${rows:+,}
    {\"file\": \"$file\", \"fault\": \"$(echo "$name" | sed 's/^ *//')\", \"caught\": $([ $result -eq 1 ] && echo true || echo false)}"
  rm -rf "$work/bad"
done <hw/cosim/faults.txt
printf '{\n  "faults": %d,\n  "caught": %d,\n  "list": [%s\n  ]\n}\n' $total $caught "$rows"
[ $total -eq $caught ]
