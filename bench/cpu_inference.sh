#!/bin/sh
# The figures of docs/benchmarks.md: decoding, prefill and batches at the paper's sizes with random weights, each as the
# JSON that `mmfree bench` prints. Some minutes; nothing else should run.
# usage: bench/cpu_inference.sh MMFREE OUT_DIR [THREADS]
set -eu
mmfree=$1
out=$2
threads=${3:-$(nproc)}
mkdir -p "$out"
bench() { # NAME ARGUMENTS...
  name=$1
  shift
  echo "$name" >&2
  "$mmfree" bench "$@" --json >"$out/$name.json"
}
for size in 370m 1.3b 2.7b; do
  bench decode_$size decode --random --size $size --threads "$threads"
  bench prefill_$size prefill --random --size $size --threads "$threads" --rounds 5
done
# The same without AMX, for machines that have it.
(
  export MMFREE_ISA=avx512vbmi
  bench prefill_1.3b_avx512vbmi prefill --random --size 1.3b --threads "$threads" --rounds 5
) || rm -f "$out/prefill_1.3b_avx512vbmi.json"
bench decode_2.7b_one_thread decode --random --size 2.7b --threads 1
bench batch_1.3b batch --random --size 1.3b --threads "$threads" --rounds 5
bench batch_2.7b batch --random --size 2.7b --threads "$threads" --rounds 5 --batch 1,2,4
bench ops_1.3b ops --size 1.3b --threads "$threads" --rounds 3
bench stream_tiny stream --random --size tiny --threads "$threads" --tokens 1000000
