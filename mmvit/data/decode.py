"""Raw members of one sample -> `Sample`, or `BadSample` with the reason it cannot be used.

What is random in a sample (view, augmentation, caption) is drawn from one generator that the caller seeds
by the sample's position in the stream, so a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from mmvit.data.batch import Layout
from mmvit.data.captions import all_captions, choose, group_of, near, read_json
from mmvit.data.clip import Clip, ClipReader
from mmvit.data.embedding import EXTENSION as EMBEDDING
from mmvit.data.embedding import pick_view
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.media import VIDEOS
from mmvit.data.pixels import BadSample
from mmvit.data.video import is_frame
from mmvit.data.waveform import SOUNDS
from mmvit.errors import UserError, nearest
from mmvit.types import Sample

FIELDS = ("image", "image_embedding", "video", "audio", "text", "candidates", "meta")
OPTIONAL = ("image", "video", "audio", "text", "candidates")
MEDIA = ("image", "image_embedding", "video", "audio")
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_NEEDS = {
    "image": PICTURES,
    "image_embedding": (EMBEDDING,),
    "video": VIDEOS,
    "audio": (*SOUNDS, *VIDEOS),
    "text": ("txt", "json"),
    "candidates": ("txt", "json"),
}


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How raw members become a `Sample`.

    Attributes:
        fields: what a sample must carry: image, image_embedding, video, audio, text, candidates; "meta" keeps
            its JSON as well.
        optional: of these, what a sample may lack; something other than words it must have.
        preprocess: how pictures are resized; needed for "image".
        augment: random views instead, for training.
        clip: how windows of video and sound are read; needed for "video" and "audio".
        candidates: P, how many captions near in time "candidates" holds at most. They are those of the JSON's
            "captions" (see `near`); where it has none, the chosen caption and then the sample's others.
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
    optional: tuple[str, ...] = ()
    clip: ClipReader | None = None
    candidates: int = 5

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in FIELDS:
                raise UserError(f"unknown data field {name!r}: {nearest(name, FIELDS)}")
            if name in ("video", "audio") and not (self.clip and getattr(self.clip, name)):
                raise UserError(f"the field {name!r} needs clip=ClipPreprocess({name}=…): how it is cut")
        for name in self.optional:
            if name not in self.fields or name not in OPTIONAL:
                valid = [field for field in OPTIONAL if field in self.fields]
                raise UserError(f"optional field {name!r}: {nearest(name, valid)}")
        if self.candidates < 1:
            raise UserError(f"candidates={self.candidates} must be at least 1")
        if self.caption not in ("random", "first", "all"):
            raise UserError(f"caption={self.caption!r}: {nearest(self.caption, ('random', 'first', 'all'))}")

    def wants(self, extension: str) -> bool:
        """Whether a member must be read from the shard at all."""
        return (
            (extension in PICTURES and "image" in self.fields)
            or (extension == EMBEDDING and "image_embedding" in self.fields)
            or (extension in VIDEOS and ("video" in self.fields or "audio" in self.fields))
            or (extension in SOUNDS and "audio" in self.fields)
            or ("video" in self.fields and is_frame(extension))
            or (extension == "txt" and self._reads_text)
            or (extension == "json" and self._reads_json)
        )

    def check(self, extensions: set[str], where: str) -> None:
        """Nothing; raises UserError where no sample can have a required field.

        Args:
            extensions: those that occur in the shards.
            where: the pattern, for the message.
        """
        for name in self.fields:
            if name not in self.optional and not self.carried(name, extensions):
                there = ", ".join(sorted(extensions)[:12]) or "nothing"
                raise UserError(
                    f"{where} has no {name}: members are called KEY.{'|'.join(_NEEDS[name])}, these shards "
                    f"hold {there} (keys must not contain dots)"
                )
        media = [name for name in self.fields if name in MEDIA]
        if media and not any(self.carried(name, extensions) for name in media):
            raise UserError(f"{where} has none of {', '.join(media)}: these shards hold only words")

    def carried(self, name: str, extensions: set[str]) -> bool:
        """Whether samples whose members have these extensions may have a field."""
        if name == "video" and any(is_frame(extension) for extension in extensions):
            return True
        return name not in _NEEDS or bool(extensions.intersection(_NEEDS[name]))

    def __call__(self, raw: Mapping[str, bytes], rng: random.Random, source: str = "") -> Sample:
        """The sample in `raw` (members by extension, and "__key__").

        Raises:
            BadSample: a required field is missing or cannot be read.
        """
        key = raw["__key__"].decode("utf-8", "backslashreplace")
        sample = Sample(key=key, source=source)
        meta = read_json(raw["json"]) if self._reads_json and "json" in raw else {}
        written = meta
        captions = self._captions(raw, meta) if self._reads_text else []
        if captions:
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
        clip = self.clip(raw, meta, rng) if self.clip is not None else None
        if clip is not None:
            sample.video, sample.audio = clip.video, clip.audio
            if "meta" in self.fields:
                meta = {**meta, "clip": {"start": clip.start, "seconds": clip.seconds, "total": clip.total}}
        self._require_media(sample, raw)
        if "candidates" in self.fields:
            sample.candidates = self._near(sample, captions, written, clip)
            sample.text = sample.candidates[0] if sample.candidates else None
        if "meta" in self.fields or self.caption == "all":
            sample.meta = meta
        same = sample.text if self.group_by == "text" else meta.get(self.group_by)
        sample.group = group_of(f"\0{source}\0{key}" if same is None else same)
        return sample

    def without(self, names: Collection[str]) -> Decoder:
        """The same, without some optional fields."""
        if not names:
            return self
        clip = self.clip
        if clip is not None:
            clip = replace(
                clip, video=clip.video and "video" not in names, audio=clip.audio and "audio" not in names
            )
        return replace(
            self,
            fields=tuple(name for name in self.fields if name not in names),
            optional=tuple(name for name in self.optional if name not in names),
            clip=clip if clip is not None and (clip.video or clip.audio) else None,
        )

    def layout(self) -> Layout:
        """What batches of these samples look like where some lack a field."""
        shapes = {"image": (3, *self.preprocess.size)} | (self.clip.shapes if self.clip is not None else {})
        return Layout(
            shapes={name: shapes[name] for name in self.optional if name in shapes},
            text="text" in self.optional,
            candidates=self.candidates if "candidates" in self.fields else 0,
        )

    @property
    def _reads_json(self) -> bool:
        frames = "video" in self.fields  # a sequence of pictures has its rate there
        return self._reads_text or "meta" in self.fields or self.group_by != "text" or frames

    @property
    def _reads_text(self) -> bool:
        return "text" in self.fields or "candidates" in self.fields

    def _captions(self, raw: Mapping[str, bytes], meta: Mapping[str, Any]) -> list[str]:
        """The sample's captions, none where it may lack them."""
        try:
            return all_captions(raw, meta, self.languages)
        except BadSample as bad:
            words = {"text", "candidates"}.intersection(self.fields)
            if bad.reason in ("text-missing", "text-empty") and words <= set(self.optional):
                return []
            if "candidates" in words and "captions" in meta:
                return []
            raise

    def _near(
        self, sample: Sample, captions: list[str], meta: Mapping[str, Any], clip: Clip | None
    ) -> list[str] | None:
        """The sample's captions near its window, its own first."""
        centre = clip.start + clip.seconds / 2 if clip is not None else 0.0
        try:
            timed = near(meta, centre, self.candidates)
        except BadSample as bad:
            if bad.reason != "text-empty" or "candidates" not in self.optional:
                raise
            return None
        if timed is not None:
            return timed
        if sample.text is None and "candidates" not in self.optional:
            raise BadSample("text-missing", "the JSON's captions are no list of {'t', 'text'}")
        return (
            None if sample.text is None else list(dict.fromkeys([sample.text, *captions]))[: self.candidates]
        )

    def _require_media(self, sample: Sample, raw: Mapping[str, bytes]) -> None:
        """Nothing; raises BadSample where everything but words is missing."""
        media = [name for name in self.fields if name in MEDIA]
        if media and all(getattr(sample, name) is None for name in media):
            raise BadSample("media-missing", f"none of {', '.join(media)}; members: {_names(raw)}")

    def _image(self, raw: Mapping[str, bytes], rng: random.Random) -> Tensor | None:
        """(3,H,W) uint8; None where the sample may lack it."""
        for extension in PICTURES:
            if extension in raw:
                if self.augment is not None:
                    return self.augment(raw[extension], self.preprocess, rng)
                return self.preprocess(raw[extension])
        if "image" in self.optional:
            return None
        raise BadSample("image-missing", f"members: {_names(raw)}")


def _names(raw: Mapping[str, Any]) -> str:
    return ", ".join(sorted(name for name in raw if name != "__key__")) or "none"
