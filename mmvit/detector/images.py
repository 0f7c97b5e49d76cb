"""Pictures of any size -> candidates with the place of each picture in its tensor; a value that can be kept.

Shape letters: B pictures, N candidates, E embedding width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.boxes import Placement
from mmvit.data.image import ImagePreprocess, draft_jpeg, to_tensor
from mmvit.data.pixels import as_image, load_rgb, upright_size
from mmvit.models.owl import OwlDetector
from mmvit.types import Candidates


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """What a detector knows of B pictures before anything is asked.

    An index (number, slice, list of numbers) gives the chosen pictures, `a + b` both, iterating each alone.

    Attributes:
        candidates: of the B pictures.
        placements: B times where the picture lies in its tensor, with its own size.
        fingerprint: of the detector that made them; another one refuses them.
    """

    candidates: Candidates
    placements: tuple[Placement, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.placements)

    def __getitem__(self, index: int | slice | Sequence[int]) -> EncodedImages:
        numbers = range(len(self))[index] if isinstance(index, int | slice) else index
        rows = [numbers] if isinstance(numbers, int) else list(numbers)
        places = tuple(self.placements[i] for i in rows)
        return EncodedImages(rows_of(self.candidates, rows), places, self.fingerprint)

    def __iter__(self) -> Iterator[EncodedImages]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: EncodedImages) -> EncodedImages:
        return concatenate([self, other])

    def check(self, fingerprint: str) -> None:
        """Nothing; ValueError where another detector than the one of this fingerprint made them."""
        if self.fingerprint != fingerprint:
            raise ValueError("these pictures were encoded by another detector: encode them with this one")

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """B times (height, width) of the picture in its own pixels."""
        return [place.picture for place in self.placements]

    def to(self, device: torch.device | str) -> EncodedImages:
        """The same pictures with every tensor on `device`."""
        moved = _each(self.candidates, lambda value: value.to(device))
        return dataclasses.replace(self, candidates=moved)


def concatenate(parts: Sequence[EncodedImages]) -> EncodedImages:
    """The pictures of all parts, in order; at least one part.

    Raises:
        ValueError: parts of different detectors or picture sizes.
    """
    filled = [part for part in parts if len(part)] or list(parts[:1])
    first = filled[0]
    for part in filled[1:]:
        if part.fingerprint != first.fingerprint or part.candidates.grid != first.candidates.grid:
            raise ValueError(
                "these pictures were encoded by different detectors (grids "
                f"{first.candidates.grid} and {part.candidates.grid}): encode them with one"
            )
    if len(filled) == 1:
        return first
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(Candidates):
        values = [getattr(part.candidates, f.name) for part in filled]
        if f.name == "mask" and any(value is not None for value in values):
            values = [_mask(part.candidates) for part in filled]
        fields[f.name] = torch.cat(values) if isinstance(values[0], Tensor) else values[0]
    places = tuple(place for part in filled for place in part.placements)
    return EncodedImages(Candidates(**fields), places, first.fingerprint)


def rows_of(candidates: Candidates, rows: Sequence[int] | slice) -> Candidates:
    """Candidates of some of the pictures."""
    return _each(candidates, lambda value: value[rows])


def placed(preprocess: ImagePreprocess, source: Any) -> tuple[Tensor, Placement]:
    """(3,H,W) uint8 of one picture in any form, and where the picture, upright, lies in it.

    Raises:
        BadSample: the bytes are no picture, or more than `max_pixels`.
        UserError: another type or shape, or a path that cannot be read.
    """
    picture = as_image(source, preprocess.max_pixels)
    width, height = upright_size(picture)
    if preprocess.draft:
        draft_jpeg(picture, preprocess.size, preprocess.crop_fraction)
    pixels = to_tensor(preprocess.apply(load_rgb(picture, preprocess.background)))
    return pixels, preprocess.placement(height, width)


def encode(
    model: OwlDetector, pairs: Sequence[tuple[Tensor, Placement]], device: torch.device, fingerprint: str
) -> EncodedImages:
    """The candidates of B pictures, on `device`.

    Args:
        model: on `device`.
        pairs: B times what `placed` gives.
        device: where to compute.
        fingerprint: of the detector.
    """
    places = tuple(place for _, place in pairs)
    pixels, covered = torch.stack([pixels for pixels, _ in pairs]), regions(places)
    covered = None if covered is None else covered.to(device)
    return EncodedImages(model.encode_image(pixels.to(device), covered), places, fingerprint)


def regions(placements: Sequence[Placement]) -> Tensor | None:
    """(B,1,4) xyxy fractions of the tensors that pictures cover, None when all cover theirs wholly.

    A picture thinner than a pixel of its tensor covers that pixel.
    """
    covered = torch.tensor([place.region for place in placements])
    pixel = torch.tensor([[1 / place.tensor[1], 1 / place.tensor[0]] for place in placements])
    covered[:, 2:] = torch.maximum(covered[:, 2:], covered[:, :2] + pixel)
    return None if (covered == torch.tensor([0.0, 0.0, 1.0, 1.0])).all() else covered[:, None]


def nothing(embed_dim: int, fingerprint: str) -> EncodedImages:
    """No pictures at all."""
    none = torch.zeros(0, 0)
    return EncodedImages(
        Candidates(torch.zeros(0, 0, embed_dim), none, none, torch.zeros(0, 0, 4), (0, 0)), (), fingerprint
    )


def _mask(c: Candidates) -> Tensor:
    return torch.ones_like(c.shift, dtype=torch.bool) if c.mask is None else c.mask


def _each(c: Candidates, change: Any) -> Candidates:
    """Candidates with `change` made to every tensor."""
    values = {f.name: getattr(c, f.name) for f in dataclasses.fields(Candidates)}
    return Candidates(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})
