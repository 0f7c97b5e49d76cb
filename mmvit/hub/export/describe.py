"""Our configs as transformers' configs, and our tensors completed by what its classes always have.

What a class cannot leave out gets the value that changes nothing: a bias of zeros, a gain of ones, a position
of zeros for the class token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmvit.errors import need
from mmvit.models.config import ClassifierConfig, CoreConfig, ImageTowerConfig, TextTowerConfig

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
_CONFIGS = {
    "ViT": "ViTConfig",
    "Dinov2WithRegisters": "Dinov2WithRegistersConfig",
    "Dinov2": "Dinov2Config",
}


def peer_config(name: str, config: Any, ids: dict[str, int]) -> Any:
    """The transformers config of a class that `choose_target` named.

    Args:
        name: of the class.
        config: ours.
        ids: of special tokens: eos_token_id, pad_token_id, bos_token_id; towers of pictures need none.

    Raises:
        ValueError: a size that the class cannot be given.
    """
    transformers = need("transformers")
    if name in ("CLIPModel", "SiglipModel"):
        clip = name == "CLIPModel"
        text = _text(config.text) | ids
        more: dict[str, Any] = {"logit_scale_init_value": config.logit_scale_init} if clip else {}
        text |= {} if clip else {"projection_size": config.text.embed_dim}
        more |= {"projection_dim": config.text.embed_dim} if clip else {}
        cls = transformers.CLIPConfig if clip else transformers.SiglipConfig
        made = cls(vision_config=_image(config.image), text_config=text, **more)
    else:
        tower: Any = config.tower if isinstance(config, ClassifierConfig) else config
        family = next(f for f in _CONFIGS if name.startswith(f))
        fields = _image(tower) | {"qkv_bias": tower.core.qkv_bias}
        if family != "ViT":
            fields |= {"layerscale_value": tower.core.layer_scale or 1.0, "mlp_ratio": _ratio(tower.core)}
            del fields["intermediate_size"]
        if family == "Dinov2":
            fields["use_mask_token"] = False
        if family == "Dinov2WithRegisters":
            fields["num_register_tokens"] = tower.registers
        if isinstance(config, ClassifierConfig):
            fields["num_labels"] = config.num_classes
        made = getattr(transformers, _CONFIGS[family])(**fields)
    made.architectures, made.dtype = [name], "float32"
    return made


def complete(name: str, state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Our state dict with the tensors that a class always has, under our names; a classifier's tower bare.

    Args:
        name: of the class.
        state: our state dict.
        config: ours.
    """
    if isinstance(config, ClassifierConfig):
        tower: Any = config.tower
        inner = {n.removeprefix("tower."): v for n, v in state.items() if n.startswith("tower.")}
        return _complete_image(inner, "", tower, scaled="Dinov2" in name)
    if isinstance(config, ImageTowerConfig):
        return _complete_image(state, "", config, scaled="Dinov2" in name)
    state = _complete_image(state, "image.", config.image, biased=True)
    state = _biases(state, "text.", config.text.core)
    if name == "SiglipModel" and "text.head.bias" not in state:
        state["text.head.bias"] = torch.zeros(config.text.embed_dim)
    return state


def _complete_image(
    state: dict[str, Tensor], at: str, config: ImageTowerConfig, *, scaled: bool = False, biased: bool = False
) -> dict[str, Tensor]:
    """`state` with the tensors of an image tower under the prefix `at` completed.

    Args:
        state: ours.
        at: "" or "image.".
        config: of the tower.
        scaled: whether the class always has LayerScale.
        biased: whether its attention always has biases.
    """
    core: Any = config.core
    state, width = dict(state), core.width
    if not config.patch_bias and not core.norm_first:  # CLIP has neither
        state[f"{at}patch_embed.proj.bias"] = torch.zeros(width)
    rows = state[f"{at}pos_embed"]
    if config.class_token and not (config.class_position and config.position == "learned"):
        state[f"{at}pos_embed"] = torch.cat([torch.zeros(1, 1, width), rows], dim=1)
    for i in range(core.depth) if scaled and core.layer_scale is None else ():
        for scale in ("ls1", "ls2"):
            state[f"{at}core.blocks.{i}.{scale}.gamma"] = torch.ones(width)
    return _biases(state, at, core) if biased else state


def _biases(state: dict[str, Tensor], at: str, core: CoreConfig) -> dict[str, Tensor]:
    """`state` with zeros for the biases of q, k, v that a tower does without."""
    if core.qkv_bias:
        return state
    zeros = {f"{at}core.blocks.{i}.attn.qkv.bias": torch.zeros(3 * core.width) for i in range(core.depth)}
    return state | zeros


def _image(config: ImageTowerConfig) -> dict[str, Any]:
    height, width = config.image_size
    size = height if height == width else [height, width]
    return _core(config.core) | {"image_size": size, "patch_size": config.patch_size}


def _text(config: TextTowerConfig) -> dict[str, Any]:
    return _core(config.core) | {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
    }


def _core(core: Any) -> dict[str, Any]:
    return {
        "hidden_size": core.width,
        "num_hidden_layers": core.depth,
        "num_attention_heads": core.num_heads,
        "intermediate_size": core.mlp_dim,
        "layer_norm_eps": core.norm_eps,
        "hidden_act": _ACTIVATIONS[core.activation],
    }


def _ratio(core: CoreConfig) -> int:
    """DINOv2's mlp_ratio.

    Raises:
        ValueError: the hidden width is no multiple of the width.
    """
    if core.mlp_dim % core.width:
        raise ValueError(
            f"core.mlp_dim is {core.mlp_dim}, expected a multiple of width={core.width} for an mlp_ratio"
        )
    return core.mlp_dim // core.width
