"""What recipes take as --model.…: one side of a pair, from a folder or a preset; a detector out of a pair."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer, Tokenizer, load_tokenizer
from mmvit.errors import UserError, nearest
from mmvit.hub.folder import load
from mmvit.hub.parts import check_fed
from mmvit.hub.preprocess import changed, preprocess_of
from mmvit.hub.towers import load_text_tower, load_tower
from mmvit.models.lit import DualEncoder
from mmvit.models.owl import OwlDetector
from mmvit.models.presets import create_model, list_models
from mmvit.models.surgery import to_detector
from mmvit.models.tower import GridTower


def pick_tower(
    spec: str, image_size: int = 0, seconds: float = 0.0, options: Sequence[str] = ()
) -> tuple[Any, ImagePreprocess | ClipPreprocess, bool]:
    """(tower of pictures, clips or sounds, preprocessing, whether it is pretrained).

    Args:
        spec: a folder of ours with a tower or a pair, a peer's "library:folder" or "library:name" (of
            pictures), or a preset's name.
        image_size: side in pixels to feed a pretrained tower; 0 = its own.
        seconds: length of the clips or sounds to feed it; 0 = its own.
        options: NAME=VALUE changes of a preset.

    Raises:
        UserError: neither a folder nor a preset, one that cannot be read, that only reads text, or that
            cannot take that size or length.
    """
    tower: Any
    try:
        if not (fresh := is_preset(spec)):
            tower, preprocess = load_tower(spec, image_size=image_size, seconds=seconds)
        else:
            tower = create_model(spec, **option_values(options))
            if isinstance(tower, DualEncoder):
                tower = tower.image
            if not isinstance(tower, GridTower):
                raise UserError(f"the preset {spec} is no tower of pictures, clips or sounds")
            preprocess = changed(preprocess_of(tower.config), seconds=seconds)
        check_fed(tower.config, preprocess)
        return tower, preprocess, not fresh
    except (ValueError, OSError) as error:
        raise UserError(f"tower {spec}: {error}") from None


def pick_text_tower(
    spec: str, tokenizer: str = "", context_length: int = 0, options: Sequence[str] = ()
) -> tuple[Any, Tokenizer, bool]:
    """(tower, tokenizer, whether it is pretrained); a tower from scratch takes its vocabulary's size.

    Args:
        spec: a folder of ours, or a preset's name.
        tokenizer: a tokenizer's folder or "clip"; "" = the one in the tower's folder.
        context_length: tokens of a text; 0 = the tokenizer's.
        options: NAME=VALUE changes of a preset.

    Raises:
        UserError: neither a folder nor a preset, or no tokenizer for a tower from scratch.
    """
    given = None
    if tokenizer:
        given = ClipTokenizer() if tokenizer == "clip" else load_tokenizer(tokenizer)
    try:
        if not (fresh := is_preset(spec)):
            tower, own = load_text_tower(spec)
            words = given or own
        elif given is None:
            raise UserError(
                f"the text tower {spec} starts from scratch and needs a tokenizer: a folder, or clip"
            )
        else:
            words = given.with_context(context_length) if context_length else given
            fields = {"vocab_size": words.vocab_size, "context_length": words.context_length}
            tower = create_model(spec, **fields, **option_values(options))
        longest: Any = tower.config
        length = min(context_length or words.context_length, longest.context_length)
        return tower, words.with_context(length), not fresh
    except (ValueError, OSError) as error:
        raise UserError(f"text tower {spec}: {error}") from None


def pick_detector(
    spec: str, *, image_size: int = 0, pad: int = 128, query_length: int = 16, **fields: Any
) -> tuple[OwlDetector, ImagePreprocess, Tokenizer]:
    """(detector, preprocessing, tokenizer): one that is saved as such, or what a pair becomes.

    Args:
        spec: a folder of ours with a detector, which stays as it is, or with an image-text pair.
        image_size: side of the square that pictures are padded to, in pixels; 0 = the pair's own.
        pad: grey value 0..255 of that padding.
        query_length: tokens of a query at most.
        **fields: of `models.surgery.to_detector`.

    Raises:
        UserError: a folder that cannot be read or holds something else, or a pair that cannot become one.
    """
    try:
        loaded = load(spec)
        detector, preprocess = loaded.model, loaded.preprocess
        if isinstance(detector, DualEncoder) and preprocess is not None:
            detector = to_detector(detector, image_size=image_size or None, **fields)
            size = detector.config.image.image_size
            preprocess = replace(
                preprocess, size=size, resize="pad_corner", crop_fraction=1.0, background=(pad,) * 3
            )
    except (ValueError, OSError) as error:
        raise UserError(f"detector {spec}: {error}") from None
    if preprocess is not None and image_size and preprocess.size != (image_size, image_size):
        raise UserError(
            f"{spec} is a detector for {preprocess.size[1]} x {preprocess.size[0]} pixels and stays one: "
            f"image size {image_size} needs the pair that it came from"
        )
    if not isinstance(detector, OwlDetector) or preprocess is None or loaded.tokenizer is None:
        raise UserError(f"{spec} holds a {loaded.config['kind']}, expected a pair of towers or a detector")
    longest = min(detector.config.text.context_length, query_length)
    return detector, preprocess, loaded.tokenizer.with_context(longest)


def is_preset(spec: str) -> bool:
    """Whether a tower starts from scratch.

    Raises:
        UserError: `spec` is neither a preset nor a folder nor "library:…".
    """
    if spec in list_models():
        return True
    if not Path(spec).exists() and ":" not in spec:
        raise UserError(f"no folder or preset '{spec}': {nearest(spec, list_models())}")
    return False


def option_values(options: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE options as Python values.

    Raises:
        UserError: an option of another form.
    """
    values = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise UserError(f"'{option}' is not NAME=VALUE with a number or a quoted text") from None
    return values
