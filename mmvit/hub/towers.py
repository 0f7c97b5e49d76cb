"""One tower by name: a saved tower, one side of a saved pair, or (for pictures) any peer library's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import Tokenizer
from mmvit.errors import nearest
from mmvit.hub.folder import load
from mmvit.hub.preprocess import changed, preprocess_of
from mmvit.hub.remote import PREFIX
from mmvit.models.classifier import Classifier
from mmvit.models.foreign import ForeignImageTower, read_peer
from mmvit.models.lit import DualEncoder
from mmvit.models.peers import LIBRARIES
from mmvit.models.vatt import Vatt


def load_image_tower(
    spec: str | Path, *, image_size: tuple[int, int] | None = None, weights: bool = True, **arguments: Any
) -> tuple[nn.Module, ImagePreprocess]:
    """An image tower with its weights, in eval mode, and the preprocessing it wants.

    Args:
        spec: a folder of ours (an image tower or a pair) or "hf-hub:owner/name" of one, "library:folder" as a
            peer saved it, or "library:name" (published weights are fetched; needs the network).
        image_size: (height, width) to feed it instead of its own.
        weights: False takes random weights for a peer's name.
        arguments: passed on to a peer's constructor.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an unknown library or model, a damaged folder, or a model without an image side.
    """
    if is_peer(spec):
        peer = read_peer(str(spec), image_size=image_size, weights=weights, **arguments)
        tower = ForeignImageTower.wrap(peer)
        return tower.eval(), ImagePreprocess(size=tower.config.image_size, **peer.preprocess)
    loaded = load(spec)
    side = _side(loaded.model, "image", loaded.config["kind"], spec)
    if not isinstance(loaded.preprocess, ImagePreprocess):
        raise ValueError(f"'{spec}' holds a pair of clips or sounds and texts, expected a tower of pictures")
    size = image_size or loaded.preprocess.size
    return side, ImagePreprocess(**loaded.preprocess.to_dict() | {"size": size})


def load_tower(
    spec: str | Path, *, image_size: int = 0, seconds: float = 0.0
) -> tuple[Any, ImagePreprocess | ClipPreprocess]:
    """A tower of pictures, clips or sounds with its weights, in eval mode, and the preprocessing it wants.

    Args:
        spec: as `load_image_tower` takes it; a saved tower or pair may be of clips or sounds.
        image_size: side in pixels to feed it instead of its own, 0 = its own.
        seconds: likewise the length of a clip or sound.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an unknown library or model, a damaged folder, or a model that only reads text.
        UserError: a size for what is not seen, or a length for what does not last.
    """
    if is_peer(spec):
        tower, preprocess = load_image_tower(spec, image_size=(image_size,) * 2 if image_size else None)
        return tower, changed(preprocess, seconds=seconds)
    loaded = load(spec)
    kind = loaded.config["kind"]
    side: Any = loaded.model.image if kind == "dual_encoder" else loaded.model
    if kind not in ("dual_encoder", "image_tower", "video_tower", "audio_tower"):
        raise ValueError(f"'{spec}' holds a {kind}, expected a tower of pictures, clips or sounds, or a pair")
    return side, changed(loaded.preprocess or preprocess_of(side.config), image_size, seconds)


def tower_in(model: Any, modality: str) -> Any:
    """The tower of a modality inside a model of several; what is a tower already is handed back.

    Args:
        model: any that `hub.load` reads.
        modality: image, video or audio; pictures go to a VATT model's video tower.
    """
    if isinstance(model, Vatt):
        return model.audio if modality == "audio" else model.video
    if isinstance(model, DualEncoder):
        return model.image
    return model.tower if isinstance(model, Classifier) else model


def is_peer(spec: str | Path) -> bool:
    """Whether a model is named as another library's, "library:folder" or "library:name".

    Raises:
        ValueError: an unknown library, and no folder.
    """
    library = str(spec).partition(":")[0]
    if library in LIBRARIES:
        return True
    if not Path(spec).exists() and ":" in str(spec) and not str(spec).startswith(PREFIX):
        raise ValueError(f"'{spec}' is neither a folder nor 'library:name': {nearest(library, LIBRARIES)}")
    return False


def load_text_tower(spec: str | Path) -> tuple[nn.Module, Tokenizer]:
    """A text tower with its weights, in eval mode, and its tokenizer.

    Args:
        spec: a folder of ours, a text tower, a pair or a detector, or "hf-hub:owner/name" of one.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a damaged folder, or a model without a text side.
    """
    loaded = load(spec)
    reads = ("text_tower", "dual_encoder", "detector")
    assert loaded.tokenizer is not None or loaded.config["kind"] not in reads
    return _side(loaded.model, "text", loaded.config["kind"], spec), loaded.tokenizer  # type: ignore[return-value]


def _side(model: nn.Module, side: str, kind: str, spec: str | Path) -> nn.Module:
    # A detector's image tower has lost what pooled and embedded.
    if kind == "dual_encoder" or (kind, side) == ("detector", "text"):
        return getattr(model, side)
    if kind != f"{side}_tower":
        raise ValueError(f"'{spec}' holds a {kind}, expected one of {side}_tower or dual_encoder")
    return model
