"""open_clip's pairs (CLIP, SigLIP) -> our pairs: same embeddings, same temperature.

Image side: open_clip's own VisionTransformer, or a timm trunk with an optional linear projection. Text side:
open_clip's own transformer, causal and read at the end token (CLIP) or bidirectional and read last (SigLIP).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.errors import need
from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.from_timm import TIMM, timm_config
from mmvit.hub.convert.keymap import Line, blocks, row, scalar, token, translate, transpose
from mmvit.models.config import CoreConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.overrides import override

_BLOCK: list[Line] = [
    ("ln_1.*", "norm1.*"),
    ("ln_2.*", "norm2.*"),
    ("attn.in_proj_weight", "attn.qkv.weight"),
    ("attn.in_proj_bias", "attn.qkv.bias"),
    ("attn.out_proj.*", "attn.proj.*"),
    ("mlp.c_fc.*", "mlp.fc1.*"),
    ("mlp.c_proj.*", "mlp.fc2.*"),
    ("ls_1.gamma", "ls1.gamma"),
    ("ls_2.gamma", "ls2.gamma"),
]
_BLOCKS = blocks("transformer.resblocks.{i}.", "core.blocks.{i}.", _BLOCK)
_VISION: list[Line] = [
    ("class_embedding", "cls_token", token),
    ("positional_embedding", "pos_embed", row),
    ("conv1.weight", "patch_embed.proj.weight"),
    ("ln_pre.*", "core.norm_pre.*"),
    ("ln_post.*", "core.norm.*"),
    ("proj", "head.weight", transpose),
    *_BLOCKS,
]
_TEXT: list[Line] = [
    ("token_embedding.weight", "tok_embed.weight"),
    ("positional_embedding", "pos_embed", row),
    ("ln_final.*", "core.norm.*"),
    ("text_projection", "head.weight", transpose),
    ("text_projection.*", "head.*"),
    *_BLOCKS,
]
_TRUNK: list[Line] = [*blocks("trunk.", "", TIMM), ("head.proj.*", "head.*")]
_SCALARS: list[Line] = [("logit_scale", "logit_scale", scalar), ("logit_bias", "logit_bias", scalar)]


def from_open_clip(source: nn.Module | str | Path, tag: str | None = None, **overrides: Any) -> nn.Module:
    """A pair with the weights of an open_clip model; `.report` tells what was done.

    Args:
        source: a model, a name (with `tag`, its published weights are fetched), or a folder written for a hub
            (open_clip_config.json and weights; read without network).
        tag: of the published weights.
        overrides: fields of our config to change, e.g. `image_size=128`, `context_length=32`.

    Raises:
        ValueError: a variant without a converter, or tensors that do not fit.
    """
    open_clip = need("open_clip")
    if not isinstance(source, nn.Module):
        if Path(source).is_dir():
            source = open_clip.create_model(f"local-dir:{source}", require_pretrained=True)
        elif tag is None:
            raise ValueError(f"open_clip has several sets of weights for '{source}': name one as tag=...")
        else:
            source = open_clip.create_model(str(source), pretrained=tag)
    name = f"open_clip {type(source).__name__}"
    model: Any = source
    text = getattr(model, "text", model)
    if not hasattr(text, "token_embedding"):
        raise ValueError(f"cannot convert {name}: its text side is a {type(text).__name__}")
    trunk = hasattr(model.visual, "trunk")
    bias = getattr(model, "logit_bias", None)
    config = DualEncoderConfig(
        image=_timm_image(model.visual) if trunk else _image(model.visual),
        text=_text(model, text),
        logit_bias_init=None if bias is None else -10.0,
        logit_scale_max=math.log(100) if bias is None else None,
        activation="softmax" if bias is None else "sigmoid",
    )
    state: dict[str, Tensor] = model.state_dict()
    table = [
        *blocks("visual.", "image.", _TRUNK if trunk else _VISION),
        *blocks("text." if text is not model else "", "text.", _TEXT),
        *_SCALARS,
    ]
    translated, report = translate(state, table, source=name)
    return assemble(override(config, overrides), translated, report, source=name)


def _timm_image(visual: Any) -> ImageTowerConfig:
    linear = dict(visual.head.named_children()).get("proj", nn.Identity())
    if not isinstance(linear, nn.Linear | nn.Identity):
        raise ValueError(f"cannot convert a {type(linear).__name__} behind the image trunk")
    head = {
        "embed_dim": getattr(linear, "out_features", None),
        "head_bias": getattr(linear, "bias", None) is not None,
    }
    return override(timm_config(visual.trunk), head | _normalisation(visual))


def _core(transformer: Any, **fields: Any) -> CoreConfig:
    block = transformer.resblocks[0]
    return CoreConfig(
        width=transformer.width,
        depth=len(transformer.resblocks),
        num_heads=block.attn.num_heads,
        mlp_dim=block.mlp.c_fc.out_features,
        norm_eps=block.ln_1.eps,
        activation=activation_name(block.mlp.gelu),
        layer_scale=1.0 if hasattr(block.ls_1, "gamma") else None,
        **fields,
    )


def _image(visual: Any) -> ImageTowerConfig:
    if not hasattr(visual, "class_embedding") or visual.attn_pool is not None or visual.pool_type != "tok":
        pool = getattr(visual, "pool_type", "-")
        raise ValueError(
            f"cannot convert a {type(visual).__name__} image side with pooling '{pool}': "
            "expected a VisionTransformer read at its class token; lock it as 'open_clip:NAME' instead"
        )
    return ImageTowerConfig(
        core=_core(visual.transformer, norm_first=isinstance(visual.ln_pre, nn.LayerNorm)),
        image_size=visual.image_size,
        patch_size=visual.patch_size[0],
        patch_bias=False,
        embed_dim=None if visual.proj is None else visual.proj.shape[1],
        head_bias=False,
        **_normalisation(visual),
    )


def _normalisation(visual: Any) -> dict[str, Any]:
    """What pixels the pair was trained on, which open_clip notes on the tower; OpenAI's numbers otherwise."""
    open_clip = need("open_clip")
    return {
        "mean": tuple(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN),
        "std": tuple(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD),
    }


def _text(model: Any, text: Any) -> TextTowerConfig:
    pool = getattr(text, "pool_type", None) or model.text_pool_type
    pools = {"argmax": "eos", "eos": "eos", "last": "last", "first": "cls"}
    if pool not in pools or getattr(text, "cls_emb", None) is not None:
        raise ValueError(f"cannot convert a text side with pooling '{pool}'")
    projection = text.text_projection
    linear = isinstance(projection, nn.Linear)
    causal = text.attn_mask is not None
    return TextTowerConfig(
        core=_core(text.transformer, causal=causal),
        vocab_size=text.token_embedding.num_embeddings,
        context_length=text.context_length,
        pool=pools[pool],  # type: ignore[arg-type]
        # A causal end token sees no padding; SigLIP's text attends its padding as it was trained.
        pad_mask=bool(getattr(text, "use_pad_mask", False)),
        embed_dim=None if projection is None else projection.out_features if linear else projection.shape[1],
        head_bias=linear and projection.bias is not None,
    )
