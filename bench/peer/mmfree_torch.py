"""MatMul-free language model (arXiv 2406.02528) in plain PyTorch.

This module stands outside the product. It is the peer that the training benchmark runs against
(train_speed.py) and the oracle that outputs are compared with (tests/python/oracle.py), so it is
written to be read: one class per part of the network, autograd for every backward, no kernels.
It runs in float32 and float64.

Shapes: B sequences, T tokens, d hidden size, e = d * expand_ratio state width, H heads,
m MLP width, V vocabulary, L layers. A weight is [out, in].
"""

import dataclasses
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

INNER_NORM_EPS = 1e-6  # norm inside a BitLinear, whatever rms_norm_eps says
MIN_SCALE = 1e-5  # floor of max|y| and of mean|W| before they divide


@dataclasses.dataclass
class Config:
    """The fields of config.json that change what is computed."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_heads: int = 1
    expand_ratio: int = 1
    use_lower_bound: bool = True
    hidden_ratio: int = 4
    intermediate_size: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    use_short_conv: bool = False

    def __post_init__(self):
        if self.use_short_conv:
            raise ValueError("use_short_conv is true: the short convolution is not supported")
        if self.use_lower_bound and self.expand_ratio != 1:
            raise ValueError(
                f"use_lower_bound with expand_ratio {self.expand_ratio}: the bounds have one "
                "value per hidden channel, so they need expand_ratio 1"
            )
        if self.state_size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the state {self.state_size}")

    @property
    def state_size(self):
        return int(self.hidden_size * self.expand_ratio)

    @property
    def mlp_size(self):
        if self.intermediate_size is not None:
            return self.intermediate_size
        return 256 * math.ceil(int(self.hidden_size * self.hidden_ratio * 2 / 3) / 256)

    @classmethod
    def from_dict(cls, fields):
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in fields.items() if name in known})

    @classmethod
    def load(cls, path):
        return cls.from_dict(json.loads(pathlib.Path(path).read_text()))

    def to_dict(self, torch_dtype="float32"):
        """A complete config.json, with the reference's model type and defaults."""
        return {
            "model_type": "hgrn_bit",
            "architectures": ["HGRNBitForCausalLM"],
            "torch_dtype": torch_dtype,
            "attn_mode": "fused_recurrent",
            "conv_size": 4,
            "share_conv_kernel": True,
            "hidden_act": "swish",
            "max_position_embeddings": 2048,
            "use_cache": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.02,
            "fuse_cross_entropy": True,
            **dataclasses.asdict(self),
        }


# --- Quantisers -------------------------------------------------------------------------------


def round_half_away(x):
    """Exact: x - trunc(x) has no rounding error, which adding 0.5 to |x| would have."""
    whole = torch.trunc(x)
    return torch.where((x - whole).abs() >= 0.5, whole + torch.sign(x), whole)


def activation_codes(y):
    """int8 codes (as floats) and scale [..., 1] of every row of y."""
    scale = 127 / y.abs().amax(dim=-1, keepdim=True).clamp(min=MIN_SCALE)
    return round_half_away(y * scale).clamp(-128, 127), scale


def weight_codes(weight):
    """Ternary codes (as floats) and the reciprocal of mean|W|. Ties go to the even code."""
    scale = 1 / weight.abs().mean().clamp(min=MIN_SCALE)
    return torch.round(weight * scale).clamp(-1, 1), scale


class QuantiseActivation(torch.autograd.Function):
    """y -> its dequantised int8 codes; straight through in the backward."""

    @staticmethod
    def forward(ctx, y):
        codes, scale = activation_codes(y)
        return codes / scale

    @staticmethod
    def backward(ctx, grad):
        return grad


class QuantiseWeight(torch.autograd.Function):
    """W -> its dequantised ternary codes; straight through in the backward."""

    @staticmethod
    def forward(ctx, weight):
        codes, scale = weight_codes(weight)
        return codes / scale

    @staticmethod
    def backward(ctx, grad):
        return grad


# --- Parts of the network ---------------------------------------------------------------------


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        rstd = 1 / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return x * rstd * self.weight


class BitLinear(nn.Module):
    """out = Q8(RMSNorm(x)) Q_ternary(W)^T."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.norm = RMSNorm(inputs, INNER_NORM_EPS)

    def forward(self, x):
        return F.linear(
            QuantiseActivation.apply(self.norm(x)), QuantiseWeight.apply(self.weight)
        )


def lower_bounds(raw):
    """[L, d] parameters -> bounds of the forget gate per layer; the first layer's are 0."""
    share = torch.softmax(raw, dim=0)
    return torch.cumsum(share, dim=0) - share[0]


def recurrence_loop(forget, inputs, state):
    """h_t = f_t h_{t-1} + i_t over dimension 1. forget, inputs [B, T, e]; state [B, e] or None.

    Returns all h [B, T, e].
    """
    h = torch.zeros_like(inputs[:, 0]) if state is None else state
    steps = []
    for f, i in zip(forget.unbind(1), inputs.unbind(1)):
        h = f * h + i
        steps.append(h)
    return torch.stack(steps, dim=1)


class Mixer(nn.Module):
    """The gated linear recurrence (MLGRU) with its projections."""

    def __init__(self, config, recurrence):
        super().__init__()
        d, e = config.hidden_size, config.state_size
        self.i_proj = BitLinear(d, e)
        self.f_proj = BitLinear(d, e)
        self.g_proj = BitLinear(d, e)
        self.g_norm = RMSNorm(e, config.rms_norm_eps)
        self.o_proj = BitLinear(e, d)
        self.recurrence = recurrence

    def forward(self, u, bound, state, mask):
        """bound [e] or None; state [B, e] or None; mask [B, T, 1] or None."""
        forget = torch.sigmoid(self.f_proj(u))
        if bound is not None:
            forget = bound + (1 - bound) * forget
        inputs = F.silu(self.i_proj(u)) * (1 - forget)
        if mask is not None:
            inputs = inputs * mask
        h = self.recurrence(forget, inputs, state)
        # The projection is normalised and the state gates it, not the other way round.
        mixed = self.g_norm(self.g_proj(u)) * F.silu(h)
        return self.o_proj(mixed), h[:, -1]


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = BitLinear(config.hidden_size, 2 * config.mlp_size)
        self.down_proj = BitLinear(config.mlp_size, config.hidden_size)

    def forward(self, v):
        gate, up = self.gate_proj(v).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config, recurrence):
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Mixer(config, recurrence)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, bound, state, mask):
        y, state = self.attn(self.attn_norm(x), bound, state, mask)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state


class Body(nn.Module):
    def __init__(self, config, recurrence):
        super().__init__()
        d, layers = config.hidden_size, config.num_hidden_layers
        self.embeddings = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        if config.use_lower_bound:
            self.lower_bounds = nn.Parameter(torch.zeros(layers, d))
        self.layers = nn.ModuleList(Block(config, recurrence) for _ in range(layers))
        self.norm = RMSNorm(d, config.rms_norm_eps)
        self.use_lower_bound = config.use_lower_bound

    def forward(self, ids, states, mask, hidden):
        x = self.embeddings(ids)
        if hidden is not None:
            hidden["embedding"] = x
        bounds = lower_bounds(self.lower_bounds) if self.use_lower_bound else None
        new_states = []
        for l, block in enumerate(self.layers):
            bound = bounds[l] if bounds is not None and l > 0 else None
            x, state = block(x, bound, None if states is None else states[l], mask)
            new_states.append(state)
            if hidden is not None:
                hidden[f"block{l}"] = x
        x = self.norm(x)
        if hidden is not None:
            hidden["final_norm"] = x
        return x, new_states


class MatMulFreeLM(nn.Module):
    """Parameter names are those of the reference's checkpoints."""

    def __init__(self, config, recurrence=recurrence_loop):
        super().__init__()
        self.config = config
        self.model = Body(config, recurrence)
        self.lm_head = BitLinear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator=None):
        """The reference's initialisation; norm gains 1 and bound parameters 0 stay as made."""
        for name, parameter in self.named_parameters():
            if parameter.dim() != 2 or name == "model.lower_bounds":
                continue
            if ".attn." in name:
                bound = 2**-2.5 * math.sqrt(6 / sum(parameter.shape))
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                std = 0.02
                if "down_proj" in name:
                    std /= math.sqrt(2 * self.config.num_hidden_layers)
                parameter.normal_(0, std, generator=generator)

    def forward(self, ids, states=None, mask=None, hidden=None):
        """ids [B, T]; states: per layer [B, e], or None for the empty state; mask [B, T], 0 where
        padded. Returns logits [B, T, V] and the new states. Fills `hidden` when it is a dict."""
        if mask is not None:
            mask = mask.to(self.model.norm.weight.dtype)[:, :, None]
        x, states = self.model(ids, states, mask, hidden)
        return self.lm_head(x), states

    def loss(self, ids):
        """Mean cross entropy of token t+1 from position t; the last position has no label."""
        return shifted_cross_entropy(self(ids)[0], ids)


def shifted_cross_entropy(logits, ids):
    labels = torch.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


# --- Run directories --------------------------------------------------------------------------


def load_tensors(directory):
    """All tensors of model.safetensors, or of the shards that its index names."""
    directory = pathlib.Path(directory)
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return load_file(directory / "model.safetensors")
    tensors = {}
    where = json.loads(index.read_text())["weight_map"]
    for shard in sorted(set(where.values())):
        for name, tensor in load_file(directory / shard).items():
            if where.get(name) != shard:
                raise ValueError(f"{index}: tensor {name} of {shard} is not listed there")
            tensors[name] = tensor
    missing = where.keys() - tensors.keys()
    if missing:
        raise ValueError(f"{index}: no shard holds {sorted(missing)}")
    return tensors


def load_model(directory, dtype=torch.float32, recurrence=recurrence_loop):
    """The model of a run directory; weights of any float type are widened to `dtype`."""
    directory = pathlib.Path(directory)
    config = Config.load(directory / "config.json")
    model = MatMulFreeLM(config, recurrence).to(dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in load_tensors(directory).items()}
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embeddings.weight"]
    model.load_state_dict(tensors, strict=True)
    return model


def save_model(model, directory, dtype=torch.float32, shards=1):
    """Writes config.json and the weights, in `shards` files with an index when more than one."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    type_name = str(dtype).removeprefix("torch.")
    config = json.dumps(model.config.to_dict(type_name), indent=1)
    (directory / "config.json").write_text(config + "\n")
    # named_parameters() lists a tied table once, as checkpoints do.
    tensors = {n: p.detach().to(dtype).contiguous() for n, p in model.named_parameters()}
    for old in directory.glob("model*.safetensors*"):
        old.unlink()
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    where = {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[s::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, file))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
