"""timm's image models: features are forward_features followed by forward_head(pre_logits=True).

That is the representation which timm's own classifier reads: pooled, with any norm behind the pooling, no
logits. Tokens are what forward_features gives. Folders are those of `timm.models.save_for_hf` (config.json
with `architecture`, and the weights).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvit.errors import nearest, need
from mmvit.models.config import ForeignImageTowerConfig
from mmvit.models.peers.peer import Peer, folder_of, read_json


def read(source: str, arguments: dict[str, Any], image_size: tuple[int, int] | None, weights: bool) -> Peer:
    """The model of a name or folder with its preprocessing; for a name, weights are fetched if `weights`."""
    timm = need("timm")
    folder = folder_of(source)
    if folder is not None:
        saved = read_json(folder, "config.json", "timm")
        name, cfg = saved["architecture"], saved.get("pretrained_cfg", {})
        arguments = saved.get("model_args", {}) | arguments
        made_from = f"local-dir:{folder}"
    else:
        if not timm.is_model(source):
            raise ValueError(
                f"timm has no model '{source}': {nearest(source.split('.')[0], timm.list_models())}"
            )
        name, cfg, made_from = source, timm.get_pretrained_cfg(source).to_dict(), source
    data = timm.data.resolve_data_config(pretrained_cfg=cfg)
    config = ForeignImageTowerConfig(
        library="timm",
        name=name,
        width=0,
        arguments={"num_classes": 0} | arguments,
        image_size=image_size or tuple(data["input_size"][1:]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )
    return Peer(
        module=_create(made_from, config, pretrained=weights or folder is not None),
        config=config,
        preprocess={
            "resize": {"squash": "squash", "border": "pad"}.get(data["crop_mode"], "shortest_crop"),
            "interpolation": data["interpolation"],
            "crop_fraction": data["crop_pct"],
        },
    )


def describe(module: Any) -> Peer:
    """A timm module that exists already, with what its `pretrained_cfg` says."""
    data = need("timm").data.resolve_model_data_config(module)
    return Peer(
        module=module,
        config=ForeignImageTowerConfig(
            library="timm",
            name=module.pretrained_cfg["architecture"],
            width=0,
            arguments={"num_classes": module.num_classes},
            image_size=tuple(data["input_size"][1:]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
        ),
    )


def build(config: ForeignImageTowerConfig) -> nn.Module:
    """The model with random weights."""
    return _create(config.name, config, pretrained=False)


def _create(name: str, config: ForeignImageTowerConfig, pretrained: bool) -> nn.Module:
    timm = need("timm")
    try:  # models with a position table must be told the size; the others refuse the argument
        return timm.create_model(
            name, pretrained=pretrained, **{"img_size": config.image_size} | config.arguments
        )
    except TypeError:
        return timm.create_model(name, pretrained=pretrained, **config.arguments)


def features(module: Any, pixels: Tensor) -> Tensor:
    """(B,D) of normalised pixels (B,3,H,W)."""
    return module.forward_head(module.forward_features(pixels), pre_logits=True)


def tokens(module: Any, pixels: Tensor) -> Tensor:
    """(B,h,w,D), the last feature map, of normalised pixels (B,3,H,W).

    Raises:
        ValueError: a model whose forward_features gives neither a map nor tokens on a known grid.
    """
    out = module.forward_features(pixels)
    if isinstance(out, Tensor) and out.ndim == 4:
        return out if getattr(module, "output_fmt", "NCHW") == "NHWC" else out.permute(0, 2, 3, 1)
    prefix = getattr(module, "num_prefix_tokens", None)
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if isinstance(out, Tensor) and out.ndim == 3 and prefix is not None and patch is not None:
        h, w = (side // p for side, p in zip(pixels.shape[-2:], patch, strict=True))
        if out.shape[1] == prefix + h * w:
            return out[:, prefix:].unflatten(1, (h, w))
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    raise ValueError(
        f"timm's {type(module).__name__} gives {shape} before its pooling, expected a map (B,D,h,w) "
        "or tokens on a grid: take another model"
    )
