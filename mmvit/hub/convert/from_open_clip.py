"""open_clip's pairs (CLIP, SigLIP, CoCa) -> our pairs: same embeddings, same temperature.

Image side: open_clip's own VisionTransformer, or a timm trunk with an optional linear projection. Text side:
open_clip's own transformer, causal and read at the end token (CLIP), bidirectional and read last (SigLIP), or
causal with a class token at the end (CoCa, whose decoder of captions is left out).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.errors import need
from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.heads import NO_HEAD
from mmvit.hub.convert.keymap import (
    LEFT_OUT,
    Line,
    blocks,
    first_third,
    last_thirds,
    row,
    scalar,
    token,
    translate,
    transpose,
)
from mmvit.hub.convert.timm.vit import VIT, timm_config
from mmvit.models.config import (
    DualEncoderConfig,
    ImageTowerConfig,
    QueryPoolConfig,
    TextTowerConfig,
)
from mmvit.models.core_config import CoreConfig
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
    ("proj", "head.weight", transpose),
    *_BLOCKS,
]
_TOKEN_POOL: list[Line] = [("ln_post.*", "core.norm.*")]
_MEAN_POOL: list[Line] = [("ln_post.*", "pool.norm.*")]
_QUERY_POOL: list[Line] = [
    *_MEAN_POOL,
    ("attn_pool.query", "pool.query"),
    ("attn_pool.ln_q.*", "pool.norm_q.*"),
    ("attn_pool.ln_k.*", "pool.norm_k.*"),
    ("attn_pool.attn.out_proj.*", "pool.proj.*"),
    # Queries and tokens of one width share a matrix, of different widths they have one each.
    ("attn_pool.attn.in_proj_weight", "pool.q.weight", first_third),
    ("attn_pool.attn.in_proj_weight", "pool.kv.weight", last_thirds),
    ("attn_pool.attn.q_proj_weight", "pool.q.weight"),
    ("attn_pool.attn.k_proj_weight", "pool.kv.weight#0"),
    ("attn_pool.attn.v_proj_weight", "pool.kv.weight#1"),
    ("attn_pool.attn.in_proj_bias", "pool.q.bias", first_third),
    ("attn_pool.attn.in_proj_bias", "pool.kv.bias", last_thirds),
]
_TEXT: list[Line] = [
    ("token_embedding.weight", "tok_embed.weight"),
    ("cls_emb", "cls_token", token),
    ("positional_embedding", "pos_embed", row),
    ("ln_final.*", "core.norm.*"),
    ("text_projection", "head.weight", transpose),
    ("text_projection.*", "head.*"),
    *_BLOCKS,
]
_TRUNK: list[Line] = [*blocks("trunk.", "", [*VIT, ("head.*", NO_HEAD)]), ("head.proj.*", "head.*")]
_SCALARS: list[Line] = [("logit_scale", "logit_scale", scalar), ("logit_bias", "logit_bias", scalar)]
_DECODER: list[Line] = [("text_decoder.*", LEFT_OUT + "the decoder of captions; the pair is contrastive")]


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
    image = _timm_image(model.visual) if trunk else _image(model.visual)
    config = DualEncoderConfig(
        image=image,
        text=_text(model, text),
        logit_bias_init=None if bias is None else -10.0,
        logit_scale_max=math.log(100) if bias is None else None,
        activation="softmax" if bias is None else "sigmoid",
    )
    state: dict[str, Tensor] = model.state_dict()
    pooled = {"queries": _QUERY_POOL, "mean_norm": _MEAN_POOL}.get(image.pool, _TOKEN_POOL)
    table = [
        *blocks("visual.", "image.", _TRUNK if trunk else [*_VISION, *pooled]),
        *blocks("text." if text is not model else "", "text.", _TEXT),
        *_SCALARS,
        *(_DECODER if hasattr(model, "text_decoder") else ()),
    ]
    translated, report = translate(state, table, source=name)
    return assemble(override(config, overrides), translated, report, source=name)


def _timm_image(visual: Any) -> ImageTowerConfig:
    trunk = type(visual.trunk).__name__
    # ViTamin's trunk is a VisionTransformer as well, with gated MLPs behind a stem of convolutions.
    if trunk != "VisionTransformer" or not hasattr(visual.trunk.blocks[0].mlp, "fc1"):
        raise ValueError(
            f"cannot convert a timm {trunk} image side: expected a plain VisionTransformer; lock it as "
            "'open_clip:NAME' instead"
        )
    linear = dict(visual.head.named_children()).get("proj", nn.Identity())
    if not isinstance(linear, nn.Linear | nn.Identity):
        raise ValueError(f"cannot convert a {type(linear).__name__} behind the image trunk")
    fields: dict[str, Any] = {"embed_dim": None}
    if isinstance(linear, nn.Linear):
        fields = {"embed_dim": linear.out_features, "head_bias": linear.bias is not None}
    # timm knows what its own trunk was trained on, open_clip may know better.
    if getattr(visual, "image_mean", None):
        fields |= _normalisation(visual)
    return override(timm_config(visual.trunk), fields)


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
    pooler, pool = getattr(visual, "attn_pool", None), getattr(visual, "pool_type", "-")
    second = getattr(visual, "attn_pool_contrastive", None) is not None
    if not hasattr(visual, "class_embedding") or pool not in ("tok", "avg") or second:
        raise ValueError(
            f"cannot convert a {type(visual).__name__} image side with pooling '{pool}': expected a "
            "VisionTransformer read at its class token or on average; lock it as 'open_clip:NAME' instead"
        )
    fields: dict[str, Any] = {}
    if pooler is not None:
        count, width = pooler.query.shape
        queries = QueryPoolConfig(count=count, width=width, num_heads=pooler.attn.num_heads)
        fields = {"pool": "queries", "queries": queries}
    elif pool == "avg":
        fields = {"pool": "mean_norm" if visual.final_ln_after_pool else "mean"}
    return ImageTowerConfig(
        core=_core(
            visual.transformer,
            norm_first=isinstance(visual.ln_pre, nn.LayerNorm),
            norm_last=fields.get("pool") not in ("queries", "mean_norm"),
        ),
        image_size=visual.image_size,
        patch_size=visual.patch_size[0],
        patch_bias=False,
        embed_dim=None if visual.proj is None else visual.proj.shape[1],
        head_bias=False,
        **fields,
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
    if pool not in pools:
        raise ValueError(f"cannot convert a text side with pooling '{pool}'")
    late = getattr(text, "cls_emb", None) is not None
    projection = text.text_projection
    linear = isinstance(projection, nn.Linear)
    causal = text.attn_mask is not None
    return TextTowerConfig(
        core=_core(text.transformer, causal=causal),
        vocab_size=text.token_embedding.num_embeddings,
        context_length=text.context_length,
        pool="last" if late else pools[pool],  # type: ignore[arg-type]
        # A causal end token sees no padding; SigLIP's text attends its padding as it was trained.
        pad_mask=late or bool(getattr(text, "use_pad_mask", False)),
        class_last="none" if not late else "masked" if text.correct_cls_mask else "shifted",
        embed_dim=None if projection is None else projection.out_features if linear else projection.shape[1],
        head_bias=projection is None or (linear and projection.bias is not None),
    )
