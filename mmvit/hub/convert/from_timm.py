"""timm's models -> ours: same features, same logits. Each family is read by a file of its own."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from mmvit.errors import need
from mmvit.hub.convert.assemble import assemble
from mmvit.hub.convert.heads import with_head
from mmvit.hub.convert.keymap import translate
from mmvit.models.overrides import override

# timm's class -> the file in `timm/` whose `read(model)` gives (our config, table of names, tensors).
_FAMILIES = {
    "VisionTransformer": "vit",
    "VisionTransformerDistilled": "vit",
    "Beit": "beit",
    "Cait": "cait",
    "MlpMixer": "mixer",
    "MultiScaleVit": "mvit",
    "ConvNeXt": "convnext",
}
_HEADS = {"head": "head", "head_dist": "head_dist"}


def from_timm(
    source: nn.Module | str, *, weights: bool = True, head: bool = True, **overrides: Any
) -> nn.Module:
    """A classifier with timm's logits, or a tower with its features; `.report` tells what was done.

    Features are those of forward_head(pre_logits=True).

    Args:
        source: a model, or its name (its published weights are fetched unless `weights` is False).
        weights: for a name only.
        head: False leaves a classifier out: the tower alone.
        overrides: fields of our config to change, e.g. `image_size=128`, `depth=11`, `embed_dim=None`.

    Raises:
        ValueError: a family without a converter, or tensors that have no place in ours.
    """
    timm = need("timm")
    model: Any = timm.create_model(source, pretrained=weights) if isinstance(source, str) else source
    family = type(model).__name__
    if family not in _FAMILIES:
        raise ValueError(
            f"cannot convert timm's {family}: expected one of {', '.join(_FAMILIES)}; "
            "lock it as 'timm:NAME' instead"
        )
    name = f"timm {family}"
    config, table, state = importlib.import_module(f"mmvit.hub.convert.timm.{_FAMILIES[family]}").read(model)
    config, table = with_head(config, table, _HEADS, model.num_classes if head else 0)
    translated, report = translate(state, table, source=name)
    return assemble(override(config, overrides), translated, report, source=name)
