"""A question to a collection -> what is nearest to it: words, a sound, a clip or a picture.

Files are known by the hash of their bytes: each is encoded once, however often it is asked.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmvit.api import Embedder
from mmvit.cli.demo.collection import Collection, Hit
from mmvit.cli.demo.finder import Kept
from mmvit.cli.demo.uploads import Limits, digest, read_bytes
from mmvit.errors import UserError

_WHAT = {"image": "picture", "video": "clip", "audio": "sound"}
_REASONS = {
    "media-empty": "the file is empty",
    "media-unreadable": "this file is not a {what} that can be read",
    "audio-empty": "there is no sound in this file",
    "audio-unreadable": "this file is not a sound that can be read",
    "audio-missing": "this file has no sound",
    "audio-truncated": "the sound's file is damaged: a part is missing",
    "audio-not-finite": "this sound is damaged: it holds values that are no numbers",
    "audio-short": "this sound is too short",
    "video-missing": "this file has no moving picture",
    "video-empty": "no frame of this clip can be read",
    "video-truncated": "the clip's file is damaged: its end is missing",
    "video-damaged": "the clip's file is damaged",
    "video-too-large": "the clip's frames are too large",
    "image-empty": "the file is empty",
    "image-unreadable": "this file is not a picture that can be read",
    "image-truncated": "the picture's file is damaged: its end is missing",
    "image-too-large": "the picture is too large",
}


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        asked: the words, or what kind of file was asked with.
        hits: modality -> its nearest things, best first.
        seconds: spent on encoding the question, 0 where it was kept.
        search_seconds: spent on searching.
    """

    asked: str
    hits: dict[str, list[Hit]]
    seconds: float
    search_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to JSON."""
        found = [
            {"modality": h.modality, "key": h.key, "caption": h.caption, "score": round(h.score, 4)}
            for hits in self.hits.values()
            for h in hits
        ]
        return {"query": self.asked, "results": found}


@dataclass
class Seeker:
    """Answers questions about a collection.

    Attributes:
        model: embeds the questions; the one that embedded the collection.
        collection: what can be found.
        limits: what is refused.
        kept: questions that were encoded.
    """

    model: Embedder
    collection: Collection
    limits: Limits = field(default_factory=Limits)
    kept: Kept = field(default_factory=lambda: Kept(256))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def words(self, text: str, k: int, modalities: Sequence[str]) -> Answer:
        """What goes with a text.

        Raises:
            UserError: no words, too many, or a model that does not read.
        """
        text = re.sub(r"\s+", " ", text or "").strip()
        if not text:
            raise UserError("what is to be found? Write what it shows or what it sounds like")
        if len(text) > self.limits.max_letters:
            raise UserError(
                f"the text has {len(text):,} letters, at most {self.limits.max_letters} are taken"
            )
        return self._seek("text", text, text, text, k, modalities)

    def like(self, modality: str, path: str, k: int, modalities: Sequence[str]) -> Answer:
        """What is like the picture, clip or sound in a file, or goes with it.

        Raises:
            UserError: a file that cannot be used.
        """
        data = read_bytes(path, self.limits)
        if not data:
            raise UserError("the file is empty")
        return self._seek(modality, digest(data), data, f"this {_WHAT[modality]}", k, modalities)

    def _seek(
        self, modality: str, name: str, content: Any, asked: str, k: int, modalities: Sequence[str]
    ) -> Answer:
        if k < 1:
            raise UserError(f"at least one result must be asked for, k is {k}")
        if not modalities:
            raise UserError("choose at least one kind of thing to look for")
        space = self._space(modality)
        with self._lock:
            z, seconds = self.kept.get(
                (modality, name, space), lambda: self._encode(modality, content, space)
            )
        begun = time.perf_counter()
        hits = self.collection.search(z, k, modalities, space)
        return Answer(asked, hits, seconds, time.perf_counter() - begun)

    def _space(self, modality: str) -> str:
        """The finest space in which the question and all of the collection are."""
        if modality not in self.model.modalities:
            raise UserError(
                f"this model does not embed {modality}: ask with {', '.join(self.model.modalities)}"
            )
        spaces = [s for s in self.model.ways[modality].spaces if s in self.collection.spaces]
        return spaces[-1]

    def _encode(self, modality: str, content: Any, space: str) -> Any:
        asked: dict[str, Any] = {modality: [content], "space": space or None}
        try:
            return self.model.encode(**asked)
        except ValueError as error:
            found = re.match(r"\w+ 0: ([a-z]+-[a-z-]+)", str(error))
            line = _REASONS.get(found[1], "") if found else ""
            raise UserError(line.format(what=_WHAT.get(modality, "file")) or str(error)) from None
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise UserError("there is not enough memory for this: use a smaller file") from None
