#!/usr/bin/env python3
"""Checks a run directory and its GGUF files with the packages that other programs read them with.

    check_formats.py RUN_DIRECTORY FILE.gguf...

Needs the pip packages numpy, safetensors and gguf. Every tensor of the directory must be in every
GGUF file and the other way round. For a ternary tensor the codes are computed here from the latent
weights:
    scale = max(mean |W|, 1e-5)        (float32)
    code  = clamp(round-half-even(W * (1 / scale)), -1, 1)
and the GGUF tensor, as the gguf package dequantises it, must equal code x fp16(scale) in every
element.
Other tensors must equal the directory's, rounded to the type they are stored in.
Prints one line per file and ends with status 1 and a message at the first difference.
"""

import json
import pathlib
import re
import sys

import gguf
import numpy as np
import safetensors

F32 = np.float32
# The mean is a float32 sum in an order of the writer's choice; the one here is exact.
SCALE_TOLERANCE = 1e-5

LAYER_NAMES = {
    "attn_norm.weight": "attn_norm.weight",
    "attn.i_proj.weight": "attn_i.weight",
    "attn.i_proj.norm.weight": "attn_i_norm.weight",
    "attn.f_proj.weight": "attn_f.weight",
    "attn.f_proj.norm.weight": "attn_f_norm.weight",
    "attn.g_proj.weight": "attn_g.weight",
    "attn.g_proj.norm.weight": "attn_g_norm.weight",
    "attn.g_norm.weight": "attn_gated_norm.weight",
    "attn.o_proj.weight": "attn_o.weight",
    "attn.o_proj.norm.weight": "attn_o_norm.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate_up.weight",
    "mlp.gate_proj.norm.weight": "ffn_gate_up_norm.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.down_proj.norm.weight": "ffn_down_norm.weight",
}
OTHER_NAMES = {
    "model.embeddings.weight": "token_embd.weight",
    "model.lower_bounds": "lower_bounds.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "lm_head.norm.weight": "output_in_norm.weight",
}
TERNARY = re.compile(r"(_proj|^lm_head)\.weight$")


class Difference(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Difference(message)


def gguf_name(name):
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if layer:
        expect(layer[2] in LAYER_NAMES, f"{name}: no such tensor in a layer")
        return f"blk.{layer[1]}.{LAYER_NAMES[layer[2]]}"
    expect(name in OTHER_NAMES, f"{name}: no such tensor in the network")
    return OTHER_NAMES[name]


def read_tensors(path):
    """name -> float32 array, which holds F32, F16 and BF16 exactly."""
    tensors = {}
    for name, info in safetensors.deserialize(path.read_bytes()):
        raw = bytes(info["data"])
        if info["dtype"] == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(F32)
        else:
            types = {"F32": np.float32, "F16": np.float16}
            expect(info["dtype"] in types, f"{path}: {name} is {info['dtype']}")
            values = np.frombuffer(raw, types[info["dtype"]]).astype(F32)
        tensors[name] = values.reshape(info["shape"])
    return tensors


def read_directory(directory):
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.exists():
        return read_tensors(single)
    weight_map = json.loads(index.read_text())["weight_map"]
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        tensors.update(read_tensors(directory / shard))
    expect(set(tensors) == set(weight_map), f"{index}: lists other tensors than the shards hold")
    return tensors


def to_bf16(x):
    """Nearest bfloat16, ties to even, as float32."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(F32)


def first_difference(a, b):
    where = np.unravel_index(np.argmax(a != b), a.shape)
    return f"element {tuple(int(i) for i in where)} is {a[where]}, expected {b[where]}"


def check_ternary(what, weight, tensor, scale_tensor):
    """Returns how many codes were compared."""
    expect(scale_tensor is not None, f"{what}: no scale tensor beside it")
    stored = scale_tensor.data
    expect(stored.dtype == F32 and stored.shape == (1,), f"{what}: scale is not one F32")
    scale = F32(stored[0])
    exact = max(F32(np.mean(np.abs(weight), dtype=np.float64)), F32(1e-5))
    expect(
        abs(float(scale) - float(exact)) <= SCALE_TOLERANCE * float(exact),
        f"{what}: scale is {scale}, max(mean |W|, 1e-5) is {exact}",
    )
    codes = np.clip(np.rint(weight * (F32(1) / scale)), F32(-1), F32(1))
    kind = tensor.tensor_type
    if kind == gguf.GGMLQuantizationType.I8:
        values, expected = tensor.data.astype(F32), codes
        columns = weight.shape[1]
        expect(columns % 256 != 0, f"{what}: I8, though rows of {columns} fit blocks")
    else:
        expect(
            kind in (gguf.GGMLQuantizationType.TQ1_0, gguf.GGMLQuantizationType.TQ2_0),
            f"{what}: type {kind.name}",
        )
        values = gguf.quants.dequantize(tensor.data, kind)
        expected = codes * F32(np.float16(scale))
    expect(values.shape == weight.shape, f"{what}: shape {values.shape}, expected {weight.shape}")
    expect(np.array_equal(values, expected), f"{what}: {first_difference(values, expected)}")
    return codes.size


def check_plain(what, weight, tensor):
    kind = tensor.tensor_type.name
    data = tensor.data
    if kind == "F32":
        values, expected = data, weight
    elif kind == "F16":
        values, expected = data.astype(F32), weight.astype(np.float16).astype(F32)
    else:
        expect(kind == "BF16", f"{what}: type {kind}")
        values = (data.view(np.uint16).astype(np.uint32) << 16).view(F32)
        expected = to_bf16(np.ascontiguousarray(weight))
    expect(values.shape == weight.shape, f"{what}: shape {values.shape}, expected {weight.shape}")
    expect(np.array_equal(values, expected), f"{what}: {first_difference(values, expected)}")


def check_gguf(path, latent):
    reader = gguf.GGUFReader(path)
    architecture = reader.fields.get("general.architecture")
    expect(architecture is not None, f"{path}: no general.architecture")
    expect(architecture.contents() == "mmfree", f"{path}: architecture {architecture.contents()}")
    tensors = {t.name: t for t in reader.tensors}
    known = set()
    codes = 0
    for name, weight in latent.items():
        packed = gguf_name(name)
        what = f"{path}: {packed}"
        expect(packed in tensors, f"{what}: missing")
        known.add(packed)
        tensor = tensors[packed]
        if TERNARY.search(name):
            scale = packed.removesuffix("weight") + "scale"
            known.add(scale)
            codes += check_ternary(what, weight, tensor, tensors.get(scale))
        else:
            check_plain(what, weight, tensor)
    extra = sorted(set(tensors) - known)
    expect(not extra, f"{path}: tensors that the directory lacks: {', '.join(extra[:5])}")
    expect(codes > 0, f"{path}: no ternary tensors")
    print(f"{path}: {len(tensors)} tensors, {codes} ternary codes equal")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        directory = pathlib.Path(sys.argv[1])
        latent = read_directory(directory)
        print(f"{directory}: {len(latent)} tensors")
        for path in sys.argv[2:]:
            check_gguf(path, latent)
    except (Difference, OSError, ValueError, safetensors.SafetensorError) as error:
        sys.exit(f"check_formats: {error}")


if __name__ == "__main__":
    main()
