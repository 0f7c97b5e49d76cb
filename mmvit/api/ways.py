"""How each modality goes through a model: what prepares it, which tower it takes, in which spaces it arrives.

Place in the path: between a saved model of any kind and `Embedder`, which knows modalities only by these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmvit.hub.plain import kind_of

ONLY = ""  # the name of the space of a model that has one alone


@dataclass(frozen=True)
class Way:
    """One modality's way through a model.

    Attributes:
        tower: the tower that sees it, or for texts reads it.
        prepare: an input -> what the tower takes; None for texts.
        spaces: the names of the spaces in which it arrives, the default one first.
        finish: what the tower gives, (B,D) -> space -> (B,E), not normalised.
        still: a batch of pictures -> clips, where the tower sees clips.
    """

    tower: Any
    prepare: Any
    spaces: tuple[str, ...] = (ONLY,)
    finish: Callable[[Tensor], dict[str, Tensor]] = lambda z: {ONLY: z}
    still: Callable[[Tensor], Tensor] | None = None


def ways_of(kind: str, model: Any, preprocess: Any) -> dict[str, Way]:
    """Modality -> its way, in the order of the model's config; empty for a model that does not embed.

    Args:
        kind: the name in `hub.plain.KINDS` under which the model is saved.
        model: of that kind.
        preprocess: what is saved beside it, None where nothing is.
    """
    if kind == "vatt":
        return _common_spaces(model, preprocess)
    if kind == "detector":
        return {"text": Way(model.text, None)}
    if kind == "dual_encoder":
        first = modality_of(model.config.image)
        return {first: Way(model.image, part(preprocess, first)), "text": Way(model.text, None)}
    if kind.endswith("_tower"):
        name = modality_of(model.config)
        way = Way(model, part(preprocess, name))
        return {} if name != "text" and way.prepare is None else {name: way}
    return {}


def modality_of(config: Any) -> str:
    """What a tower with this config sees: image, video, audio or text."""
    return kind_of(config).removesuffix("_tower")


def part(preprocess: Any, modality: str) -> Any:
    """The modality's own part of what may prepare several, None where it has none."""
    if preprocess is not None and hasattr(preprocess, "video") and hasattr(preprocess, "audio"):
        return None if preprocess.video is None and modality == "image" else getattr(preprocess, modality)
    return preprocess


def _common_spaces(model: Any, preprocess: Any) -> dict[str, Way]:
    """The ways of a `Vatt`: all arrive in "vt", and video, pictures and audio in the finer "va" as well."""
    spaces, both = model.spaces, ("vt", "va")
    ways = {
        "video": Way(model.video, part(preprocess, "video"), both, spaces.video),
        "image": Way(model.video, part(preprocess, "image"), both, spaces.video, model.still),
        "audio": Way(model.audio, part(preprocess, "audio"), both, spaces.audio),
        "text": Way(model.text, None, ("vt",), spaces.text),
    }
    return {name: way for name, way in ways.items() if name == "text" or way.prepare is not None}
