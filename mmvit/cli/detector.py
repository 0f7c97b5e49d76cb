"""A saved detector, ready to search: what the evaluation of detection opens first.

Started by `torchrun` or `accelerate launch`, the processes join one group and share the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from mmvit.cli.pair import open_saved
from mmvit.data.image import ImagePreprocess
from mmvit.data.tokenizer import Tokenizer
from mmvit.models.owl import OwlDetector


@dataclass
class OpenDetector:
    """A detector with everything that feeds it.

    Attributes:
        folder: where it was saved.
        model: in eval mode on its device.
        preprocess: for pictures.
        tokenizer: for queries.
        config: config.json.
        rank: of this process.
        world_size: processes.
    """

    folder: str
    model: OwlDetector
    preprocess: ImagePreprocess
    tokenizer: Tokenizer
    config: dict[str, Any]
    rank: int = 0
    world_size: int = 1


def open_detector(folder: str, device: str = "auto") -> OpenDetector:
    """The detector saved in `folder`.

    Args:
        folder: what `save` or a recipe's `model/` wrote.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, …

    Raises:
        UserError: no such folder, a damaged one, no detector in it, or no such device.
    """
    what = "a detector, as recipes/owl.py trains one"
    loaded, ranks = open_saved(folder, device, OwlDetector, what)
    assert loaded.preprocess is not None
    assert loaded.tokenizer is not None
    model = cast(OwlDetector, loaded.model)
    return OpenDetector(folder, model, loaded.preprocess, loaded.tokenizer, loaded.config, *ranks)
