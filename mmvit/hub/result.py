"""The model at a run's end: written where `load` reads it, and recognised when the run is asked for again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmvit.data.clip import ClipPreprocess
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import Tokenizer
from mmvit.errors import UserError, refusal
from mmvit.hub.folder import is_whole, read_config, save
from mmvit.models.presets import build_model
from mmvit.models.unfilled import Unfilled


def trained_for(folder: Path, steps: int) -> bool:
    """Whether a folder holds a model of at least `steps` steps; a shorter run may have left its own."""
    if not is_whole(folder):
        return False
    return (read_config(folder).get("card") or {}).get("steps", steps) >= steps


def write_result(
    like: nn.Module,
    weights: dict[str, Tensor],
    folder: Path,
    *,
    preprocess: ImagePreprocess | ClipPreprocess,
    tokenizer: Tokenizer | None = None,
    card: dict[str, Any],
) -> None:
    """Nothing; saves a model built as `like` with the weights of a task, whose names begin with "model.".

    Args:
        like: the model that was trained; it is not changed.
        weights: whole, on the CPU.
        folder: of the run's model.
        preprocess: see `hub.folder.save`.
        tokenizer: likewise.
        card: likewise; "steps" is what `trained_for` reads.

    Raises:
        UserError: something else is in the way, or the disk refused; the checkpoints are untouched.
    """
    with Unfilled():
        model = build_model(like.config)  # type: ignore[arg-type]
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    try:
        save(model, folder, preprocess=preprocess, tokenizer=tokenizer, card=card)
    except FileExistsError as error:
        raise UserError(f"{error}, or move it away: the same command goes on") from None
    except OSError as error:
        raise UserError(f"could not write the model {folder}: {refusal(error)}") from None
