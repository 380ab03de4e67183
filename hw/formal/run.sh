#!/bin/bash
# Proofs of RTL units with yosys, yosys-smtbmc and z3. Prints a line a proof; fails if one does.
# usage: hw/formal/run.sh [NAME]
set -euo pipefail
cd "$(dirname "$0")/../.."
only=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rtl=${MMF_RTL:-hw/rtl}  # elsewhere: to see a proof fail
failed=0
# prove NAME MODE DEPTH FILE REGISTERS...: MODE bmc (all executions of DEPTH cycles), induction (all executions; DEPTH cycles are
# enough for the step, and the first of them are checked by bmc too), or sat (the same by yosys' own solver, which is quicker where
# there is much arithmetic). REGISTERS of the unit that the bench NAME.sv knows as b_REGISTER;
# word K of a memory is NAME.K there and NAME_K in the bench.
prove() {
  local name=$1 mode=$2 depth=$3 file=$4 start=$SECONDS connect= register
  shift 4
  [ -z "$only" ] || [ "$only" = "$name" ] || return 0
  for register in "$@"; do
    case $register in
      *.*) connect+="connect -set b_${register/./_} \\dut.${register%.*}[${register#*.}]; " ;;
      *) connect+="connect -set b_$register dut.$register; " ;;
    esac
  done
  local prepare="read_verilog -sv -formal $rtl/generated/mmf_isa_pkg.sv $file hw/formal/$name.sv; prep -top $name; flatten; memory_map; $connect"
  local ok=1
  if [ "$mode" = sat ]; then
    timeout 300 yosys -q -p "$prepare opt -full
      sat -verify -tempinduct -prove-asserts -set-assumes -set-init-zero -maxsteps $depth" >"$work/$name.out" 2>&1 || ok=0
  else
    yosys -q -p "$prepare setundef -undriven -anyseq; dffunmap; opt_clean; write_smt2 -wires $work/$name.smt2" 2>"$work/$name.err" ||
      { cat "$work/$name.err" >&2; failed=1; return; }
    timeout 200 yosys-smtbmc -s z3 --unroll --noprogress -t "$depth" "$work/$name.smt2" >"$work/$name.out" 2>&1 || ok=0
    if [ $ok = 1 ] && [ "$mode" = induction ]; then
      timeout 200 yosys-smtbmc -s z3 --unroll --noprogress -i -t "$depth" "$work/$name.smt2" >"$work/$name.out" 2>&1 || ok=0
    fi
  fi
  if [ $ok = 1 ]; then
    printf '%-12s proved (%s, %d cycles) in %d s\n' "$name" "$mode" "$depth" $((SECONDS - start))
  else
    printf '%-12s FAILED (%s, %d cycles)\n' "$name" "$mode" "$depth"
    tail -40 "$work/$name.out" >&2
    failed=1
  fi
}
prove trits bmc 1 $rtl/mmf_core_trits.sv
prove sfu bmc 33 $rtl/mmf_core_sfu.sv
prove fetch sat 2 $rtl/mmf_core_fetch.sv queue_in_q queue_out_q queue_beat.0 queue_beat.1 queue_len.0 queue_len.1 beat_q left_q burst_q sized_q room_q pop_q filled_q none_left_q ends_q \
  fifo.0 fifo.1 fifo.2 fifo.3 in_q out_q promised_q outstanding_q
prove board induction 3 $rtl/mmf_core_board.sv ld_w vec_r vec_w sfu_r sfu_w tile_r tile_w drain_r drain_w
exit $failed
