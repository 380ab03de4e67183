#!/usr/bin/env bash
# Speed and memory of training on an NVIDIA GPU: bench/gpu_training.sh MMFREE FOLDER
# One JSON file a measurement. Needs about 4 minutes on an H200 and 104 GiB of its memory.
set -euo pipefail
mmfree=$1
out=$2
mkdir -p "$out"
run() {  # NAME ARGUMENTS...
  local name=$1
  shift
  if "$mmfree" bench train --device cuda --rounds 9 --json "$@" > "$out/$name.json.tmp"; then
    mv "$out/$name.json.tmp" "$out/$name.json"
    python3 - "$out/$name.json" << 'PYTHON'
import json, sys
j = json.load(open(sys.argv[1]))
print("%-28s %9.0f tokens/s %8.1f ms a step %6.1f GiB" % (
    sys.argv[1].rsplit("/", 1)[1][:-5], j["tokens_per_s"], 1e3 * j["step_s"], j["peak_bytes"] / 2**30))
PYTHON
  else
    rm -f "$out/$name.json.tmp"
    echo "$name: not measured" >&2
  fi
}
small=(--size 8m --hidden 512 --layers 8 --intermediate 1536 --vocab-size 8192 --batch 64 --seq 512)
both() {  # NAME ARGUMENTS...: with input gradients in bf16 and in fp8
  local name=$1
  shift
  run "$name" "$@"
  run "${name}_fp8" "$@" --backward fp8
}
"$mmfree" bench ops --device cuda --size 1.3b --batch 16 --rounds 20 --json > "$out/ops_1.3b.json"
"$mmfree" bench ops --device cuda "${small[@]}" --rounds 50 --json > "$out/ops_36m.json"
both 1.3b_b16 --size 1.3b --batch 16
both 370m_b32 --size 370m --batch 32
both 36m_b64_t512 "${small[@]}"
both 2.7b_b4 --size 2.7b --batch 4
run 2.7b_b4_fp8_moments_bf16 --size 2.7b --batch 4 --backward fp8 --moments bf16
both 1.3b_b16_47gib --size 1.3b --batch 16 --device-memory 47 --moments bf16
for seq in 512 2048 8192 16384; do
  run "1.3b_t$seq" --size 1.3b --batch $((32768 / seq)) --seq $seq
done
both 370m_b16 --size 370m --batch 16
both 1.3b_b8 --size 1.3b --batch 8
both 2.7b_b16 --size 2.7b --batch 16
