#!/usr/bin/env python3
"""Training speed of the plain float32 PyTorch module (mmfree_torch.py) on this machine's CPU.

    train_speed.py --size 8m --threads 2 [--steps 5] [--variants NAME ...] [--micro-batch N ...]
    train_speed.py --check        compares the variants' gradients with the plain loop's

A step is forward and backward over all micro-batches of a batch, then one (fused) AdamW update.
The figure to beat is the fastest of these variants, each at its best micro-batch:

    loop            the recurrence as a Python loop over time, backward by autograd
    loop_function   the same loop inside one autograd function with its own backward
    chunked         all chunks of sqrt(T) steps advance side by side, then the carries
    *_compiled      blocks, and head with loss, under torch.compile (inductor)

Every variant is first tried for one step per micro-batch; the best of each is then timed for
--steps steps. Prints one JSON object; progress goes to stderr.
"""

import argparse
import ctypes
import json
import math
import platform
import statistics
import sys
import time

import mmfree_torch as peer
import torch

SIZES = {
    "8m": {"hidden": 256, "layers": 8, "intermediate": 768, "vocab": 4096, "seq": 512},
    "toy": {"hidden": 64, "layers": 2, "intermediate": 96, "vocab": 256, "seq": 64},
}


# --- The recurrence in faster forms ---------------------------------------------------------------


def scan_loop(forget, inputs, state, reverse=False):
    """All h_t of h = f h + i, written into one buffer. forget, inputs [B, T, e]."""
    out = torch.empty_like(inputs)
    h = torch.zeros_like(inputs[:, 0]) if state is None else state
    steps = range(inputs.shape[1])
    for t in reversed(steps) if reverse else steps:
        h = torch.addcmul(inputs[:, t], forget[:, t], h)
        out[:, t] = h
    return out


def scan_chunked(forget, inputs, state, reverse=False):
    """The same in about 2 sqrt(T) steps. Only products of gates (<= 1) appear, never quotients."""
    if reverse:
        forget, inputs = forget.flip(1), inputs.flip(1)
    batch, steps, width = inputs.shape
    size = math.isqrt(steps - 1) + 1
    chunks = -(-steps // size)
    pad = chunks * size - steps
    if pad:
        forget = torch.nn.functional.pad(forget, (0, 0, 0, pad))
        inputs = torch.nn.functional.pad(inputs, (0, 0, 0, pad))
    forget = forget.reshape(batch, chunks, size, width)
    inputs = inputs.reshape(batch, chunks, size, width)
    h, gate = inputs[:, :, 0], forget[:, :, 0]
    local, gates = [h], [gate]
    for k in range(1, size):
        h = torch.addcmul(inputs[:, :, k], forget[:, :, k], h)
        gate = gate * forget[:, :, k]
        local.append(h)
        gates.append(gate)
    carry = torch.zeros_like(h[:, 0]) if state is None else state
    carries = []
    for c in range(chunks):
        carries.append(carry)
        carry = torch.addcmul(h[:, c], gate[:, c], carry)
    carries = torch.stack(carries, dim=1)[:, :, None]
    out = torch.addcmul(torch.stack(local, dim=2), torch.stack(gates, dim=2), carries)
    out = out.reshape(batch, chunks * size, width)[:, :steps]
    return out.flip(1) if reverse else out


def recurrence_function(scan):
    """A recurrence whose backward is the scan run backwards in time."""

    class Recurrence(torch.autograd.Function):
        @staticmethod
        def forward(ctx, forget, inputs):
            h = scan(forget, inputs, None)
            ctx.save_for_backward(forget, h)
            return h

        @staticmethod
        def backward(ctx, grad):
            forget, h = ctx.saved_tensors
            zero = torch.zeros_like(h[:, :1])
            # delta_t = grad_t + f_{t+1} delta_{t+1}
            delta = scan(torch.cat([forget[:, 1:], zero], dim=1), grad, None, reverse=True)
            return delta * torch.cat([zero, h[:, :-1]], dim=1), delta

    def recurrence(forget, inputs, state):
        if state is not None:
            raise ValueError("training starts from the empty state")
        return Recurrence.apply(forget, inputs)

    return recurrence


# name: (recurrence, compiled)
VARIANTS = {
    "loop": (peer.recurrence_loop, False),
    "loop_function": (recurrence_function(scan_loop), False),
    "chunked": (recurrence_function(scan_chunked), False),
    "loop_function_compiled": (torch.compiler.disable(recurrence_function(scan_loop)), True),
    "chunked_compiled": (recurrence_function(scan_chunked), True),
}


# --- Measuring ------------------------------------------------------------------------------------


def keep_freed_memory():
    """Large blocks stay in the process, so that no step pays for fresh pages. glibc only."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(-4, 0) and libc.mallopt(-1, 2**31 - 1))  # MMAP_MAX, TRIM_THRESHOLD
    except OSError:
        return False


class Trainer:
    def __init__(self, config, variant, ids, micro_batch):
        torch.manual_seed(1)
        recurrence, compiled = VARIANTS[variant]
        self.model = peer.MatMulFreeLM(config, recurrence)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self.head_loss = lambda x, ids: peer.shifted_cross_entropy(self.model.lm_head(x), ids)
        if compiled:
            # Block by block: the layers share one compiled form: a minute instead of ten.
            torch.compiler.reset()
            for block in self.model.model.layers:
                block.compile(dynamic=False)
            self.head_loss = torch.compile(self.head_loss, dynamic=False)
        self.parts = ids.split(micro_batch)

    def loss(self, ids):
        x, _ = self.model.model(ids, states=None, mask=None, hidden=None)
        return self.head_loss(x, ids)

    def step(self):
        """One optimiser step; returns seconds and the loss."""
        start = time.perf_counter()
        total = 0.0
        for part in self.parts:
            loss = self.loss(part) * (len(part) / sum(map(len, self.parts)))
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start, total


def sgemm_gflops():
    """Speed of a large float32 product here: what the steps above can be judged by."""
    n = 1024
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    best = min(timed(lambda: a @ b) for _ in range(5))
    return 2 * n**3 / best / 1e9


def timed(what):
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def say(text):
    print(text, file=sys.stderr, flush=True)


def measure(config, variant, ids, micro_batches, warmup, steps):
    """The best micro-batch of a variant, timed; or the error that kept it from running."""
    tokens = ids.numel()
    tried = {}
    for micro_batch in micro_batches:
        try:
            trainer = Trainer(config, variant, ids, micro_batch)
            first, loss = trainer.step()  # compiles, allocates
            seconds, _ = trainer.step()
        except Exception as error:  # an unsupported variant is a result, not a crash
            say(f"{variant}, micro-batch {micro_batch}: {type(error).__name__}: {error}")
            return {"variant": variant, "error": f"{type(error).__name__}: {error}"[:300]}
        tried[micro_batch] = tokens / seconds
        say(
            f"{variant}, micro-batch {micro_batch}: {tokens / seconds:.0f} tokens/s"
            f" (first step {first:.1f} s, loss {loss:.4f})"
        )
    best = max(tried, key=tried.get)
    trainer = Trainer(config, variant, ids, best)
    for _ in range(max(1, warmup)):
        trainer.step()
    seconds = [trainer.step()[0] for _ in range(steps)]
    result = {
        "variant": variant,
        "micro_batch": best,
        "tokens_per_s": tokens / statistics.median(seconds),
        "step_s": {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
        },
        "tried_tokens_per_s": tried,
    }
    say(f"{variant}, micro-batch {best}: {result['tokens_per_s']:.0f} tokens/s, median of {steps}")
    return result


def cpu_name():
    try:
        with open("/proc/cpuinfo") as info:
            return next(l.split(":")[1].strip() for l in info if l.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def check():
    """Every variant's gradients equal the plain loop's; T with and without a partial last chunk."""
    worst_of_all = 0.0
    for seq in (2, 3, 7, 16, 37):
        torch.manual_seed(seq)
        ids = torch.randint(0, 31, (2, seq))
        want = None
        config = peer.Config(31, 12, 2, intermediate_size=20)
        for name, (recurrence, compiled) in VARIANTS.items():
            if compiled:
                continue
            torch.manual_seed(1)
            model = peer.MatMulFreeLM(config, recurrence).double()
            model.loss(ids).backward()
            got = torch.cat([p.grad.flatten() for p in model.parameters()])
            want = got if want is None else want
            difference = ((got - want).norm() / want.norm()).item()
            worst_of_all = max(worst_of_all, difference)
            say(f"T {seq}, {name}: relative difference {difference:.1e}")
    torch.manual_seed(1)
    config = peer.Config(31, 12, 2, intermediate_size=20)
    ids = torch.randint(0, 31, (4, 33))
    losses = {}
    for name in VARIANTS:
        trainer = Trainer(config, name, ids, 2)
        losses[name] = [trainer.step()[1] for _ in range(2)]
        say(f"{name}: losses {losses[name]}")
    spread = max(abs(a - b) for l in losses.values() for a, b in zip(l, losses["loop"]))
    holds = worst_of_all < 1e-12 and spread < 1e-3
    verdict = "ok" if holds else "FAIL"
    say(f"gradients within {worst_of_all:.1e}, losses within {spread:.1e}: {verdict}")
    sys.exit(0 if holds else 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="8m")
    for name in SIZES["8m"]:
        parser.add_argument(f"--{name}", type=int, help="overrides the size")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--micro-batch", type=int, nargs="+", help="sequences; default: 1 2 4 ...")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--default-malloc", action="store_true", help="leave glibc's malloc alone")
    parser.add_argument("--check", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.check:
        check()
    shape = {name: getattr(a, name) or value for name, value in SIZES[a.size].items()}
    rows = a.batch_tokens // shape["seq"]
    if rows < 1 or a.batch_tokens % shape["seq"]:
        parser.error(f"--batch-tokens {a.batch_tokens} is no multiple of --seq {shape['seq']}")
    micro_batches = a.micro_batch or [2**k for k in range(rows.bit_length())]
    micro_batches = [m for m in micro_batches if 1 <= m <= rows]
    if not micro_batches:
        parser.error(f"no --micro-batch lies in [1, {rows}]")
    kept = not a.default_malloc and keep_freed_memory()
    config = peer.Config(
        shape["vocab"],
        shape["hidden"],
        shape["layers"],
        intermediate_size=shape["intermediate"],
    )
    torch.manual_seed(0)
    ids = torch.randint(0, shape["vocab"], (rows, shape["seq"]))
    gflops = sgemm_gflops()
    results = [measure(config, v, ids, micro_batches, a.warmup, a.steps) for v in a.variants]
    ran = [r for r in results if "error" not in r]
    if not ran:
        say("no variant ran")
        sys.exit(1)
    best = max(ran, key=lambda r: r["tokens_per_s"])
    parameters = sum(p.numel() for p in peer.MatMulFreeLM(config).parameters())
    print(
        json.dumps(
            {
                "what": "train",
                "peer": f"PyTorch {torch.__version__}, float32",
                "tokens_per_s": best["tokens_per_s"],
                "variant": best["variant"],
                "micro_batch": best["micro_batch"],
                "model": {"size": a.size, **shape, "parameters": parameters},
                "batch_tokens": a.batch_tokens,
                "threads": a.threads,
                "steps": a.steps,
                "freed_memory_kept": kept,
                "sgemm_gflops": gflops,
                "cpu": cpu_name(),
                "python": platform.python_version(),
                "variants": results,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
