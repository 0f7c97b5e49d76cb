"""big_vision's and vision_transformer's `.npz` files (ViT, AugReg, FlexiViT, LiT, SigLIP) -> our models.

Sizes and heads are read from the shapes; what shapes do not say stands in `families.py`. Outputs equal those
of the flax models: tanh GELU, epsilon 1e-6, positions as they were added in training.
Source: big_vision (google-research), vision_transformer (google-research).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.files.npz import read_npz
from mmvit.hub.convert.keymap import Report, translate
from mmvit.hub.convert.npz import names
from mmvit.hub.convert.npz.match import match_preset
from mmvit.hub.convert.npz.tower import read_image, read_text
from mmvit.models.config import ClassifierConfig, DualEncoderConfig
from mmvit.models.overrides import override
from mmvit.models.presets import AnyConfig
from mmvit.models.presets import preset as preset_config


def from_big_vision(
    path: str | Path,
    preset: str | None = None,
    *,
    head: bool = True,
    family: str | None = None,
    **overrides: Any,
) -> nn.Module:
    """A tower, classifier or image-text pair with the weights of a `.npz` file, in eval mode.

    A file with `img/` and `txt/` becomes a pair, one with a classifier's head a `Classifier`, any other a
    tower. `.report` tells what became of each tensor. All files of big_vision and vision_transformer are
    understood: parameters at the top, under `params/` or `opt/target/`, blocks stacked or apart, modules
    numbered class by class or through.

    Args:
        path: the file.
        preset: one of `list_models()` that the file shall be; its sizes are checked and the fields that no
            file tells (`image_size`, `position_resample`) taken from it. None = as the file says.
        head: False leaves a classifier out: the tower alone. A head into the common space of a pair stays.
        family: a name in `FAMILIES` for what no file tells, e.g. "flexivit"; None = by the file's form.
        overrides: fields of our config to change, e.g. `image_size=384`, `depth=11`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such weights, a damaged file, or tensors that do not fit.

    Example:
        >>> tower = from_big_vision("B_16.npz", "vit_base_patch16_224", head=False)  # doctest: +SKIP
    """
    state, skipped = read_npz(Path(path), lambda name: not _is_training_state(name))
    state, root = _strip_root(state)
    size = _wanted_size(preset, overrides)
    if preset is not None and getattr(preset_config(preset), "patch_resample", None):
        family = family or "flexivit"
    try:
        if any(name.startswith("img/") for name in state):
            config, translated, report = _pair(state, family, size, str(path))
        else:
            config, translated, report = _single(state, head, family, size, str(path))
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"'{path}': {error}") from None
    report.loaded = {ours: [root + name for name in theirs] for ours, theirs in report.loaded.items()}
    report.left_out = {root + name: why for name, why in report.left_out.items()}
    report.left_out |= {name: "training state beside the parameters" for name in skipped}
    if preset is not None:
        config = match_preset(config, preset, str(path))
    return assemble(override(config, overrides), translated, report, source=str(path))


def _is_training_state(name: str) -> bool:
    """Whether a name belongs to the optimizer or the loop; old parameters stand in `opt/target/`."""
    beside = name.startswith(("opt/", "extra/")) and not name.startswith("opt/target/")
    return beside or name in ("step", "epoch", "opt", "extra")


def _strip_root(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The parameters without the folder that they all stand in, and that folder."""
    for root in ("params/", "opt/target/"):
        if state and all(name.startswith(root) for name in state):
            return {name.removeprefix(root): value for name, value in state.items()}, root
    return state, ""


def _wanted_size(preset: str | None, overrides: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that the caller names; needed for positions that are no square."""
    size: Any = next((v for k, v in overrides.items() if k.split(".")[-1] == "image_size"), None)
    if size is None and preset is not None:
        wanted = preset_config(preset)
        size = getattr(getattr(wanted, "image", wanted), "image_size", None)
    return (size, size) if isinstance(size, int) else size


_Read = tuple[AnyConfig, dict[str, Tensor], Report]


def _pair(state: dict[str, Tensor], family: str | None, size: tuple[int, int] | None, source: str) -> _Read:
    """Config, tensors and report of a file with two towers."""
    parts: dict[str, dict[str, Tensor]] = {"img/": {}, "txt/": {}, "": {}}
    for name, value in state.items():
        prefix = name[:4] if name[:4] in parts else ""
        parts[prefix][name.removeprefix(prefix)] = value
    image, image_state, report = read_image(parts["img/"], names.HEAD, family, size, source, "img/")
    text, text_state, text_report = read_text(parts["txt/"], source, "txt/")
    scalars, scalar_report = translate(parts[""], names.SCALARS, source=source)
    if "logit_scale" not in scalars:
        raise ValueError("has two towers and no temperature 't'")
    if (head := image_state.get("head.weight")) is not None:
        image = replace(image, embed_dim=head.shape[0], head_bias="head.bias" in image_state)
    translated = {f"image.{name}": value for name, value in image_state.items()}
    translated |= {f"text.{name}": value for name, value in text_state.items()} | scalars
    loaded = {f"image.{ours}": theirs for ours, theirs in report.loaded.items()}
    loaded |= {f"text.{ours}": theirs for ours, theirs in text_report.loaded.items()}
    merged = Report(loaded=loaded | scalar_report.loaded, left_out=report.left_out | text_report.left_out)
    sigmoid = "logit_bias" in scalars
    config = DualEncoderConfig(
        image=image,
        text=text,
        logit_scale_init=math.log(10.0),
        logit_bias_init=-10.0 if sigmoid else None,
        logit_scale_max=None,
        activation="sigmoid" if sigmoid else "softmax",
    )
    return config, translated, merged


def _single(
    state: dict[str, Tensor], head: bool, family: str | None, size: tuple[int, int] | None, source: str
) -> _Read:
    """Config, tensors and report of a file with one tower, and perhaps a classifier on it."""
    if "Embed_0/embedding" in state:
        return read_text(state, source)
    if head and any(name.startswith("pre_logits/") for name in state):
        raise ValueError(
            "has a tanh layer between features and classifier (pre_logits), for which ours has no place: "
            "head=False reads the tower without both"
        )
    if not head or "head/kernel" not in state:
        return read_image(state, names.WITHOUT_HEAD, family, size, source)
    tower, translated, report = read_image(state, names.HEAD, family, size, source)
    of_head = ("head.weight", "head.bias")
    classes = translated["head.weight"].shape[0]
    if "head.bias" not in translated:
        raise ValueError("has a classifier without a bias: head=False reads the tower alone")
    return (
        ClassifierConfig(tower=tower, num_classes=classes),
        {name if name in of_head else f"tower.{name}": value for name, value in translated.items()},
        replace(
            report,
            loaded={n if n in of_head else f"tower.{n}": origin for n, origin in report.loaded.items()},
        ),
    )
