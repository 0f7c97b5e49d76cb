"""open_clip's image towers: features are the tower's output after its projection.

That is what `encode_image` returns before normalisation, so a tower taken from a trained pair keeps that
pair's space. Folders are those of `open_clip.push_to_hf_hub.save_for_hf` (open_clip_config.json and the
weights).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmvit.errors import nearest, need
from mmvit.models.config import ForeignImageTowerConfig
from mmvit.models.peers.peer import Peer, folder_of, read_json

_RESIZE = {"shortest": "shortest_crop", "longest": "pad", "squash": "squash"}


def read(source: str, arguments: dict[str, Any], image_size: tuple[int, int] | None, weights: bool) -> Peer:
    """The image tower of "name", "name/tag" or a folder; a name without a tag has random weights.

    Raises:
        ValueError: an unknown name, or weights asked for without a tag.
    """
    open_clip = need("open_clip")
    folder = folder_of(source)
    name, _, tag = source.partition("/")
    preprocess: dict[str, Any] = {}
    if folder is not None:
        saved = read_json(folder, "open_clip_config.json", "open_clip")
        name, model, preprocess = folder.name, saved["model_cfg"], saved.get("preprocess_cfg", {})
        pair = open_clip.create_model(
            f"local-dir:{folder}", require_pretrained=True, force_image_size=image_size
        )
    else:
        model = open_clip.get_model_config(name)
        if model is None:
            raise ValueError(f"open_clip has no model '{name}': {nearest(name, open_clip.list_models())}")
        if weights and not tag:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
            raise ValueError(
                f"open_clip:{name} has several sets of weights, name one as '{name}/TAG': {tags}"
            )
        pair = None
        if tag:
            pair = open_clip.create_model(name, pretrained=tag, force_image_size=image_size)
            preprocess = pair.visual.preprocess_cfg
    size = image_size or model["vision_cfg"].get("image_size", 224)
    config = ForeignImageTowerConfig(
        library="open_clip",
        name=name,
        width=0,
        arguments={k: model[k] for k in ("embed_dim", "vision_cfg", "quick_gelu") if k in model} | arguments,
        image_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=tuple(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
    )
    return Peer(
        module=build(config) if pair is None else pair.visual,
        config=config,
        preprocess={
            "resize": _RESIZE[preprocess.get("resize_mode") or "shortest"],
            "interpolation": preprocess.get("interpolation") or "bicubic",
            "crop_fraction": 1.0,
        },
    )


def build(config: ForeignImageTowerConfig) -> nn.Module:
    """The image tower with random weights."""
    open_clip = need("open_clip")
    vision = config.arguments["vision_cfg"] | {
        "image_size": config.image_size,
        "timm_model_pretrained": False,
    }
    # open_clip builds pairs: the smallest possible text tower is built beside this one and dropped.
    text = {"context_length": 1, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    pair = open_clip.CustomTextCLIP(
        embed_dim=config.arguments["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**vision),
        text_cfg=open_clip.CLIPTextCfg(**text),
        quick_gelu=config.arguments.get("quick_gelu", False),
    )
    return pair.visual


def features(module: nn.Module, pixels: Tensor) -> Tensor:
    """(B,D) of normalised pixels (B,3,H,W)."""
    out = module(pixels)
    return out[0] if isinstance(out, tuple) else out
