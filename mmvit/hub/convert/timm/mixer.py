"""timm's MlpMixer (mixer_*) -> our tower; its relatives (gMLP, ResMLP, gMixer) compute something else."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvit.errors import need
from mmvit.hub.convert.activations import activation_name
from mmvit.hub.convert.keymap import Line
from mmvit.hub.convert.timm.pixels import pixels_of
from mmvit.models.config import ImageTowerConfig
from mmvit.models.core_config import MixerConfig

MIXER: list[Line] = [
    ("stem.proj.*", "patch_embed.proj.*"),
    ("blocks.*", "core.blocks.*"),
    ("norm.*", "core.norm.*"),
]


def read(model: Any) -> tuple[ImageTowerConfig, list[Line], dict[str, Tensor]]:
    """Our config, the table of names and the tensors of a timm MlpMixer.

    Raises:
        ValueError: a relative with other blocks, a norm in the stem, or without pooling.
    """
    timm = need("timm")
    block = model.blocks[0]
    plain = (
        type(block).__name__ == "MixerBlock"
        and type(block.mlp_tokens) is timm.layers.Mlp
        and type(block.norm1).__name__ in ("LayerNorm", "LayerNormFp32")
        and isinstance(model.stem.norm, nn.Identity)
        and model.global_pool == "avg"
    )
    if not plain:
        raise ValueError(
            f"cannot convert timm's MlpMixer with {type(block).__name__}, {type(block.norm1).__name__} and "
            f"pooling '{model.global_pool}': expected a plain mixer_*; lock it as 'timm:NAME' instead"
        )
    core = MixerConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        tokens=block.mlp_tokens.fc1.in_features,
        token_dim=block.mlp_tokens.fc1.out_features,
        mlp_dim=block.mlp_channels.fc1.out_features,
        norm_eps=block.norm1.eps,
        activation=activation_name(block.mlp_tokens.act),
    )
    config = ImageTowerConfig(
        core=core,
        image_size=tuple(model.stem.img_size),
        patch_size=model.stem.patch_size[0],
        class_token=False,
        class_position=False,
        position="none",
        pool="mean",
        **pixels_of(model),
    )
    return config, MIXER, model.state_dict()
