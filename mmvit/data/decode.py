"""Raw members of one sample -> `Sample`, or `BadSample` with the reason it cannot be used.

What is random in a sample (view, augmentation, caption) is drawn from one generator that the caller seeds
by the sample's position in the stream, so a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from mmvit.data.captions import all_captions, choose, group_of, read_json
from mmvit.data.embedding import EXTENSION as EMBEDDING
from mmvit.data.embedding import pick_view
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError, nearest
from mmvit.types import Sample

FIELDS = ("image", "image_embedding", "text", "meta")
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How raw members become a `Sample`.

    Attributes:
        fields: what a sample must carry: image, image_embedding, text; "meta" keeps its JSON as well.
        preprocess: how pictures are resized; needed for "image".
        augment: random views instead, for training.
        caption: "random" draws one of the captions, "first" takes the main one, "all" takes the main one and
            lists all of them as meta["captions"].
        first_caption_rate: with "random": how often the main caption is taken without a draw, 0..1.
        languages: keys of the JSON's "texts" that count; ("*",) = all.
        group_by: what makes two samples the same: "text", or a field of the JSON such as "label".
        embedding_dim: D of cached embeddings, None = any.
        random_view: of several cached views draw one, else take the first.
    """

    fields: tuple[str, ...] = ("image", "text")
    preprocess: ImagePreprocess = field(default_factory=ImagePreprocess)
    augment: ImageAugment | None = None
    caption: Literal["random", "first", "all"] = "random"
    first_caption_rate: float = 0.0
    languages: tuple[str, ...] = ("en",)
    group_by: str = "text"
    embedding_dim: int | None = None
    random_view: bool = False

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in FIELDS:
                raise UserError(f"unknown data field {name!r}: {nearest(name, FIELDS)}")
        if self.caption not in ("random", "first", "all"):
            raise UserError(f"caption={self.caption!r}: {nearest(self.caption, ('random', 'first', 'all'))}")

    def wants(self, extension: str) -> bool:
        """Whether a member must be read from the shard at all."""
        return (
            (extension in PICTURES and "image" in self.fields)
            or (extension == EMBEDDING and "image_embedding" in self.fields)
            or (extension == "txt" and "text" in self.fields)
            or (extension == "json" and self._reads_json)
        )

    def check(self, extensions: set[str], where: str) -> None:
        """Nothing; raises UserError where no sample can have a required field.

        Args:
            extensions: those that occur in the shards.
            where: the pattern, for the message.
        """
        needs = {"image": PICTURES, "image_embedding": (EMBEDDING,), "text": ("txt", "json")}
        for name in self.fields:
            wanted = needs.get(name, ())
            if wanted and not extensions.intersection(wanted):
                there = ", ".join(sorted(extensions)[:12]) or "nothing"
                raise UserError(
                    f"{where} has no {name}: members are called KEY.{'|'.join(wanted)}, these shards hold "
                    f"{there} (keys must not contain dots)"
                )

    def __call__(self, raw: Mapping[str, bytes], rng: random.Random, source: str = "") -> Sample:
        """The sample in `raw` (members by extension, and "__key__").

        Raises:
            BadSample: a required field is missing or cannot be read.
        """
        key = raw["__key__"].decode("utf-8", "backslashreplace")
        sample = Sample(key=key, source=source)
        meta = read_json(raw["json"]) if self._reads_json and "json" in raw else {}
        if "text" in self.fields:
            captions = all_captions(raw, meta, self.languages)
            sample.text = choose(captions, self.caption, rng, self.first_caption_rate)
            if self.caption == "all":
                sample.text = captions[0]
                meta = {**meta, "captions": captions}
        if "image_embedding" in self.fields:
            if EMBEDDING not in raw:
                raise BadSample("embedding-missing", f"members: {_names(raw)}")
            draw = rng if self.random_view else None
            sample.image_embedding = pick_view(raw[EMBEDDING], self.embedding_dim, draw)
        if "image" in self.fields:
            sample.image = self._image(raw, rng)
        if "meta" in self.fields or self.caption == "all":
            sample.meta = meta
        same = sample.text if self.group_by == "text" else meta.get(self.group_by)
        sample.group = group_of(f"\0{source}\0{key}" if same is None else same)
        return sample

    @property
    def _reads_json(self) -> bool:
        return "text" in self.fields or "meta" in self.fields or self.group_by != "text"

    def _image(self, raw: Mapping[str, bytes], rng: random.Random) -> Tensor:
        """(3,H,W) uint8."""
        for extension in PICTURES:
            if extension in raw:
                if self.augment is not None:
                    return self.augment(raw[extension], self.preprocess, rng)
                return self.preprocess(raw[extension])
        raise BadSample("image-missing", f"members: {_names(raw)}")


def _names(raw: Mapping[str, Any]) -> str:
    return ", ".join(sorted(name for name in raw if name != "__key__")) or "none"
