"""Clips, sounds and pictures of shards -> embeddings in every space, several windows of a sample as one.

Letters: N samples, V views of a sample, B batch, D features, E embedding dim.
A sample may lack a modality: its row is zero there, and `Embedded.present` says so.
Source: VATT (arXiv:2104.11178) for views: the embeddings of the windows are averaged before they are
normalised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.data.decode import PICTURES
from mmvit.data.loader import Loader
from mmvit.data.media import VIDEOS
from mmvit.data.shards import ShardIndex
from mmvit.data.video import is_frame
from mmvit.data.waveform import SOUNDS
from mmvit.errors import UserError
from mmvit.evaluators.embed import Embedded, captions_of
from mmvit.types import Batch

MODALITIES = ("video", "image", "audio")
FEATURES = "features"
# Inputs (n,…) of one modality -> space -> (n,E) not normalised; FEATURES names what comes before the heads.
MediaEncoder = Callable[[Tensor], Mapping[str, Tensor]]


def name_of(modality: str, space: str = "") -> str:
    """The key of `Embedded.embeddings`: "video.vt", or "image" for a model with one space."""
    return f"{modality}.{space}" if space else modality


def embed_media(
    batches: Iterable[Batch],
    encoders: Mapping[str, MediaEncoder],
    *,
    stacked: bool = False,
    still: bool = False,
    at_once: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """This rank's samples; embeddings (N,E) are L2-normalised, features (N,V,D) are kept view by view.

    Args:
        batches: of `read_all` with "meta" among its fields.
        encoders: modality -> how its inputs are embedded; video, image or audio.
        stacked: clips and sounds come with their views, (B,V,…).
        still: pictures are the middle frames of the clips' windows.
        at_once: inputs that go through a tower together.
        progress: called with the number of samples after each batch.
    """
    rows: dict[str, list[Tensor]] = {}
    present: dict[str, list[Tensor]] = {name: [] for name in encoders}
    result = Embedded(torch.zeros(0, dtype=torch.int64), [], {}, [], [])
    numbers: list[int] = []
    skipped: Counter[str] = Counter()
    for batch in batches:
        for name, encode in encoders.items():
            inputs, there = _inputs(batch, name, stacked, still)
            present[name].append(there)
            if inputs is not None:
                for space, values in _encoded(inputs, encode, at_once).items():
                    rows.setdefault(name_of(name, space), []).append(values)
        assert batch.meta is not None, "read_all without 'meta' does not number its samples"
        numbers += [int(meta["__index__"]) for meta in batch.meta]
        result.keys += batch.keys
        result.captions += captions_of(batch)
        result.meta += batch.meta
        skipped.update(batch.skipped)
        if progress is not None:
            progress(len(batch))
    result.index = torch.tensor(numbers, dtype=torch.int64)
    result.present = {name: torch.cat(parts) for name, parts in present.items() if parts}
    for name, parts in rows.items():
        values, there = torch.cat(parts), result.present[name.split(".")[0]]
        result.embeddings[name] = values.new_zeros(len(there), *values.shape[1:])
        result.embeddings[name][there] = values
    # A loader knows of bad samples that stand in no batch too.
    result.skipped = dict(batches.skipped if isinstance(batches, Loader) else skipped)
    return result


def modalities_in(urls: str) -> tuple[str, ...]:
    """What shards may carry, of video, image, audio and text, by the names of their members.

    A clip may hold sound, and may turn out not to.

    Raises:
        UserError: no shards.
    """
    found: set[str] = set()
    for pattern in urls.split("::"):
        found |= ShardIndex.open(pattern.strip()).fields
    frames = any(is_frame(extension) for extension in found)
    carried = {
        "video": frames or bool(found & set(VIDEOS)),
        "image": bool(found & set(PICTURES)),
        "audio": bool(found & {*SOUNDS, *VIDEOS}),
        "text": bool(found & {"txt", "json"}),
    }
    return tuple(name for name, there in carried.items() if there)


def having(found: Embedded, *modalities: str) -> Tensor:
    """As `who_has`.

    Raises:
        UserError: no sample has.
    """
    there = who_has(found, *modalities)
    if not there.any():
        raise UserError(f"none of the {len(found)} samples has {' and '.join(modalities)}")
    return there


def who_has(found: Embedded, *modalities: str) -> Tensor:
    """(N,) bool, True = the sample has all of these modalities; "text" = a caption."""
    there = torch.ones(len(found), dtype=torch.bool)
    for name in modalities:
        if name == "text":
            there &= torch.tensor([bool(captions) for captions in found.captions], dtype=torch.bool)
        elif name in found.present:
            there &= found.present[name]
    return there


def _inputs(batch: Batch, name: str, stacked: bool, still: bool) -> tuple[Tensor | None, Tensor]:
    """((n,V,…) inputs of the samples that have the modality, None without any; (B,) bool, who has)."""
    source = "video" if name == "image" and still else name
    values, mask = getattr(batch, source), getattr(batch, f"{source}_mask")
    if values is None:
        return None, torch.zeros(len(batch), dtype=torch.bool)
    there = torch.ones(len(batch), dtype=torch.bool) if mask is None else mask.cpu()
    values = values[there]
    if not (stacked and source != "image"):
        values = values[:, None]
    if name != source:
        values = values[:, :, :, values.shape[3] // 2]  # (n,V,3,T,H,W) -> (n,V,3,H,W)
    return (values if len(values) else None), there


def _encoded(inputs: Tensor, encode: MediaEncoder, at_once: int) -> dict[str, Tensor]:
    """Space -> (n,E) of inputs (n,V,…), the views averaged and normalised; features stay (n,V,D)."""
    flat = inputs.flatten(0, 1)
    parts = [encode(flat[i : i + at_once]) for i in range(0, len(flat), at_once)]
    made: dict[str, Tensor] = {}
    for space in parts[0]:
        values = torch.cat([part[space].float().cpu() for part in parts]).unflatten(0, inputs.shape[:2])
        made[space] = values if space == FEATURES else F.normalize(values.mean(1), dim=-1)
    return made
