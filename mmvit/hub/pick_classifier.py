"""What recipes/classify.py takes as --model.tower: a tower of the modality, under a head for the classes.

Place in the path: between a saved folder or a preset and the classifier that is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.errors import UserError
from mmvit.hub.folder import Loaded, load
from mmvit.hub.parts import check_fed
from mmvit.hub.pick import is_preset, option_values
from mmvit.hub.preprocess import preprocess_of
from mmvit.hub.towers import tower_in
from mmvit.models.classifier import Classifier
from mmvit.models.config import (
    AudioTowerConfig,
    ClassifierConfig,
    ImageTowerConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
)
from mmvit.models.presets import create_model
from mmvit.models.tower import GridTower
from mmvit.models.towers import bare

Modality = Literal["image", "video", "audio"]
Preprocess = ImagePreprocess | ClipPreprocess
_CONFIGS: dict[str, tuple[type, ...]] = {
    "image": (ImageTowerConfig, VideoTowerConfig),
    "video": (VideoTowerConfig,),
    "audio": (AudioTowerConfig, WaveformTowerConfig),
}


def pick_classifier(
    spec: str,
    modality: Modality,
    classes: Sequence[str],
    *,
    bias_init: float = 0.0,
    options: Sequence[str] = (),
    **changes: Any,
) -> tuple[Classifier, Preprocess, bool]:
    """(classifier, preprocessing, whether the tower is pretrained); the head is new unless the classes agree.

    Args:
        spec: a folder with a tower, a pair, a VATT model or a classifier, or a preset's name.
        modality: which of its towers; pictures may go to a video tower, as still clips.
        classes: names, in the order of the logits.
        bias_init: of a new head.
        options: NAME=VALUE changes of a preset.
        **changes: of how the tower is fed, 0 = as it was: size (side in pixels), frames, fps, seconds and
            sample_rate of sounds.

    Raises:
        UserError: neither a folder nor a preset, no tower of that modality in it, or sizes it cannot take.
    """
    try:
        if is_preset(spec):
            found, saved, pretrained = create_model(spec, **option_values(options)), None, False
        else:
            saved = load(spec)
            found, pretrained = saved.model, True
        model = _classifier(found, saved, modality, classes, bias_init, spec)
        preprocess = _fed(model, saved, changes)
        check_fed(model.config.tower, preprocess)
    except (ValueError, OSError) as error:
        raise UserError(f"tower {spec}: {error}") from None
    return model, preprocess, pretrained


def _classifier(
    found: Any, saved: Loaded | None, modality: Modality, classes: Sequence[str], bias: float, spec: str
) -> Classifier:
    """The tower of the modality under a head."""
    if isinstance(found, Classifier):
        card = (saved.config.get("card") or {}) if saved is not None else {}
        if isinstance(found.config.tower, _CONFIGS[modality]) and card.get("classes") == list(classes):
            return found
    found = tower_in(found, modality)
    config = getattr(found, "config", None)
    if not isinstance(found, GridTower) or not isinstance(config, _CONFIGS[modality]):
        raise ValueError(f"'{spec}' has no {modality} tower of ours that a classifier could stand on")
    tower = bare(found)
    described = ClassifierConfig(tower=tower.config, num_classes=len(classes), bias_init=bias)
    return Classifier(described, tower)


def _fed(model: Classifier, saved: Loaded | None, changes: dict[str, Any]) -> Preprocess:
    """How the tower is fed: as it was saved, or as its sizes say, with the changes that were asked for."""
    config: Any = model.config.tower
    default: Any = preprocess_of(config)
    own: Any = (saved.preprocess if saved is not None else None) or default
    size = (changes.get("size", 0),) * 2
    if isinstance(config, ImageTowerConfig):
        return replace(own, size=size) if size[0] else own
    if isinstance(config, VideoTowerConfig):
        video = getattr(own, "video", None) or default.video
        asked = {"size": size if size[0] else 0, "frames": changes.get("frames"), "fps": changes.get("fps")}
        return ClipPreprocess(video=replace(video, **{k: v for k, v in asked.items() if v}))
    audio = getattr(own, "audio", None) or default.audio
    rate = changes.get("sample_rate") or audio.sample_rate
    if changes.get("seconds"):
        audio = replace(audio, samples=round(changes["seconds"] * rate), frames=None)
    return ClipPreprocess(audio=replace(audio, sample_rate=rate))
