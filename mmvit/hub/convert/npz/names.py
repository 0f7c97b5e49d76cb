"""The flax names of big_vision and vision_transformer files -> ours, with the axes turned.

Shape letters: D width, H heads, K width of a head, M hidden width, p patch side, V vocabulary, C classes.
Flax stores kernels as (in,out), those of q, k, v as (D,H,K) and of their output as (H,K,D). `modern` brings
the dialects of older files to the names that are read here.
Source: big_vision `models/vit.py` and its `fix_old_checkpoints`; vision_transformer `checkpoint.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from mmvit.hub.convert.heads import NO_HEAD
from mmvit.hub.convert.keymap import Line, blocks, scalar, transpose

# Modules that older files number through within a block (LayerNorm_0, ...Attention_1, LayerNorm_2,
# MlpBlock_3) and newer ones class by class.
_NUMBERED = re.compile(r"(MultiHeadDotProductAttention|LayerNorm|MlpBlock|Dense)_(\d+)")
_DEEPEST = 1024


def heads_in(x: Tensor) -> Tensor:
    """A q, k or v kernel (D,H,K) as a Linear weight (H*K,D)."""
    return x.flatten(1).t().contiguous()


def heads_out(x: Tensor) -> Tensor:
    """The output kernel (H,K,D) as a Linear weight (D,H*K)."""
    return x.flatten(0, 1).t().contiguous()


def convolution(x: Tensor) -> Tensor:
    """A kernel (p,p,3,D) as a Conv2d weight (D,3,p,p)."""
    return x.permute(3, 2, 0, 1).contiguous()


def flat(x: Tensor) -> Tensor:
    """A vector (D) stored as (1,1,1,D), or head by head as (H,K)."""
    return x.reshape(-1)


def squeezed(x: Tensor) -> Tensor:
    """A Mixer's kernel (in,out) with axes of one in between, as a Linear weight (out,in)."""
    return x.squeeze().t().contiguous()


def linear(source: str, target: str) -> list[Line]:
    """A Dense layer as a Linear layer."""
    return [(f"{source}/kernel", f"{target}.weight", transpose), (f"{source}/bias", f"{target}.bias", flat)]


def norm(source: str, target: str) -> list[Line]:
    """A LayerNorm."""
    return [(f"{source}/scale", f"{target}.weight", flat), (f"{source}/bias", f"{target}.bias", flat)]


_ATTENTION = "MultiHeadDotProductAttention_0"


def _output(target: str) -> list[Line]:
    return [
        (f"{_ATTENTION}/out/kernel", f"{target}.weight", heads_out),
        (f"{_ATTENTION}/out/bias", f"{target}.bias", flat),
    ]


def _input(name: str, target: str, part: int) -> list[Line]:
    return [
        (f"{_ATTENTION}/{name}/kernel", f"{target}.weight#{part}", heads_in),
        (f"{_ATTENTION}/{name}/bias", f"{target}.bias#{part}", flat),
    ]


_MLP = [*linear("MlpBlock_0/Dense_0", "mlp.fc1"), *linear("MlpBlock_0/Dense_1", "mlp.fc2")]
_BLOCK: list[Line] = [
    *norm("LayerNorm_0", "norm1"),
    *(line for part, name in enumerate(("query", "key", "value")) for line in _input(name, "attn.qkv", part)),
    *_output("attn.proj"),
    *norm("LayerNorm_1", "norm2"),
    *_MLP,
]
_MAP: list[Line] = [
    ("probe", "latent"),
    *_input("query", "q", 0),
    *_input("key", "kv", 0),
    *_input("value", "kv", 1),
    *_output("proj"),
    *norm("LayerNorm_0", "norm"),
    *_MLP,
]
_POOLS: list[Line] = [*blocks("MAPHead_0/", "pool.", _MAP), *blocks("", "pool.", _MAP)]
_PATCHES: list[Line] = [
    ("embedding/kernel", "patch_embed.proj.weight", convolution),
    ("embedding/bias", "patch_embed.proj.bias", flat),
]


def _encoder(source: str) -> list[Line]:
    return [
        *blocks(f"{source}/encoderblock_{{i}}/", "core.blocks.{i}.", _BLOCK),
        *norm(f"{source}/encoder_norm", "core.norm"),
    ]


VIT: list[Line] = [
    *_PATCHES,
    ("cls", "cls_token"),
    ("pos_embedding", "pos_embed"),
    *_encoder("Transformer"),
    *_POOLS,
]
TEXT: list[Line] = [
    ("Embed_0/embedding", "tok_embed.weight"),
    ("pos_embedding", "pos_embed"),
    *_encoder("Encoder_0"),
    *_POOLS,
]
_MIXER_BLOCK: list[Line] = [
    *norm("LayerNorm_0", "norm1"),
    *norm("LayerNorm_1", "norm2"),
    *(
        line
        for part, target in (("token_mixing", "mlp_tokens"), ("channel_mixing", "mlp_channels"))
        for n in (0, 1)
        for line in (
            *linear(f"{part}/Dense_{n}", f"{target}.fc{n + 1}"),
            (f"{part}_phase_0/kernel{n + 1}", f"{target}.fc{n + 1}.weight", squeezed),
            (f"{part}_phase_0/bias{n + 1}", f"{target}.fc{n + 1}.bias", flat),
        )
    ),
]
MIXER: list[Line] = [
    *_PATCHES,
    ("stem/kernel", "patch_embed.proj.weight", convolution),
    ("stem/bias", "patch_embed.proj.bias", flat),
    *blocks("MixerBlock_{i}/", "core.blocks.{i}.", _MIXER_BLOCK),
    *blocks("Mixer/encoderblock_{i}/", "core.blocks.{i}.", _MIXER_BLOCK),
    *norm("pre_head_layer_norm", "core.norm"),
    *norm("Mixer/encoder_norm", "core.norm"),
]
SCALARS: list[Line] = [("t", "logit_scale", scalar), ("b", "logit_bias", scalar)]
HEAD: list[Line] = linear("head", "head")
WITHOUT_HEAD: list[Line] = [("head/*", NO_HEAD), ("pre_logits/*", NO_HEAD)]


def modern(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The tensors of one tower under the newest names, and new name -> names in the file.

    Blocks stacked along a leading axis are taken apart, modules are numbered class by class, positions stand
    at the top; the second position table of early text towers is added to the first.

    Raises:
        ValueError: stacked blocks without a common depth.
    """
    found, origin = _unstack(state)
    numbers = _renumbered(found)
    found = {numbers[name]: value for name, value in found.items()}
    origin = {numbers[name]: old for name, old in origin.items()}
    for place in ("Transformer/posembed_input/", "Transformer/", "Encoder_0/"):
        table = found.pop(f"{place}pos_embedding", None)
        if table is None:
            continue
        old = origin.pop(f"{place}pos_embedding")
        if "pos_embedding" in found:
            table, old = table + found["pos_embedding"], origin["pos_embedding"] + old
        found["pos_embedding"], origin["pos_embedding"] = table, old
    return found, origin


def _unstack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Tensors of all blocks in one, (L,...), as L blocks; new name -> names in the file."""
    found: dict[str, Tensor] = {}
    origin: dict[str, list[str]] = {}
    depths = {len(value) if value.ndim else 0 for name, value in state.items() if "/encoderblock/" in name}
    if depths and (len(depths) > 1 or not 0 < min(depths) <= _DEEPEST):
        raise ValueError(f"stacked blocks have depths {sorted(depths)[:5]}, expected one for all")
    for name, value in state.items():
        if "/encoderblock/" not in name:
            found[name], origin[name] = value, [name]
            continue
        for i in range(len(value)):
            new = name.replace("/encoderblock/", f"/encoderblock_{i}/", 1)
            found[new], origin[new] = value[i], [f"{name}[{i}]"]
    return found, origin


def _renumbered(names: Iterable[str]) -> dict[str, str]:
    """Name -> name with the modules of each class numbered from 0 within their parent."""
    parts = {name: name.split("/") for name in names}
    seen: dict[tuple[str, str], set[int]] = {}
    for split in parts.values():
        for depth, part in enumerate(split):
            if match := _NUMBERED.fullmatch(part):
                seen.setdefault(("/".join(split[:depth]), match[1]), set()).add(int(match[2]))
    ranks = {key: {n: k for k, n in enumerate(sorted(numbers))} for key, numbers in seen.items()}

    def new(split: list[str]) -> str:
        out = []
        for depth, part in enumerate(split):
            if match := _NUMBERED.fullmatch(part):
                part = f"{match[1]}_{ranks['/'.join(split[:depth]), match[1]][int(match[2])]}"
            out.append(part)
        return "/".join(out)

    return {name: new(split) for name, split in parts.items()}
