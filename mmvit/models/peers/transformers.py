"""transformers' vision models: features are image_embeds, else pooler_output, else the class token.

A BERT-style pooler (Linear and tanh on the class token, as ViTModel has) is left out: it belongs to no vision
checkpoint, so it would be random; the class token after the final norm takes its place.
Of a pair (CLIPModel, SiglipModel, ...) the image side is taken. Folders are those of `save_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.errors import nearest, need
from mmvit.models.config import ForeignImageTowerConfig
from mmvit.models.normalisation import CLIP, HALF
from mmvit.models.peers.peer import Peer, folder_of

# Used only where no preprocessor_config.json lies beside the weights; every other family has ImageNet's
# numbers.
_NORMALISATION = {"clip_vision_model": CLIP, "siglip_vision_model": HALF, "vit": HALF, "beit": HALF}
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def read(source: str, arguments: dict[str, Any], image_size: tuple[int, int] | None, weights: bool) -> Peer:
    """The image model of a class name (random weights), a folder, or (if `weights`) a name on the hub.

    Raises:
        ValueError: an unknown class, or weights that do not fill the model.
    """
    transformers = need("transformers")
    folder = folder_of(source)
    if folder is None and not weights:
        cls = getattr(transformers, source, None)
        if cls is None or not hasattr(cls, "config_class"):
            names = [n for n in dir(transformers) if n.endswith("Model")]
            raise ValueError(f"transformers has no model class '{source}': {nearest(source, names)}")
        return describe(cls(cls.config_class(**arguments)), image_size)
    where = str(folder) if folder is not None else source
    if folder is not None and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"'{folder}' has no config.json: expected a folder saved by transformers")
    with quiet(transformers):
        whole, found = transformers.AutoModel.from_pretrained(
            where,
            output_loading_info=True,
            local_files_only=folder is not None,
            use_safetensors=True,
            **arguments,
        )
    missing = [name for name in found["missing_keys"] if not name.startswith("pooler.dense")]
    if missing or found["mismatched_keys"]:
        raise ValueError(f"{where}: the weights do not fill {type(whole).__name__}: {missing[:8]}")
    return describe(_image_side(whole), image_size, folder)


def describe(module: Any, image_size: tuple[int, int] | None = None, folder: Path | None = None) -> Peer:
    """A transformers image model that exists already; normalisation from the folder, else by family."""
    _drop_pooler(module)
    arguments = json.loads(module.config.to_json_string(use_diff=True))
    saved = {}
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        saved = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    own = _NORMALISATION.get(module.config.model_type, {})
    size, preprocess = _preprocess(saved, getattr(module.config, "image_size", 224))
    given = {"mean": saved.get("image_mean"), "std": saved.get("image_std")}
    numbers: dict[str, Any] = own | {k: tuple(v) for k, v in given.items() if v is not None}
    config = ForeignImageTowerConfig(
        library="transformers",
        name=type(module).__name__,
        width=0,
        arguments=arguments,
        image_size=image_size or size,
        **numbers,
    )
    return Peer(module=module, config=config, preprocess=preprocess)


def build(config: ForeignImageTowerConfig) -> nn.Module:
    """The model with random weights."""
    cls = getattr(need("transformers"), config.name)
    module = cls(cls.config_class(**config.arguments))
    _drop_pooler(module)
    return module


def features(module: Any, pixels: Tensor) -> Tensor:
    """(B,D) of normalised pixels (B,3,H,W)."""
    more = {}
    if getattr(module.config, "image_size", None) not in (None, pixels.shape[-1]) and _interpolates(module):
        more["interpolate_pos_encoding"] = True
    out = module(pixel_values=pixels, **more)
    for name in ("image_embeds", "pooler_output"):
        if getattr(out, name, None) is not None:
            return getattr(out, name).flatten(1)
    return out.last_hidden_state[:, 0]


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Without progress bars and tables of names: what they tell is checked by the caller."""
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _interpolates(module: Any) -> bool:
    return "interpolate_pos_encoding" in module.forward.__code__.co_varnames


def _drop_pooler(module: Any) -> None:
    if hasattr(getattr(module, "pooler", None), "dense"):
        module.pooler = None


def _image_side(whole: Any) -> Any:
    """The image model of a pair, with its projection where the pair has one; `whole` itself otherwise."""
    if not hasattr(whole, "vision_model"):
        return whole
    if not hasattr(whole, "visual_projection"):
        return whole.vision_model
    cls = need("transformers").CLIPVisionModelWithProjection
    whole.config.vision_config.projection_dim = whole.config.projection_dim
    side = cls(whole.config.vision_config)
    state = {
        n: v for n, v in whole.state_dict().items() if n.startswith(("vision_model.", "visual_projection."))
    }
    side.load_state_dict(state)
    return side


def _preprocess(saved: dict[str, Any], side: Any) -> tuple[tuple[int, int], dict[str, Any]]:
    """((height, width), resize rule) that a preprocessor_config.json states."""
    size, crop = saved.get("size", side), saved.get("crop_size") if saved.get("do_center_crop") else None
    if isinstance(size, dict):
        shortest = size.get("shortest_edge")
        size = (shortest, shortest) if shortest else (size.get("height", 224), size.get("width", 224))
    elif isinstance(size, int):
        size = (size, size)
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    final = (crop["height"], crop["width"]) if crop else (size[0], size[1])
    return final, {
        "resize": "shortest_crop" if crop else "squash",
        "interpolation": _RESAMPLE.get(saved.get("resample", 3), "bicubic"),
        "crop_fraction": min(1.0, final[0] / size[0]),
    }
