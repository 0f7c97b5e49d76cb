"""transformers' ViT, DINOv2, BERT, CLIP and SigLIP -> our towers and pairs, outputs equal.

Constants that no state dict holds (epsilon, GELU, normalisation, pooling) come from the peer's config or,
where it is silent, from what its family was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.errors import nearest, need
from mmvit.hub.convert import transformers_tables as tables
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.keymap import Line, strip_prefix, translate
from mmvit.hub.convert.weight_files import read_weights
from mmvit.models.config import CoreConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.overrides import override
from mmvit.models.presets import AnyConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def from_transformers(source: nn.Module | str | Path, **overrides: Any) -> nn.Module:
    """A tower or pair with the weights of a transformers model; `.report` tells what was done.

    Args:
        source: a model, or a folder written by its `save_pretrained` (read without network; safetensors
            only).
        overrides: fields of our config to change: `depth=11`, `norm_last=False`, `image_size=128`,
            `context_length=64`, `pool="mean"`.

    Raises:
        ValueError: a model type without a converter, or tensors that do not fit.
        FileNotFoundError: no such folder, or no safetensors in it.
    """
    transformers = need("transformers")
    name = type(source).__name__ if isinstance(source, nn.Module) else str(source)
    config: Any
    if isinstance(source, nn.Module):
        config, state = source.config, source.state_dict()
    else:
        if not (Path(source) / "config.json").is_file():
            raise FileNotFoundError(f"'{source}' has no config.json: expected a folder saved by transformers")
        config = transformers.AutoConfig.from_pretrained(str(source), local_files_only=True)
        state = read_weights(Path(source))
    if config.model_type not in _FAMILIES:
        raise ValueError(
            f"no converter for transformers' '{config.model_type}': {nearest(config.model_type, _FAMILIES)}"
        )
    describe, table, prefixes = _FAMILIES[config.model_type]
    state = strip_prefix(state, prefixes)
    if config.model_type == "bert":
        state = _add_token_type(state)
    ours = override(describe(config, state), overrides)
    translated, report = translate(state, table, source=name)
    return assemble(ours, translated, report, source=name)


def _core(c: Any, **more: Any) -> CoreConfig:
    if c.hidden_act not in _ACTIVATIONS:
        raise ValueError(f"hidden_act is '{c.hidden_act}', expected one of {', '.join(_ACTIVATIONS)}")
    fields: dict[str, Any] = {
        "width": c.hidden_size,
        "depth": c.num_hidden_layers,
        "num_heads": c.num_attention_heads,
        "mlp_dim": int(c.hidden_size * c.mlp_ratio) if hasattr(c, "mlp_ratio") else c.intermediate_size,
        "norm_eps": c.layer_norm_eps,
        "activation": _ACTIVATIONS[c.hidden_act],
        "qkv_bias": getattr(c, "qkv_bias", True),
    }
    return CoreConfig(**fields | more)


def _image(c: Any, core: CoreConfig, **more: Any) -> ImageTowerConfig:
    size = (c.image_size, c.image_size) if isinstance(c.image_size, int) else tuple(c.image_size)
    fields: dict[str, Any] = {"image_size": size, "patch_size": c.patch_size, "position_resample": "bicubic"}
    return ImageTowerConfig(core=core, **fields | more)


def _vit(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    return _image(c, _core(c))


def _dinov2(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    registers = getattr(c, "num_register_tokens", 0)
    return _image(
        c,
        _core(c, layer_scale=c.layerscale_value),
        registers=registers,
        position_resample="bicubic_antialias" if registers else "bicubic",
        **_IMAGENET,
    )


def _bert(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    if getattr(c, "position_embedding_type", None) not in (None, "absolute") or c.is_decoder:
        raise ValueError("only BERT encoders with absolute positions can be converted")
    core = _core(c, norm="post", norm_first=True, norm_last=False)
    return TextTowerConfig(
        core=core, vocab_size=c.vocab_size, context_length=c.max_position_embeddings, pool="cls"
    )


def _clip(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    head = {"embed_dim": c.projection_dim, "head_bias": False}
    core = _core(c.vision_config, norm_first=True)
    image = _image(c.vision_config, core, patch_bias=False, **_CLIP, **head)
    t = c.text_config
    # The end token sees nothing behind it, so padding needs no mask.
    text = TextTowerConfig(
        core=_core(t, causal=True),
        vocab_size=t.vocab_size,
        context_length=t.max_position_embeddings,
        pad_mask=False,
        **head,
    )
    return DualEncoderConfig(image=image, text=text)


def _siglip(c: Any, state: Mapping[str, Tensor]) -> AnyConfig:
    image = _image(c.vision_config, _core(c.vision_config), class_token=False, pool="map")
    t = c.text_config
    text = TextTowerConfig(
        core=_core(t),
        vocab_size=t.vocab_size,
        context_length=t.max_position_embeddings,
        pool="last",
        pad_mask=False,
        embed_dim=t.projection_size,
    )
    return DualEncoderConfig(
        image=image, text=text, logit_bias_init=-10.0, logit_scale_max=None, activation="sigmoid"
    )


def _add_token_type(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors with token type 0 added to the positions, in float32."""
    types, positions = "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"
    if types not in state or positions not in state:
        raise ValueError(f"BERT weights lack '{types if types not in state else positions}'")
    return {**state, positions: state[positions].float() + state[types][0].float()}


_Family = tuple[Callable[[Any, Mapping[str, Tensor]], AnyConfig], list[Line], tuple[str, ...]]
_FAMILIES: dict[str, _Family] = {
    "vit": (_vit, tables.VIT, ("vit.",)),
    "dinov2": (_dinov2, tables.DINOV2, ("dinov2.",)),
    "dinov2_with_registers": (_dinov2, tables.DINOV2, ("dinov2_with_registers.",)),
    "bert": (_bert, tables.BERT, ("bert.",)),
    "clip": (_clip, tables.CLIP, ()),
    "siglip": (_siglip, tables.SIGLIP, ()),
}
