"""Examples to look at: captions with the pictures they find, pictures with the names they get.

Which captions and pictures are shown is decided by a hash of their keys, not by hand.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from mmvit.data.captions import group_of
from mmvit.data.decode import PICTURES
from mmvit.data.shards import ShardIndex
from mmvit.evaluators.embed import Embedded
from mmvit.evaluators.image_text import Named
from mmvit.evaluators.zero_shot import predictions
from mmvit.models.lit import DualEncoder
from mmvit.search import SearchIndex

THUMBNAIL = 144


@dataclass
class Hit:
    """A picture that a caption found: its row, its own caption, the cosine, and whether it is right."""

    row: int
    caption: str
    score: float
    right: bool


@dataclass
class Query:
    """A caption, how many pictures of the split are right for it, and the first five that it found."""

    caption: str
    positives: int
    hits: list[Hit]


@dataclass
class Guess:
    """A picture, its label, and the five likeliest (class, probability 0..1)."""

    row: int
    label: str
    classes: list[tuple[str, float]]


class RawPictures:
    """The pictures of shards as they were written, by their number over all of `urls`."""

    def __init__(self, urls: str) -> None:
        self._sources = [ShardIndex.open(pattern.strip()) for pattern in urls.split("::")]

    def __call__(self, number: int) -> bytes | None:
        """The file of sample `number`, None where it has no picture."""
        for index in self._sources:
            if number < index.samples:
                raw = index.read(number, lambda extension: extension in PICTURES)
                return next((raw[e] for e in PICTURES if e in raw), None)
            number -= index.samples
        raise IndexError("beyond the last sample")


@dataclass
class Thumbnails:
    """Pictures of one split as data URIs, each made once."""

    urls: str
    made: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pictures = RawPictures(self.urls)

    def __call__(self, number: int) -> str:
        """data:image/webp;base64,… of sample `number`, on white, at most 144 pixels wide and high."""
        if number not in self.made:
            data = self._pictures(number)
            self.made[number] = _uri(data) if data else ""
        return self.made[number]


def chosen(keys: Sequence[str], count: int) -> list[int]:
    """`count` positions spread by a hash of the keys: the same for every run, picked by nobody."""
    order = sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())
    return order[:count]


def queries(
    pictures: Embedded, bank: torch.Tensor, captions: Sequence[str], rows: Sequence[int], k: int = 5
) -> list[Query]:
    """What the captions of `rows` find among all pictures.

    Args:
        pictures: N samples with image embeddings.
        bank: (N,E) embeddings of `captions`.
        captions: N main captions.
        rows: which captions to ask.
        k: pictures per caption.
    """
    index = SearchIndex.build(pictures.embeddings["image"], range(len(pictures)), "flat")
    found, scores = index.search_ids(bank[list(rows)], k)
    groups = [group_of(caption) for caption in captions]
    made = []
    for row, ids, values in zip(rows, found.tolist(), scores.tolist(), strict=True):
        hits = [Hit(i, captions[i], s, groups[i] == groups[row]) for i, s in zip(ids, values, strict=True)]
        made.append(Query(captions[row], groups.count(groups[row]), hits))
    return made


def guesses(
    model: DualEncoder, pictures: Embedded, named: Named, rows: Sequence[int], k: int = 5
) -> list[Guess]:
    """The names that the pictures of `rows` get, with probabilities as the model was trained to give them."""
    images = pictures.embeddings["image"][list(rows)]
    scores, classes = predictions(images, named.bank, k)
    cosine = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(named.bank, dim=1).T
    logits = model.logit_scale.detach().float().exp().cpu() * cosine
    if model.logit_bias is not None:
        logits = logits + model.logit_bias.detach().float().cpu()
    chances = logits.sigmoid() if model.config.activation == "sigmoid" else logits.softmax(1)
    made = []
    for i, row in enumerate(rows):
        names = [(named.classes[c], float(chances[i, c])) for c in classes[i].tolist()]
        made.append(Guess(row, str(pictures.meta[row].get("label")), names))
    return made


def _uri(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    out = io.BytesIO()
    flat.save(out, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
