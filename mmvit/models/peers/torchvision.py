"""torchvision's classifiers: features are the input of the last Linear layer, which is taken away.

torchvision has no folder form; its weights come from its own downloads or from a state dict that the caller
loads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvit.errors import nearest, need
from mmvit.models.config import ForeignImageTowerConfig
from mmvit.models.peers.peer import Peer


def read(source: str, arguments: dict[str, Any], image_size: tuple[int, int] | None, weights: bool) -> Peer:
    """The model of a name, without its last layer; torchvision's best weights are fetched if `weights`."""
    models = need("torchvision").models
    names = models.list_models(module=models)
    if source not in names:
        raise ValueError(f"torchvision has no model '{source}': {nearest(source, names)}")
    entries = models.get_model_weights(source)
    default = entries.DEFAULT.transforms() if len(entries) else None
    size = default.crop_size[0] if default else 224
    numbers: dict[str, Any] = {}
    if default:
        numbers = {"mean": tuple(default.mean), "std": tuple(default.std)}
    config = ForeignImageTowerConfig(
        library="torchvision",
        name=source,
        width=0,
        arguments=dict(arguments),
        image_size=image_size or (size, size),
        **numbers,
    )
    return Peer(
        module=_create(config, "DEFAULT" if weights else None),
        config=config,
        preprocess={
            "resize": "shortest_crop",
            "interpolation": default.interpolation.value if default else "bilinear",
            "crop_fraction": size / default.resize_size[0] if default else 0.875,
        },
    )


def build(config: ForeignImageTowerConfig) -> nn.Module:
    """The model with random weights and without its last layer."""
    return _create(config, None)


def _create(config: ForeignImageTowerConfig, weights: str | None) -> nn.Module:
    arguments = dict(config.arguments)
    if "vit" in config.name.split("_") and weights is None:  # its position table must be told the size
        arguments.setdefault("image_size", config.image_size[0])
    module = need("torchvision").models.get_model(config.name, weights=weights, **arguments)
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"torchvision:{config.name} has no Linear layer whose input could be the features")
    module.set_submodule(linear[-1], nn.Identity())
    return module


def features(module: nn.Module, pixels: Tensor) -> Tensor:
    """(B,D) of normalised pixels (B,3,H,W)."""
    return module(pixels)
