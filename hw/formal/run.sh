#!/bin/bash
# Proofs of RTL units with yosys-smtbmc and z3. Prints a line a proof; fails if one does.
# usage: hw/formal/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rtl=hw/rtl
failed=0
# prove NAME DEPTH MODE FILES...: MODE bmc (all executions of DEPTH cycles) or induction (all executions).
prove() {
  local name=$1 depth=$2 mode=$3 start=$SECONDS
  shift 3
  yosys -q -l "$work/$name.log" -p "read_verilog -sv -formal $rtl/generated/mmf_isa_pkg.sv $* hw/formal/$name.sv
    prep -top $name; flatten; memory_map; setundef -undriven -anyseq; dffunmap; opt_clean; write_smt2 -wires $work/$name.smt2" \
    >/dev/null 2>"$work/$name.err" || { cat "$work/$name.err" >&2; failed=1; return; }
  local options=()
  [ "$mode" = induction ] && options=(-i)
  if timeout 120 yosys-smtbmc -s z3 --unroll --noprogress "${options[@]}" -t "$depth" "$work/$name.smt2" >"$work/$name.out" 2>&1; then
    printf '%-12s proved (%s, %d cycles) in %d s\n' "$name" "$mode" "$depth" $((SECONDS - start))
  else
    printf '%-12s FAILED (%s, %d cycles)\n' "$name" "$mode" "$depth"
    tail -40 "$work/$name.out" >&2
    failed=1
  fi
}
prove trits 1 bmc $rtl/mmf_core_trits.sv
prove sfu 32 bmc $rtl/mmf_core_sfu.sv
prove fetch 10 bmc $rtl/mmf_core_fetch.sv
exit $failed
