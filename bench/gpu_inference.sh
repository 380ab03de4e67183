#!/usr/bin/env bash
# Speed and memory of inference on an NVIDIA GPU: bench/gpu_inference.sh MMFREE FOLDER
# One JSON file a measurement; about two minutes on an H200, a quarter of it the last line.
set -euo pipefail
mmfree=$1
out=$2
mkdir -p "$out"
run() {  # NAME WHAT ARGUMENTS...
  local name=$1
  shift
  if "$mmfree" bench "$@" --device cuda --random --json > "$out/$name.json.tmp"; then
    mv "$out/$name.json.tmp" "$out/$name.json"
  else
    rm -f "$out/$name.json.tmp"
    echo "$name: not measured" >&2
  fi
}
for size in 370m 1.3b 2.7b; do
  run decode_$size decode --size $size
done
for size in 370m 1.3b; do
  run prefill_$size prefill --size $size --tokens 8192 --rounds 5
done
run batch_1.3b batch --size 1.3b --batch 1,8,64,256 --rounds 5
for layers in 0 12 24; do
  run offload_370m_$layers decode --size 370m --gpu-layers $layers --rounds 3
done
run stream_tiny stream --size tiny --tokens 1000000
