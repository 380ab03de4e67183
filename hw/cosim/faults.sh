#!/bin/bash
# Puts each fault of faults.txt into a copy of the RTL, alone, and runs the lock-step test, which must fail. Prints JSON.
# Needs a built preset hw; ccache, if there is one, compiles only what a fault changes (about 15 s a fault, else 60 s). usage: hw/cosim/faults.sh [BUILD_DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${1:-build/hw}")
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if command -v ccache >/dev/null; then export OBJCACHE=ccache; fi
width=2048 state=4096 program=128
for ports in 1 2; do
  mkdir "$work/$ports"
  for source in rtl_core_test random_program_test random_program; do
    g++ -std=c++20 -O1 -fopenmp -I. -DFMT_SHARED -DMMF_RTL_ONE_CORE=$ports -c hw/cosim/$source.cpp -o "$work/$ports/$source.o"
  done
done

# Verilates the RTL in $1 with $2 ports and runs the test: 0 if it passes, 1 if it fails, 2 if there is no test to run.
try() {
  local rtl=$1 tests=$work/$2
  verilator --cc --exe --build -j 2 --Mdir "$rtl/obj" --prefix Vmmf_core --top-module mmf_core -Wno-fatal -O1 \
    -GPorts=$2 -GWidth=$width -GStateSize=$state -GProgramSize=$program hw/cosim/rtl_core.vlt \
    "$rtl"/generated/mmf_num_pkg.sv "$rtl"/generated/mmf_isa_pkg.sv "$rtl"/generated/*_rom.sv "$rtl"/mmf_core*.sv \
    -CFLAGS "-std=c++20 -O1 -fopenmp -I$root -DFMT_SHARED -DMMF_RTL_ONE_CORE=$2 -DMMF_RTL_WIDTH=$width -DMMF_RTL_STATE=$state -DMMF_RTL_PROGRAM=$program" \
    -LDFLAGS "$tests/rtl_core_test.o $tests/random_program_test.o $tests/random_program.o $build/libmmfree.a -fopenmp -lgtest_main -lgtest -lfmt -lsentencepiece_train -lsentencepiece" \
    "$root/hw/cosim/rtl_core.cpp" -o test >"$rtl/log" 2>&1 || { tail -5 "$rtl/log" >&2; return 2; }
  MMF_PROGRAMS=200 timeout 300 "$rtl/obj/test" --gtest_fail_fast \
    --gtest_filter='RtlCore.Equals*:RtlCore.Takes*:RandomPrograms.*' >"$rtl/log" 2>&1 && return 0
  return 1
}

# Line by line, calls $1 FILE EXPRESSION NAME PORTS.
each() {
  local file expression name rest ports
  while IFS='|' read -r file expression name; do
    case $file in '#'* | '') continue ;; esac
    # A '|' of the expression splits it: the name is what follows the last one.
    rest="$expression|$name"
    expression=$(echo "${rest%|*}" | sed 's/^ *//; s/ *$//') name=$(echo "${rest##*|}" | sed 's/^ *//')
    file=$(echo "$file" | xargs) ports=1
    case $file in *@*) ports=${file#*@} file=${file%@*} ;; esac
    "$1" "$file" "$expression" "$name" $ports </dev/null
  done <hw/cosim/faults.txt
}
applies() {
  sed "$2" "hw/rtl/$1" | cmp -s - "hw/rtl/$1" || return 0
  echo "faults.sh: the fault '$3' changes nothing" >&2
  exit 1
}
total=0 caught=0 rows=
inject() {
  local result=0
  cp -r hw/rtl "$work/bad"
  sed -i "$2" "$work/bad/$1"
  try "$work/bad" $4 || result=$?
  [ $result -ne 2 ] || { echo "faults.sh: the fault '$3' does not compile" >&2; exit 1; }
  echo "faults.sh: $([ $result -eq 1 ] && echo caught || echo not caught): $1: $3" >&2
  total=$((total + 1))
  caught=$((caught + result))
  rows="$rows${rows:+,}
    {\"file\": \"$1\", \"ports\": $4, \"fault\": \"$3\", \"caught\": $([ $result -eq 1 ] && echo true || echo false)}"
  rm -rf "$work/bad"
}

each applies
for ports in 1 2; do
  cp -r hw/rtl "$work/good"
  try "$work/good" $ports || { tail -20 "$work/good/log" >&2; echo "faults.sh: the test fails without a fault, ports: $ports" >&2; exit 1; }
  rm -rf "$work/good"
done
each inject
printf '{\n  "faults": %d,\n  "caught": %d,\n  "list": [%s\n  ]\n}\n' $total $caught "$rows"
[ $total -eq $caught ]
