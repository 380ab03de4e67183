#!/usr/bin/env python3
"""Decode and prefill of mmfree against llama.cpp and its forks on this machine's CPU, in turns.

    llama_bench.py --mmfree build/release/mmfree --out rivals.json [--threads 2] [--rounds 5]
        --rival NAME LLAMA_BENCH SIZE=FILE ... [--rival ...] [--rival-version NAME VERSION] ...

    llama_bench.py --mmfree build/release/mmfree --out rivals.json
        --rival "ik_llama.cpp IQ2_BN" ik/llama-bench 370m=370m-iq2_bn.gguf 1.3b=1.3b-iq2_bn.gguf
        --rival "ik_llama.cpp IQ1_BN" "ik/llama-bench -thp 1" 370m=370m-iq1_bn.gguf
        --rival "llama.cpp TQ2_0" upstream/llama-bench 370m=370m-tq2_0.gguf
        --rival-version "ik_llama.cpp" 8337e4c --rival-version "llama.cpp" 0c1e570

LLAMA_BENCH may carry options of its own. A version belongs to all rivals whose name starts with
NAME. SIZE is a size of `mmfree bench --random --size`; FILE should have the same matrix shapes.

In each round all contestants of a size run one after the other, mmfree among them, each round
beginning with the next one. A ratio is mmfree's speed over the rival's in the same round; medians
are taken over the rounds. Progress goes to stderr, a table to stdout. Peak memory is the resident
set: of mmfree as it reports it, without what its bandwidth measurement takes; of a rival as the
kernel counts it, with the pages of the mapped file. Nothing else should run.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile

KINDS = ("decode", "prefill")
REPORTED = ("roofline_share", "peak_rss_bytes", "others_cpu_share")  # of mmfree, if it says them


class Failure(Exception):
    pass


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command):
    """Standard output and peak resident bytes of a command that must succeed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise Failure(f"{command[0]}: {error.strerror}") from error
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            last = err.read().strip()[-500:]
            raise Failure(f"{shlex.join(command)}: exit status {process.returncode}\n{last}")
        unit = 1 if sys.platform == "darwin" else 1024
        return out.read(), usage.ru_maxrss * unit


def parse(command, text, opening):
    """The JSON value of an output that may begin with other lines."""
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if line.startswith(opening)), len(lines))
    try:
        return json.JSONDecoder().raw_decode("".join(lines[start:]))[0]
    except json.JSONDecodeError as error:
        raise Failure(f"{shlex.join(command)}: no JSON in the output: {error}") from error


class Mmfree:
    name = "mmfree"

    def __init__(self, args):
        self.args = args

    def commands(self, size):
        common = ["--random", "--size", size, "--threads", str(self.args.threads), "--json"]
        length = ["--tokens", str(self.args.prompt)]
        program = [self.args.mmfree, "bench"]
        return [program + ["decode"] + common, program + ["prefill"] + length + common]

    def measure(self, size):
        result = {}
        for kind, command in zip(KINDS, self.commands(size)):
            said = parse(command, run(command)[0], "{")
            result[kind] = {key: said[key] for key in ("tokens_per_s", *REPORTED) if key in said}
            result[kind]["read_gb_per_s"] = said["roofline"]["read_gb_per_s"]
            result[kind]["int8_gops"] = said["roofline"]["int8_gops"]
            result["layout"] = said.get("model", {}).get("layout")
            result["matrix_bytes"] = said.get("model", {}).get("matrix_bytes")
        return result


class Rival:
    def __init__(self, args, spec):
        if len(spec) < 3:
            raise Failure(f"--rival {shlex.join(spec)}: expected NAME LLAMA_BENCH SIZE=FILE ...")
        self.args = args
        self.name = spec[0]
        self.program = shlex.split(spec[1])
        self.files = {}
        for item in spec[2:]:
            size, equals, path = item.partition("=")
            if not equals or not os.path.isfile(path):
                raise Failure(f"--rival {self.name}: {item}: expected SIZE=FILE, FILE existing")
            self.files[size] = path
        versions = [text for name, text in args.rival_version if self.name.startswith(name)]
        self.version = versions[-1] if versions else None

    def commands(self, size):
        length = ["-p", str(self.args.prompt), "-n", str(self.args.generate)]
        threads = ["-t", str(self.args.threads)]
        return [self.program + ["-m", self.files[size]] + threads + length + "-r 1 -o json".split()]

    def measure(self, size):
        (command,) = self.commands(size)
        text, peak = run(command)
        tests = parse(command, text, "[")
        result = {"peak_rss_bytes": peak, "file_bytes": os.path.getsize(self.files[size])}
        for test in tests:
            self.version = self.version or test.get("build_commit")
            kind = "decode" if test["n_gen"] else "prefill"
            result[kind] = {"tokens_per_s": float(test["avg_ts"])}
        if not all(kind in result for kind in KINDS):
            raise Failure(f"{shlex.join(command)}: expected a decode and a prefill test")
        return result


def plain(command):
    """A command without the folders of this machine."""
    return shlex.join(pathlib.PurePath(word).name if "/" in word else word for word in command)


def median(values):
    return statistics.median(values) if values else None


def summary(size, contestants, rounds):
    """Medians of a size from its rounds, each a dictionary of results by contestant."""
    ours = [r["mmfree"] for r in rounds]
    report = {"mmfree": {"layout": ours[-1]["layout"], "matrix_bytes": ours[-1]["matrix_bytes"]}}
    for kind in KINDS:
        keys = ours[0][kind]
        report["mmfree"][kind] = {key: median([o[kind][key] for o in ours]) for key in keys}
        report["mmfree"][kind]["rounds"] = [o[kind]["tokens_per_s"] for o in ours]
    report["rivals"] = []
    for rival in contestants:
        if rival.name == "mmfree":
            continue
        theirs = [r[rival.name] for r in rounds]
        entry = {"name": rival.name, "version": rival.version}
        entry["file_bytes"] = theirs[-1]["file_bytes"]
        entry["peak_rss_bytes"] = median([t["peak_rss_bytes"] for t in theirs])
        for kind in KINDS:
            speeds = [t[kind]["tokens_per_s"] for t in theirs]
            ratios = [o[kind]["tokens_per_s"] / s for o, s in zip(ours, speeds)]
            entry[kind] = {
                "tokens_per_s": median(speeds),
                "mmfree_ratio": median(ratios),
                "rounds": speeds,
                "mmfree_ratio_rounds": ratios,
            }
        report["rivals"].append(entry)
    report["commands"] = {c.name: [plain(words) for words in c.commands(size)] for c in contestants}
    return report


def measure(size, contestants, count):
    rounds = []
    for i in range(count):
        first = i % len(contestants)
        results = {}
        for one in contestants[first:] + contestants[:first]:
            results[one.name] = one.measure(size)
            speeds = ", ".join(f"{k} {results[one.name][k]['tokens_per_s']:.1f}" for k in KINDS)
            say(f"{size}, round {i + 1} of {count}, {one.name}: {speeds} tokens/s")
        rounds.append(results)
    return summary(size, contestants, rounds)


def table(sizes):
    width = max(len(r["name"]) for s in sizes.values() for r in s["rivals"])
    head = f"{'size':6} {'contestant':{width}}"
    for kind in KINDS:
        head += f" | {kind + ', tok/s':>16} {'mmfree is':>10} {'rounds':>13}"
    lines = [head + " | peak MB"]
    for size, report in sizes.items():
        ours = report["mmfree"]
        line = f"{size:6} {'mmfree':{width}}"
        for kind in KINDS:
            share = ours[kind].get("roofline_share")
            note = f"roofline {share:.0%}" if share else ""
            line += f" | {ours[kind]['tokens_per_s']:16.1f} {note:>24}"
        peak = max(ours[kind].get("peak_rss_bytes", 0) for kind in KINDS)
        lines.append(line + f" | {peak / 1e6:7.0f}")
        for rival in report["rivals"]:
            line = f"{size:6} {rival['name']:{width}}"
            for kind in KINDS:
                r = rival[kind]
                low, high = min(r["mmfree_ratio_rounds"]), max(r["mmfree_ratio_rounds"])
                span = f"{low:.2f} - {high:.2f}"
                line += f" | {r['tokens_per_s']:16.1f} {r['mmfree_ratio']:9.2f}x {span:>13}"
            lines.append(line + f" | {rival['peak_rss_bytes'] / 1e6:7.0f}")
    return "\n".join(lines)


def cpu_name():
    try:
        with open("/proc/cpuinfo") as info:
            return next(l.split(":")[1].strip() for l in info if l.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def compare(args):
    rivals = [Rival(args, spec) for spec in args.rival]
    repeated = [n for n, k in collections.Counter(r.name for r in rivals).items() if k > 1]
    if repeated or "mmfree" in (r.name for r in rivals):
        raise Failure(f"names of rivals must differ from each other and from mmfree: {repeated}")
    report = {
        "what": "decode and prefill against rivals",
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": args.threads,
        "rounds": args.rounds,
        "tokens": {"prefill": args.prompt, "rival_decode": args.generate},
        "load_average_at_start": os.getloadavg()[0],
        "sizes": {},
    }
    if report["load_average_at_start"] > 0.3:
        say(f"warning: load average {report['load_average_at_start']:.1f}: other programs run")
    for size in dict.fromkeys(size for rival in rivals for size in rival.files):
        contestants = [Mmfree(args)] + [rival for rival in rivals if size in rival.files]
        report["sizes"][size] = measure(size, contestants, args.rounds)
        with open(args.out, "w") as out:  # after each size: what is measured stays
            out.write(json.dumps(report, indent=1) + "\n")
    print(table(report["sizes"]))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mmfree", required=True)
    parser.add_argument("--rival", nargs="+", action="append", required=True)
    parser.add_argument("--rival-version", nargs=2, action="append", default=[])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of prefill")
    parser.add_argument("--generate", type=int, default=128, help="tokens a rival decodes")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    if min(args.threads, args.rounds, args.prompt, args.generate) < 1:
        parser.error("--threads, --rounds, --prompt and --generate must be at least 1")
    try:
        compare(args)
    except Failure as failure:
        say(f"llama_bench.py: {failure}")
        sys.exit(1)


if __name__ == "__main__":
    main()
