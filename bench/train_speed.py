#!/usr/bin/env python3
"""Training speed of mmfree against the plain PyTorch module (peer/train_speed.py), on this machine, one after the other.

    bench/train_speed.py --mmfree build/release/mmfree --data DIR [--size 8m] [--threads 2] [--steps 8]

DIR is made by `mmfree data prepare` with the vocabulary that the peer uses (4096 at size 8m). Run it with a Python that has torch,
on a machine that does nothing else. Prints one JSON object; both sides take batches of 8192 tokens in sequences of 512.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile


def ours(args):
    with tempfile.TemporaryDirectory() as scratch:
        run = pathlib.Path(scratch) / "run"
        command = [args.mmfree, "train", "--size", args.size, "--data", args.data, "--out", str(run),
                   "--steps", str(args.steps + 2), "--batch-tokens", "8192", "--seq", "512",
                   "--eval-every", "0", "--health-every", "0", "--checkpoint-every", "1000",
                   "--threads", str(args.threads), "--quiet"]
        subprocess.run(command, check=True)
        rows = [json.loads(line) for line in (run / "trainer" / "metrics.jsonl").open()]
    speeds = [row["tokens_per_s"] for row in rows[2:]]  # the first steps touch memory for the first time
    return {"tokens_per_s": statistics.median(speeds), "min": min(speeds), "max": max(speeds),
            "command": " ".join(["mmfree"] + command[1:4] + command[8:])}


def peer(args):
    script = pathlib.Path(__file__).parent / "peer" / "train_speed.py"
    command = [sys.executable, str(script), "--size", args.size, "--threads", str(args.threads),
               "--steps", str(args.peer_steps), "--micro-batch", "1", "4", "16"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmfree", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", default="8m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--peer-steps", type=int, default=3)
    args = parser.parse_args()

    first = ours(args)
    other = peer(args)
    second = ours(args)
    speed = statistics.median([first["tokens_per_s"], second["tokens_per_s"]])
    eager = max(v["tokens_per_s"] for v in other["variants"] if not v["variant"].endswith("_compiled"))
    print(json.dumps({"what": "train", "mmfree": {"tokens_per_s": speed, "runs": [first, second]},
                      "peer": other, "ratio_to_fastest_peer": speed / other["tokens_per_s"],
                      "ratio_to_fastest_eager_peer": speed / eager}, indent=1))


if __name__ == "__main__":
    main()
