#!/usr/bin/env python3
"""Compares `mmfree logits` and `mmfree grad` with the oracle on many small configurations.

    check_configs.py --mmfree build/release/mmfree [--only NAME ...] [--keep DIR] [--numerics MODE]

Every case is a random run directory with tokens far from rounding ties (oracle.py make), so the
tolerances are those of equal codes; where no such tokens were found, those of flipped codes, and
the table says so. With --numerics reference and a 16-bit file the program rounds to 16 bits on
purpose; those logits are held to the tolerances of bf16 operands. Exit status 1 when a case fails,
2 when the program is not there.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import oracle
import torch
from safetensors.torch import load_file

peer = oracle.peer
BASE = {"vocab_size": 131, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 88}

# name: (fields of config.json that differ from BASE, options of oracle.make that differ)
CASES = {
    "base": ({}, {}),
    "heads_4": ({"num_heads": 4}, {}),
    "width_100_vocab_257": (
        {"hidden_size": 100, "num_heads": 5, "vocab_size": 257, "intermediate_size": 136},
        {},
    ),
    "width_72_heads_3": ({"hidden_size": 72, "num_heads": 3, "num_hidden_layers": 3}, {}),
    "width_17": ({"hidden_size": 17, "intermediate_size": 23, "vocab_size": 67}, {}),
    "width_3": ({"hidden_size": 3, "intermediate_size": 5, "vocab_size": 19}, {}),
    "mlp_by_formula": ({"intermediate_size": None}, {"steps": 6}),
    "mlp_hidden_ratio_2": (
        {"hidden_size": 100, "hidden_ratio": 2, "intermediate_size": None},
        {"steps": 6},
    ),
    "expand_2": ({"expand_ratio": 2, "use_lower_bound": False}, {}),
    "expand_2_heads_6": ({"expand_ratio": 2, "use_lower_bound": False, "num_heads": 6}, {}),
    "no_lower_bound": ({"use_lower_bound": False}, {}),
    "norm_eps_1e-5": ({"rms_norm_eps": 1e-5}, {}),
    # A BitLinear's own norm undoes nearly all that rms_norm_eps does before it; only a large value
    # shows whether the right norms use it.
    "norm_eps_0.9": ({"rms_norm_eps": 0.9}, {}),
    "norm_eps_0.9_expand_2": (
        {"rms_norm_eps": 0.9, "expand_ratio": 2, "use_lower_bound": False},
        {},
    ),
    "tied": ({"tie_word_embeddings": True}, {}),
    "tied_bf16": ({"tie_word_embeddings": True}, {"dtype": torch.bfloat16}),
    "tied_pad": ({"tie_word_embeddings": True, "pad_token_id": 5}, {}),
    "pad": ({"pad_token_id": 0}, {}),
    "one_layer": ({"num_hidden_layers": 1}, {}),
    "five_layers": ({"num_hidden_layers": 5, "hidden_size": 24, "intermediate_size": 40}, {}),
    "one_token": ({}, {"steps": 1}),
    "two_tokens": ({}, {"steps": 2}),
    "batch_3": ({}, {"rows": 3}),
    "batch_1": ({}, {"rows": 1}),
    "long": ({"hidden_size": 20, "intermediate_size": 24}, {"rows": 1, "steps": 150}),
    "bf16": ({}, {"dtype": torch.bfloat16}),
    "f16": ({}, {"dtype": torch.float16}),
    "sharded": ({}, {"shards": 3}),
    "sharded_bf16_tied": ({"tie_word_embeddings": True}, {"shards": 2, "dtype": torch.bfloat16}),
}


def run(program, arguments):
    """Runs and returns None, or says why it did not end well."""
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return f"{arguments[0]}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}"


def worst(rows, kinds):
    chosen = [row for row in rows if oracle.kind_of(row[0]) in kinds]
    return f"{max(row[2] for row in chosen):9.1e}" if chosen else f"{'-':>9}"


def check(program, name, directory, numerics):
    """Makes and checks one case; returns whether it holds."""
    fields, options = CASES[name]
    config = peer.Config.from_dict({**BASE, **fields})
    options = {"dtype": torch.float32, "seed": 1 + list(CASES).index(name), **options}
    made = oracle.make(config, directory, **options)
    ids = directory / "ids.json"
    exact = made["activation_margin"] >= oracle.SAFE_MARGIN
    tolerances = "exact" if exact else "flips"

    problems, rows = [], []
    commands = {"logits": ["--hidden", "--states"], "grad": []}
    if made["input_ids"][1] == 1:
        del commands["grad"]  # nothing to predict
    for command, extra in commands.items():
        out = directory / f"{command}.safetensors"
        if numerics and command == "logits":
            extra = [*extra, "--numerics", numerics]
        problem = run(program, [command, directory, "--ids", ids, "--out", out, *extra])
        if problem:
            problems.append(problem)
            continue
        compute = oracle.compute_logits if command == "logits" else oracle.compute_grad
        want = compute(directory, ids, torch.float64)
        oracle.write_tensors(want, directory / f"{command}.oracle.safetensors", torch.float64)
        sixteen_bit = numerics == "reference" and options["dtype"] != torch.float32
        limits = "bf16" if sixteen_bit and command == "logits" else tolerances
        rows += oracle.compare(load_file(out), want, limits)
    bad = [row for row in rows if row[3] != "ok"]
    holds = not problems and not bad
    print(
        f"{name:24} {made['activation_margin']:8.1e} {tolerances:6}"
        f" {worst(rows, ('logits',))} {worst(rows, ('hidden', 'state'))}"
        f" {worst(rows, ('loss',))} {worst(rows, ('gradient',))}  {'ok' if holds else 'FAIL'}"
    )
    for problem in problems:
        print(f"    {problem}")
    for tensor, largest, relative, verdict in bad:
        print(f"    {tensor}: max abs {largest:.2e}, relative {relative:.2e}: {verdict}")
    sys.stdout.flush()
    return holds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mmfree", type=pathlib.Path, required=True, help="the program")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", default=list(CASES))
    parser.add_argument("--keep", type=pathlib.Path, help="keep the directories here")
    parser.add_argument("--numerics", help="passed on to `mmfree logits`")
    a = parser.parse_args()
    if not a.mmfree.is_file():
        print(f"no such program: {a.mmfree}", file=sys.stderr)
        sys.exit(2)
    with tempfile.TemporaryDirectory() as temporary:
        root = a.keep or pathlib.Path(temporary)
        print(
            f"{'configuration':24} {'margin':>8} {'limits':6} {'logits':>9} {'hidden':>9}"
            f" {'loss':>9} {'gradient':>9}   (worst relative differences)"
        )
        held = [check(a.mmfree.resolve(), name, root / name, a.numerics) for name in a.only]
    print(f"{held.count(True)} of {len(held)} configurations agree")
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
