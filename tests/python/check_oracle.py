#!/usr/bin/env python3
"""Checks bench/peer/mmfree_torch.py against golden outputs of the reference implementation.

    check_oracle.py --golden DIR

DIR holds modules.safetensors, modules_f64.safetensors, and one folder per model (g1, g2) with
config.json, model.safetensors, io.safetensors, grads.safetensors, quant.safetensors and, where
computed, io_f64, grads_f64, io_random_tokens and adamw_20steps. Prints one line per claim;
exit status 1 when one does not hold.
"""

import argparse
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench" / "peer"))
import mmfree_torch as peer

failures = 0


def claim(what, value, limit):
    """value <= limit, NaN counting as a failure."""
    global failures
    holds = value <= limit
    failures += not holds
    print(f"{'ok  ' if holds else 'FAIL'} {what:58} {value:9.2e}  limit {limit:.1e}")


def relative(got, want):
    got, want = got.double(), want.double()
    return ((got - want).norm() / want.norm().clamp(min=1e-30)).item()


def largest(got, want):
    return (got.double() - want.double()).abs().max().item()


def differing(got, want):
    return (got.double() != want.double()).sum().item()


def leaf(tensor):
    return tensor.clone().requires_grad_()


def part(tensors, prefix):
    prefix += "."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def check_modules(tensors, tag, limit):
    def near(what, got, want):
        claim(f"{tag} {what}", relative(got, want), limit)

    names = sorted({name.split(".")[0] for name in tensors})
    for name in names:
        p = part(tensors, name)
        if name.startswith("bitlinear"):
            outputs, inputs = p["weight"].shape
            module = peer.BitLinear(inputs, outputs).to(p["x"].dtype)
            module.weight.data, module.norm.weight.data = p["weight"], p["norm_weight"]
            x = leaf(p["x"])
            y = module(x)
            near(f"{name} y", y, p["y"])
            codes, _ = peer.activation_codes(module.norm(x))
            claim(f"{tag} {name} act codes differing", differing(codes, p["act_codes"]), 0)
            if "weight_codes" in p:
                ternary, scale = peer.weight_codes(p["weight"])
                claim(f"{tag} {name} weight codes", differing(ternary, p["weight_codes"]), 0)
                near(f"{name} weight scale", 1 / scale, p["weight_scale"][0])
            if "dy" in p:
                y.backward(p["dy"])
                near(f"{name} dx", x.grad, p["dx"])
                near(f"{name} dweight", module.weight.grad, p["dweight"])
                near(f"{name} dnorm_weight", module.norm.weight.grad, p["dnorm_weight"])
        elif name.startswith("hgrn"):
            f, i = leaf(p["f"]), leaf(p["x"])
            batch, heads, steps, width = f.shape
            flat = lambda t: t.transpose(1, 2).reshape(batch, steps, heads * width)
            start = p["initial_state"].reshape(batch, -1) if "initial_state" in p else None
            h = peer.recurrence_loop(flat(f), flat(i), start)
            h = h.reshape(batch, steps, heads, width).transpose(1, 2)
            near(f"{name} o", h, p["o"])
            near(f"{name} final_state", h[:, :, -1], p["final_state"])
            h.backward(p["do"])
            near(f"{name} dx", i.grad, p["dx"])
            if p["df"].any():
                near(f"{name} df", f.grad, p["df"])
            else:
                claim(f"{tag} {name} df (zero)", f.grad.abs().max().item(), 0)
        elif name.startswith("rmsnorm"):
            x = leaf(p["x_normalised"] if "x_normalised" in p else p["x"])
            norm = peer.RMSNorm(x.shape[-1], p["eps"].item()).to(x.dtype)
            norm.weight.data = p["weight"]
            if "o_swished" in p:
                o = leaf(p["o_swished"])
                y = norm(x) * F.silu(o)
                y.backward(p["dy"])
                near(f"{name} do", o.grad, p["do"])
            elif "residual" in p:
                r = leaf(p["residual"])
                total = x + r
                y = norm(total)
                near(f"{name} residual_out", total, p["residual_out"])
                torch.autograd.backward([y, total], [p["dy"], p["dresidual_out"]])
                near(f"{name} dresidual", r.grad, p["dresidual"])
            else:
                y = norm(x)
                y.backward(p["dy"])
            near(f"{name} y", y, p["y"])
            near(f"{name} dx", x.grad, p["dx"])
            near(f"{name} dweight", norm.weight.grad, p["dweight"])
        elif name == "swiglu":
            x, other = leaf(p["x_swished"]), leaf(p["y"])
            z = F.silu(x) * other
            z.backward(p["dz"])
            near("swiglu z", z, p["z"])
            near("swiglu dx", x.grad, p["dx"])
            near("swiglu dy", other.grad, p["dy"])
        elif name == "lower_bounds":
            raw = leaf(p["raw"])
            bounds = peer.lower_bounds(raw)
            bounds.backward(p["dbound"])
            near("lower_bounds", bounds, p["bound_per_layer"])
            near("lower_bounds draw", raw.grad, p["draw"])
        elif name == "cross_entropy":
            logits = leaf(p["logits"])
            loss = F.cross_entropy(logits, p["labels"], ignore_index=-100)
            loss.backward()
            near("cross_entropy loss", loss, p["loss"][0])
            near("cross_entropy dlogits", logits.grad, p["dlogits"])
        elif name == "activation_quant":
            # This part is the reference's unfused helper, which rounds ties to the even code;
            # inside a BitLinear they go away from zero (bitlinear_exact_ties).
            _, scale = peer.activation_codes(p["x"])
            near(f"{name}, half to even", torch.round(p["x"] * scale) / scale, p["y"])
            no_tie = (p["x"] * scale).abs().frac() != 0.5
            ours = peer.QuantiseActivation.apply(p["x"])
            near(f"{name}, but for ties", ours[no_tie], p["y"][no_tie])
        elif name == "weight_quant":
            near(name, peer.QuantiseWeight.apply(p["w"]), p["u"])
        else:
            raise ValueError(f"golden part {name} is not checked by anything")


@torch.no_grad()
def step_by_step(model, ids, prefill):
    """Logits of a prefill of the given length followed by single steps."""
    states, pieces = None, []
    if prefill:
        logits, states = model(ids[:, :prefill])
        pieces.append(logits)
    for t in range(prefill, ids.shape[1]):
        logits, states = model(ids[:, t : t + 1], states)
        pieces.append(logits)
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def forward(model, ids, mask=None):
    hidden = {}
    logits, states = model(ids, mask=mask, hidden=hidden)
    return logits, states, hidden


def record_codes(model, ids):
    """Codes of every BitLinear's input, by module name, [tokens, inputs]."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, peer.BitLinear):
            hooks.append(
                module.norm.register_forward_hook(
                    lambda _, __, y, name=name: found.__setitem__(
                        name, peer.activation_codes(y)[0].flatten(0, 1)
                    )
                )
            )
    forward(model, ids)
    for hook in hooks:
        hook.remove()
    return found


def check_model(directory):
    g = directory.name
    io = load_file(directory / "io.safetensors")
    ids = io["input_ids"]
    model = peer.load_model(directory)
    heads = model.config.num_heads
    logits, states, hidden = forward(model, ids)
    claim(f"{g} logits, absolute", largest(logits, io["logits"]), 5e-5)
    claim(f"{g} logits, relative", relative(logits, io["logits"]), 5e-6)
    claim(f"{g} loss", largest(model.loss(ids).detach(), io["loss"][0]), 1e-5)
    for name, x in hidden.items():
        claim(f"{g} hidden.{name}", relative(x, io[f"hidden.{name}"]), 5e-6)
    for l, state in enumerate(states):
        want = io[f"state.layer{l}"]
        claim(f"{g} state.layer{l}", relative(state.unflatten(-1, (heads, -1)), want), 5e-6)
    got = step_by_step(model, ids, 0)
    claim(f"{g} logits_recurrent", largest(got, io["logits_recurrent"]), 5e-5)
    prefilled = [
        largest(step_by_step(model, ids, prefill), io["logits_prefill_then_recurrent"])
        for prefill in (1, ids.shape[1] // 2, ids.shape[1] - 1)
    ]
    claim(f"{g} logits_prefill_then_recurrent", max(prefilled), 5e-5)

    mask = io["leftpad.attention_mask"]
    padded, _, _ = forward(model, io["leftpad.input_ids"], mask)
    keep = mask.bool()
    claim(f"{g} leftpad logits", largest(padded[keep], io["leftpad.logits"][keep]), 5e-5)

    quant = load_file(directory / "quant.safetensors")
    codes = record_codes(model, ids)
    claim(
        f"{g} act codes differing",
        sum(differing(c, quant[f"{n}.act_codes"]) for n, c in codes.items()),
        0,
    )
    modules = dict(model.named_modules())
    claim(
        f"{g} weight codes differing",
        sum(
            differing(peer.weight_codes(modules[n].weight.detach())[0], quant[f"{n}.weight_codes"])
            for n in codes
        ),
        0,
    )

    for file, dtype, limit in (
        ("grads", torch.float32, 2e-5),
        ("grads_f64", torch.float64, 1e-11),
    ):
        if not (directory / f"{file}.safetensors").exists():
            continue
        want = load_file(directory / f"{file}.safetensors")
        model = peer.load_model(directory, dtype)
        model.loss(ids).backward()
        got = {n: p.grad for n, p in model.named_parameters()}
        claim(f"{g} {file} missing", len(want.keys() ^ got.keys()), 0)
        claim(f"{g} {file}, worst", max(relative(got[n], want[n]) for n in want), limit)

    if (directory / "io_f64.safetensors").exists():
        want = load_file(directory / "io_f64.safetensors")
        model = peer.load_model(directory, torch.float64)
        logits, _, hidden = forward(model, ids)
        claim(f"{g} f64 logits", relative(logits, want["logits"]), 1e-12)
        for name, x in hidden.items():
            claim(f"{g} f64 hidden.{name}", relative(x, want[f"hidden.{name}"]), 1e-12)
        claim(f"{g} f64 loss", largest(model.loss(ids).detach(), want["loss"][0]), 1e-12)

    if (directory / "io_random_tokens.safetensors").exists():
        want = load_file(directory / "io_random_tokens.safetensors")
        model = peer.load_model(directory)
        logits, _, _ = forward(model, want["input_ids"])
        claim(f"{g} random tokens logits, relative", relative(logits, want["logits"]), 0.05)
        if "logits_f64" in want:
            model = model.double()
            logits, _, _ = forward(model, want["input_ids"])
            claim(f"{g} random tokens f64", relative(logits, want["logits_f64"]), 1e-12)

    if (directory / "adamw_20steps.safetensors").exists():
        want = load_file(directory / "adamw_20steps.safetensors")
        ids = want["input_ids"]
        model = peer.load_model(directory)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
        )
        for step, expected in enumerate(want["loss_per_step"]):
            optimizer.zero_grad()
            loss = model.loss(ids)
            loss.backward()
            norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
            limit = 1e-4 if step < 3 else 0.06
            claim(f"{g} AdamW step {step + 1} loss", largest(loss.detach(), expected), limit)
            if step == 0:
                expected_norm = want["grad_norm_per_step"][0]
                claim(f"{g} AdamW step 1 grad norm", largest(norm, expected_norm), 1e-4)
            optimizer.step()
            if step == 0:
                after = part(want, "after_step1")
                worst = max(relative(p.detach(), after[n]) for n, p in model.named_parameters())
                claim(f"{g} AdamW after step 1, worst parameter", worst, 1e-4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=pathlib.Path, required=True)
    golden = parser.parse_args().golden
    check_modules(load_file(golden / "modules.safetensors"), "f32", 2e-6)
    # float64 parts hold values computed in float64 from the stored inputs.
    check_modules(load_file(golden / "modules_f64.safetensors"), "f64", 1e-12)
    models = sorted(p.parent for p in golden.glob("*/io.safetensors"))
    if not models:
        sys.exit(f"{golden}: no model folders found")
    for directory in models:
        check_model(directory)
    print(f"{failures} claims fail" if failures else "all claims hold")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
