#!/usr/bin/env python3
"""Outside oracle for model outputs: makes small run directories, computes them, compares files.

    oracle.py make CONFIG_JSON OUT_DIR --seed N [--dtype float32|bfloat16|float16] [--shards N]
    oracle.py logits DIR --ids F --out O.safetensors [--dtype float64|float32] [--store float32]
    oracle.py grad   DIR --ids F --out O.safetensors [--dtype float64|float32] [--store float32]
    oracle.py compare GOT WANT [--tolerances exact|flips|bf16]

The maths is bench/peer/mmfree_torch.py, which check_oracle.py holds to the reference's outputs.
Token files are {"input_ids": [[...], ...]} with rows of one length.

Rounding ties: a value next to a tie of the int8 or ternary quantiser gets another code under
another order of summation, and one code cascades. `make` therefore moves weights off the ternary
ties and picks tokens, one position after the other, for which no activation comes near a tie. The
distance of a scaled value v from its nearest tie is measured as |v - tie| / max(1, |v| / 10): both
the absolute noise of sums and the relative noise of scales stay below it. The smallest one is the
margin. With a margin of 1e-4 or more every correct float32 implementation has the same codes.
"""

import argparse
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench" / "peer"))
import mmfree_torch as peer

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
SAFE_MARGIN = 1e-4

# Largest absolute and relative (L2) difference by kind of tensor; None: not limited.
TOLERANCES = {
    # Equal codes: float32 noise only.
    "exact": {
        "logits": (5e-5, 5e-6),
        "loss": (1e-5, None),
        "hidden": (None, 5e-6),
        "state": (None, 5e-6),
        "gradient": (None, 2e-5),
    },
    # float32, but some activation lies at a tie.
    "flips": {
        "logits": (0.5, 0.05),
        "loss": (5e-3, None),
        "hidden": (None, 0.05),
        "state": (None, 0.05),
        "gradient": (None, 0.1),
    },
    # bf16 operands.
    "bf16": {
        "logits": (None, 0.1),
        "loss": (0.03, None),
        "hidden": (None, 0.1),
        "state": (None, 0.1),
        "gradient": (None, 0.2),
    },
}


# --- Tie margins ------------------------------------------------------------------------------


def tie_distance(v):
    """Distance of every v from the nearest n + 1/2, as the margin counts it."""
    size = v.abs()
    return (size - size.floor() - 0.5).abs() / (size / 10).clamp(min=1)


class ActivationMargin:
    """While entered, `worst` [rows of the batch] is the smallest tie distance in each row."""

    def __init__(self, model):
        self.model, self.worst, self.hooks = model, None, []

    def __enter__(self):
        for module in self.model.modules():
            if isinstance(module, peer.BitLinear):
                self.hooks.append(module.norm.register_forward_hook(self.see))
        return self

    def see(self, module, inputs, y):
        _, scale = peer.activation_codes(y)
        distance = tie_distance(y * scale).flatten(1).amin(dim=1)
        self.worst = distance if self.worst is None else torch.minimum(self.worst, distance)

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def activation_margin(model, ids):
    """Smallest tie distance of any activation."""
    with ActivationMargin(model) as margin:
        model(ids)
    return margin.worst.min().item()


@torch.no_grad()
def weight_margin(model):
    """Smallest relative distance of any |W| s_w from 1/2."""
    return min(
        ((m.weight * peer.weight_codes(m.weight)[1]).abs() / 0.5 - 1).abs().min().item()
        for m in model.modules()
        if isinstance(m, peer.BitLinear)
    )


# --- make -------------------------------------------------------------------------------------


@torch.no_grad()
def draw_weights(model, seed, dtype):
    """Random weights that `dtype` holds exactly and whose ternary codes are beyond doubt."""
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    for name, p in model.named_parameters():
        if name == "model.lower_bounds":
            p.normal_(0, 0.7, generator=generator)
        elif p.dim() == 1:
            p.copy_(1 + 0.15 * torch.randn(p.shape, generator=generator))
        elif ".attn." in name:
            p.mul_(4)  # gates that open and close instead of resting at 1/2
        else:
            p.mul_(5)
        p.copy_(p.to(dtype).to(p.dtype))
    for module in model.modules():
        if not isinstance(module, peer.BitLinear):
            continue
        weight = module.weight
        for _ in range(100):
            scaled = (weight.double() * peer.weight_codes(weight.double())[1]).abs()
            near = (scaled / 0.5 - 1).abs() < 4e-3
            if not near.any():
                break
            away = torch.where(scaled < 0.5, 0.985, 1.015)
            weight.copy_(torch.where(near, weight * away, weight).to(dtype).to(weight.dtype))
        else:
            raise RuntimeError("weights do not move off the ternary ties; try another seed")


@torch.no_grad()
def pick_tokens(model, rows, steps, seed, candidates=512):
    """ids [rows, steps]: at every position a random token among those far from every tie.

    A padding token is taken once as early as its margin allows: its embedding has no gradient.
    """
    pad = model.config.pad_token_id
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.vocab_size
    ids = torch.zeros(rows, steps, dtype=torch.long)
    for row in range(rows):
        states = None
        for t in range(steps):
            tried = torch.randperm(vocabulary, generator=generator)[:candidates]
            if pad is not None and t > 0 and pad not in ids[row, :t]:
                tried = torch.cat([torch.tensor([pad]), tried[tried != pad]])
            repeated = None if states is None else [s.expand(len(tried), -1) for s in states]
            with ActivationMargin(model) as margin:
                _, after = model(tried[:, None], repeated)
            good = (margin.worst >= 4 * SAFE_MARGIN).nonzero()
            # `tried` is in random order, so the first good one is a random one of them.
            best = good[0, 0] if len(good) else margin.worst.argmax()
            ids[row, t] = tried[best]
            states = [s[best : best + 1] for s in after]
    return ids


def make(config, directory, seed, dtype, shards=1, rows=2, steps=12):
    """Writes a run directory and its ids.json; returns a description with the margins."""
    model = peer.MatMulFreeLM(config)
    draw_weights(model, seed, dtype)
    peer.save_model(model, directory, dtype, shards)
    model = peer.load_model(directory, torch.float64)
    ids = pick_tokens(model, rows, steps, seed)
    write_ids(ids, pathlib.Path(directory) / "ids.json")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "input_ids": list(ids.shape),
        "distinct_tokens": len(ids.unique()),
        "activation_margin": activation_margin(model, ids),
        "weight_margin": weight_margin(model),
    }


# --- logits, grad -----------------------------------------------------------------------------


def write_ids(ids, path):
    pathlib.Path(path).write_text(json.dumps({"input_ids": ids.tolist()}) + "\n")


def read_ids(path, config):
    rows = json.loads(pathlib.Path(path).read_text())["input_ids"]
    ids = torch.tensor(rows, dtype=torch.long)
    if ids.dim() != 2 or ids.numel() == 0:
        raise ValueError(f"{path}: input_ids must be rows of equal length, found {rows}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ValueError(f"{path}: token ids must lie in [0, {config.vocab_size})")
    return ids


@torch.no_grad()
def compute_logits(directory, ids_path, dtype):
    model = peer.load_model(directory, dtype)
    ids = read_ids(ids_path, model.config)
    hidden = {}
    logits, states = model(ids, hidden=hidden)
    out = {"logits": logits}
    out.update({f"hidden.{name}": x for name, x in hidden.items()})
    heads = model.config.num_heads
    for l, state in enumerate(states):
        out[f"state.layer{l}"] = state.unflatten(-1, (heads, -1))
    return out


def compute_grad(directory, ids_path, dtype):
    model = peer.load_model(directory, dtype)
    ids = read_ids(ids_path, model.config)
    if ids.shape[1] < 2:
        raise ValueError(f"{ids_path}: one token per row leaves no label to predict")
    loss = model.loss(ids)
    loss.backward()
    out = {"loss": loss.detach().reshape(1)}
    for name, p in model.named_parameters():
        # The bound parameters of a one-layer model take no part.
        out[name] = torch.zeros_like(p) if p.grad is None else p.grad
    return out


def write_tensors(tensors, path, dtype):
    save_file({name: t.detach().to(dtype).contiguous() for name, t in tensors.items()}, path)


# --- compare ----------------------------------------------------------------------------------


def kind_of(name):
    head = name.split(".")[0]  # no parameter's name starts with one of the kinds
    return head if head in TOLERANCES["exact"] else "gradient"


def compare(got, want, tolerances):
    """Rows (name, max abs, relative L2, verdict) for all tensors of either side."""
    rows = []
    for name in sorted(got.keys() | want.keys()):
        if name not in got or name not in want:
            rows.append((name, float("nan"), float("nan"), "missing" if name in want else "extra"))
            continue
        a, b = got[name].double(), want[name].double()
        if a.shape != b.shape:
            rows.append(
                (name, float("nan"), float("nan"), f"shape {list(a.shape)} for {list(b.shape)}")
            )
            continue
        largest = (a - b).abs().max().item()
        relative = ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
        absolute_limit, relative_limit = TOLERANCES[tolerances][kind_of(name)]
        # `<=` is false for NaN, and max and norm both pass a NaN on.
        within = (absolute_limit is None or largest <= absolute_limit) and (
            relative_limit is None or relative <= relative_limit
        )
        rows.append((name, largest, relative, "ok" if within else "FAIL"))
    return rows


def print_rows(rows, only_bad=False):
    for name, largest, relative, verdict in rows:
        if not only_bad or verdict != "ok":
            print(f"{name:46} max abs {largest:9.2e}  relative {relative:9.2e}  {verdict}")


# --- Command line -----------------------------------------------------------------------------


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("make", help="random run directory with ids.json, far from ties")
    p.add_argument("config", type=pathlib.Path)
    p.add_argument("directory", type=pathlib.Path)
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    p.add_argument("--shards", type=int, default=1)
    p.add_argument("--rows", type=int, default=2)
    p.add_argument("--tokens", type=int, default=12, help="tokens per row")
    for name in ("logits", "grad"):
        p = commands.add_parser(name)
        p.add_argument("directory", type=pathlib.Path)
        p.add_argument("--ids", type=pathlib.Path, required=True)
        p.add_argument("--out", type=pathlib.Path, required=True)
        p.add_argument("--dtype", choices=("float64", "float32"), default="float64")
        p.add_argument("--store", choices=("float64", "float32"), help="default: as computed")
    p = commands.add_parser("compare")
    p.add_argument("got", type=pathlib.Path)
    p.add_argument("want", type=pathlib.Path)
    p.add_argument("--tolerances", choices=TOLERANCES, default="exact")
    return parser.parse_args()


def main():
    a = parse()
    if a.command == "make":
        made = make(
            peer.Config.load(a.config), a.directory, a.seed, DTYPES[a.dtype], a.shards, a.rows,
            a.tokens,
        )  # fmt: skip
        print(json.dumps(made))
    elif a.command == "compare":
        rows = compare(load_file(a.got), load_file(a.want), a.tolerances)
        print_rows(rows)
        sys.exit(any(verdict != "ok" for *_, verdict in rows))
    else:
        compute = compute_logits if a.command == "logits" else compute_grad
        tensors = compute(a.directory, a.ids, DTYPES[a.dtype])
        write_tensors(tensors, a.out, DTYPES[a.store or a.dtype])


if __name__ == "__main__":
    main()
