#!/bin/sh
# The whole path in a few minutes: installs what is missing, builds, makes text from Debian packages, trains a small MatMul-free
# model on it, packs it to GGUF and generates from it. Run it again and it goes on where it stopped.
# usage: scripts/quickstart.sh [OUT_DIR]      (default runs/quickstart)
set -eu
cd "$(dirname "$0")/.."
out=${1:-runs/quickstart}

scripts/setup.sh
cmake --preset release -DMMFREE_DEV=OFF
cmake --build --preset release
mmfree=build/release/mmfree

[ -f "$out/text/SOURCES.txt" ] || scripts/quickstart_text.sh "$out/text"
[ -f "$out/data/meta.json" ] || "$mmfree" data prepare "$out/text/bible.txt" --out "$out/data" --vocab-size 2048
"$mmfree" train --preset mmfree --size tiny --data "$out/data" --out "$out/run" --resume \
  --steps 1400 --batch-tokens 2048 --seq 256 --eval-every 350 --prompt "And the" --sample-every 350
"$mmfree" convert "$out/run" "$out/model.gguf" --force
"$mmfree" inspect "$out/model.gguf" --summary
"$mmfree" plot "$out/run" --out "$out/curves.svg"
"$mmfree" generate "$out/model.gguf" --prompt "And the LORD said unto" -n 120 --temp 0.7 --seed 1 --echo
