#!/usr/bin/env python3
"""Writes, or verifies, the small golden configurations under tests/golden/configs.

    make_config_goldens.py DIR            writes every case below DIR anew
    make_config_goldens.py DIR --verify   recomputes what the stored weights and ids give

A case is a run directory with ids.json and expected.safetensors: the tensors of `mmfree logits
--hidden --states` and of `mmfree grad`, under the same names, computed in float64, stored as F32.
"""

import argparse
import json
import pathlib
import sys

import oracle
import torch
from safetensors.torch import load_file

LARGEST_CASE = 60_000  # bytes; every clone carries them

# name: (what it is there for, config.json, options of oracle.make)
CASES = {
    "heads_eps": (
        "3 heads, width 15, `rms_norm_eps` 0.9 (the norms inside BitLinear keep 1e-6), batch 3",
        {"hidden_size": 15, "num_heads": 3, "intermediate_size": 18, "vocab_size": 31,
         "rms_norm_eps": 0.9},
        {"rows": 3, "steps": 5},
    ),
    "expand_2": (
        "`expand_ratio` 2 without lower bounds, 4 heads, BF16 file",
        {"hidden_size": 14, "num_heads": 4, "expand_ratio": 2, "use_lower_bound": False,
         "intermediate_size": 16, "vocab_size": 31},
        {"rows": 2, "steps": 9, "dtype": torch.bfloat16},
    ),
    "tied_pad": (
        "`tie_word_embeddings`, `pad_token_id` 3 among the tokens, F16 file",
        {"hidden_size": 17, "intermediate_size": 22, "vocab_size": 47,
         "tie_word_embeddings": True, "pad_token_id": 3},
        {"rows": 2, "steps": 8, "dtype": torch.float16},
    ),
    "one_layer_v131": (
        "1 layer (bound parameters without gradient), 131 tokens, 1 row, BF16 file",
        {"hidden_size": 20, "num_hidden_layers": 1, "intermediate_size": 12, "vocab_size": 131},
        {"rows": 1, "steps": 7, "dtype": torch.bfloat16},
    ),
    "mlp_by_formula": (
        "`intermediate_size` null: 256 by the formula; width 7, BF16 file",
        {"hidden_size": 7, "num_hidden_layers": 1, "intermediate_size": None, "vocab_size": 29},
        {"rows": 2, "steps": 6, "dtype": torch.bfloat16},
    ),
    "sharded": (
        "3 shards with an index, 3 layers, F32 files, 32 steps",
        {"hidden_size": 12, "num_hidden_layers": 3, "intermediate_size": 10, "vocab_size": 19},
        {"rows": 1, "steps": 32, "shards": 3},
    ),
}  # fmt: skip


def expected(directory):
    ids = directory / "ids.json"
    return {
        **oracle.compute_logits(directory, ids, torch.float64),
        **oracle.compute_grad(directory, ids, torch.float64),
    }


def write(root):
    for seed, (name, (_, fields, options)) in enumerate(CASES.items(), start=1):
        directory = root / name
        options = {"seed": seed, "dtype": torch.float32, **options}
        config = oracle.peer.Config.from_dict({"num_hidden_layers": 2, **fields})
        made = oracle.make(config, directory, **options)
        oracle.write_tensors(expected(directory), directory / "expected.safetensors", torch.float32)
        for file in directory.iterdir():
            file.chmod(0o644)
        size = sum(file.stat().st_size for file in directory.iterdir())
        print(f"{name}: {size} bytes, {json.dumps(made)}")
        if made["activation_margin"] < oracle.SAFE_MARGIN:
            sys.exit(f"{name}: too close to a rounding tie, take another seed")
        if size > LARGEST_CASE:
            sys.exit(f"{name}: more than {LARGEST_CASE} bytes")


def verify(root):
    failed = False
    for name in CASES:
        got = load_file(root / name / "expected.safetensors")
        rows = oracle.compare(got, expected(root / name), "exact")
        bad = [row for row in rows if row[3] != "ok"]
        print(f"{name}: {len(rows)} tensors, {len(bad)} differ")
        oracle.print_rows(bad)
        failed |= bool(bad)
    sys.exit(failed)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--verify", action="store_true")
    a = parser.parse_args()
    verify(a.directory) if a.verify else write(a.directory)


if __name__ == "__main__":
    main()
