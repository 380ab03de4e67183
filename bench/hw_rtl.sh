#!/bin/sh
# What docs/hardware.md quotes of the RTL under Verilator, in lock-step with the simulator, as the JSON that the commands print. Needs a
# built preset hw.
# usage: bench/hw_rtl.sh sizes            one token of random weights of 370m, 1.3b, 2.7b, of 370m for 8 streams, of 370m and 1.3b with ports
#        bench/hw_rtl.sh text MODEL       200 tokens of text, the likeliest and drawn, by RTL with one and two ports, simulator and
#                                         integer network
set -eu
cd "$(dirname "$0")/.."
mmfree=build/hw/mmfree
out=docs/results/hw
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
case ${1:-} in
  sizes)
    for size in 370m 1.3b 2.7b; do
      "$mmfree" hw compile --random --size $size -o "$work/image"
      "$mmfree" hw run "$work/image" --prompt-ids 17 -n 1 --rtl --json >"$work/json"
      mv "$work/json" "$out/rtl_$size.json"
    done
    "$mmfree" hw compile --random --size 370m --streams 8 -o "$work/image"
    "$mmfree" hw run "$work/image" --prompt-ids 17 -n 1 --rtl --json >"$work/json"
    mv "$work/json" "$out/rtl_370m_b8.json"
    for kind in "370m 2" "1.3b 2" "370m 4"; do
      set -- $kind
      "$mmfree" hw compile --random --size $1 --ports $2 -o "$work/image"
      "$mmfree" hw run "$work/image" --prompt-ids 17 -n 1 --rtl --json >"$work/json"
      mv "$work/json" "$out/rtl_$1_p$2.json"
    done
    ;;
  text)
    model=$2
    "$mmfree" hw compile "$model" -o "$work/image"
    "$mmfree" hw compile "$model" --ports 2 -o "$work/image2"
    for temp in 0 0.8; do
      set -- --prompt "And the LORD said unto" -n 200 --temp $temp --seed 3 --ignore-eos --json
      "$mmfree" hw run "$work/image" "$@" --rtl >"$work/rtl"
      "$mmfree" hw run "$work/image2" "$@" --rtl >"$work/rtl2"
      "$mmfree" hw run "$work/image" "$@" >"$work/instructions"
      "$mmfree" generate "$model" --numerics fixed "$@" >"$work/network"
      python3 - "$work" <<'PYTHON' >"$out/text_temp_$temp.json"
import json, sys
results = {name: json.load(open(f"{sys.argv[1]}/{name}")) for name in ("rtl", "rtl2", "instructions", "network")}
rtl = results["rtl"]
for name, result in results.items():
    if result["ids"] != rtl["ids"] or len(result["ids"]) != 200:
        sys.exit(f"the tokens of {name} differ from the RTL's: {result['ids']} and {rtl['ids']}")
keys = ("temperature", "seed", "instructions_compared", "last_token", "prompt_ids", "ids", "text")
print(json.dumps({"what": "200 tokens by RTL in lock-step with one and two ports, simulator and integer network: equal",
       **{k: rtl[k] for k in keys}, "two_ports": {k: results["rtl2"][k] for k in ("instructions_compared", "last_token")}}, indent=2))
PYTHON
    done
    ;;
  *)
    sed -n '4,6s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
