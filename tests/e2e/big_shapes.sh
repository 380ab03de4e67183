#!/usr/bin/env bash
# Models of the released sizes with random weights: write, inspect, convert, generate, and the peak memory of generate
# from GGUF against its bound (1.15 x the file + 100 MB). Needs about 7 GB of disk. Run by hand:
#
#   tests/e2e/big_shapes.sh [-o RESULTS.json] BUILD_DIR [TOKENIZER.model] [SIZE...]      (sizes: 370m 2.7b)
set -euo pipefail

results=/dev/null
while getopts o: option; do
  case $option in
    o) results=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))

build=${1:?usage: big_shapes.sh [-o RESULTS.json] BUILD_DIR [TOKENIZER.model] [SIZE...]}
tokenizer=${2:-}
shift $(($# < 2 ? $# : 2))
if [ $# -gt 0 ]; then sizes=("$@"); else sizes=(370m 2.7b); fi
work=$(mktemp -d "${TMPDIR:-/tmp}/mmfree-big-XXXXXX")
trap 'rm -rf "$work" "$work.rows"' EXIT

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
seconds() { date +%s.%N; }

# One row: a line of the table, and the same as JSON for the results file.
row() {
  printf '%-6s %-10s %14s %14s %14s %9.2f %9s %9.2f\n' "$@"
  printf '{"size": "%s", "form": "%s", "bytes": %s, "peak_rss_bytes": %s, "peak_bound_bytes": %s, "load_s": %s, "convert_s": %s, "tokens_per_s": %s}\n' \
    "$@" | sed 's/: -/: null/g' >> "$work.rows"
}

failed=0
printf '%-6s %-10s %14s %14s %14s %9s %9s %9s\n' size form bytes peak_bytes bound load_s convert_s tokens/s
: > "$work.rows"
for size in "${sizes[@]}"; do
  shards=1
  if [ "$size" = 2.7b ]; then shards=2; fi
  "$build/tests/make_random_model" --size "$size" --dtype bf16 --shards "$shards" --out "$work/run" \
    ${tokenizer:+--tokenizer "$tokenizer"}
  "$build/mmfree" inspect "$work/run" --json > "$work/inspect.json"
  from_directory=$("$build/mmfree" generate "$work/run" --prompt-ids 1,415,2936 -n 16 --temp 0 --ignore-eos --json)
  row "$size" directory "$(du -sb "$work/run" | cut -f1)" "$(field peak_rss_bytes <<< "$from_directory")" - \
    "$(field load_s <<< "$from_directory")" - "$(field tokens_per_s <<< "$from_directory")"
  for format in tq1_0 tq2_0; do
    file=$work/model.gguf
    start=$(seconds)
    "$build/mmfree" convert "$work/run" "$file" --weights "$format" --force
    converted=$(python3 -c "print(round($(seconds) - $start, 2))")
    "$build/mmfree" inspect "$file" --json > "$work/inspect-$format.json"
    result=$("$build/mmfree" generate "$file" --prompt-ids 1,415,2936 -n 16 --temp 0 --ignore-eos --json)
    bytes=$(stat -c %s "$file")
    peak=$(field peak_rss_bytes <<< "$result")
    bound=$((bytes * 115 / 100 + 100000000))
    row "$size" "$format" "$bytes" "$peak" "$bound" "$(field load_s <<< "$result")" "$converted" \
      "$(field tokens_per_s <<< "$result")"
    if [ "$peak" -gt "$bound" ]; then
      echo "FAILED: peak memory of generate from $format is above its bound"
      failed=1
    fi
    if [ "$(field ids <<< "$result")" != "$(field ids <<< "$from_directory")" ]; then
      echo "FAILED: the tokens from $format differ from the directory's"
      failed=1
    fi
  done
  rm -rf "${work:?}"/*
done
python3 -c '
import json, os, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
json.dump({"what": "big_shapes", "threads": os.cpu_count(), "rows": rows}, sys.stdout, indent=1)' "$work.rows" > "$results"
exit $failed
