"""A detector behind a page: what has been computed is kept, so that a new query or threshold costs little.

Pictures are known by the hash of their bytes: their candidates are computed once, whatever is asked of them
and whoever asks. Queries likewise.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image

from mmvit.cli.demo.draw import label_names
from mmvit.cli.demo.uploads import Limits, Picture, box_in, digest, read_bytes, read_picture
from mmvit.errors import UserError
from mmvit.types import Detections

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What to look for: names, or what an example picture shows in a box.

    Attributes:
        names: texts; with an example, what to call it.
        example: path of a picture to look for things like it.
        box: x0, y0, x1, y1 in pixels of the example, four None = all of it.
    """

    names: tuple[str, ...] = ()
    example: str | None = None
    box: tuple[Any, ...] = (None, None, None, None)


@dataclass(frozen=True)
class Settings:
    """What is shown of what was found.

    Attributes:
        threshold: lowest score, 0..1.
        top_k: most boxes.
        nms: of two boxes of one name that overlap by more than this IoU, the better one stays; 1 = both.
    """

    threshold: float = 0.1
    top_k: int = 30
    nms: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("nms", self.nms)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value:g}, expected 0..1")
        if self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}, expected at least 1")


@dataclass(frozen=True)
class Found:
    """An answer.

    Attributes:
        view: the picture, reduced where it is large.
        scale: pixels of `view` per pixel of the picture.
        size: (width, height) of the picture.
        detections: boxes in pixels of the picture, best first.
        names: what each query is called.
        image_seconds, query_seconds: spent on the towers, 0 where the result was kept.
        seconds: spent on scoring.
    """

    view: Image.Image
    scale: float
    size: tuple[int, int]
    detections: Detections
    names: list[str]
    image_seconds: float
    query_seconds: float
    seconds: float

    def rows(self) -> list[tuple[str, float, list[float]]]:
        """(name, score 0..1, x0 y0 x1 y1 in pixels of the picture) of each box, best first."""
        d = self.detections
        return [
            (self.names[label], score, [round(value, 1) for value in box])
            for label, score, box in zip(d.labels.tolist(), d.scores.tolist(), d.boxes.tolist(), strict=True)
        ]

    def on_view(self) -> Detections:
        """The detections with boxes in pixels of `view`."""
        d = self.detections
        return Detections(d.boxes * self.scale, d.scores, d.labels, d.query)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to JSON: sizes and boxes in pixels of the picture, xyxy."""
        rows = [{"label": name, "score": round(score, 4), "box": box} for name, score, box in self.rows()]
        return {"width": self.size[0], "height": self.size[1], "queries": self.names, "detections": rows}


class Kept:
    """The last `size` results of each of several computations, the one longest unused goes first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], T]) -> tuple[T, float]:
        """The value, computed where it is not kept, and the seconds that took."""
        begun = time.perf_counter()
        new = key not in self.values
        if new:
            self.values[key] = compute()
        self.values.move_to_end(key)
        while len(self.values) > self.size:
            self.values.popitem(last=False)
        return self.values[key], time.perf_counter() - begun if new else 0.0


@dataclass(frozen=True)
class _Seen:
    """A picture that was encoded: its candidates, and a view of it to draw on."""

    encoded: Any
    view: Image.Image
    scale: float
    size: tuple[int, int]


@dataclass
class Finder:
    """Answers questions about uploaded files.

    Attributes:
        detector: `mmvit.Detector`, or what has its encode_image, encode_queries and score.
        limits: what is refused.
        side: longer side in pixels of the pictures that are shown.
        pictures, banks: what is kept.
    """

    detector: Any
    limits: Limits = field(default_factory=Limits)
    side: int = 1280
    pictures: Kept = field(default_factory=lambda: Kept(8))
    banks: Kept = field(default_factory=lambda: Kept(16))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, path: str, question: Question, settings: Settings) -> Found:
        """What of `question` is in the picture at `path`.

        Raises:
            UserError: a file, a box or a question that cannot be used.
        """
        with self._lock:  # one computation at a time; what is kept has no lock of its own
            seen, image_seconds = self._look(path)
            bank, names, query_seconds = self._bank(question)
            begun = time.perf_counter()
            nms = None if settings.nms >= 1 else settings.nms
            (found,) = self._call(
                "score", seen.encoded, bank, threshold=settings.threshold, top_k=settings.top_k, nms=nms
            )
            seconds = time.perf_counter() - begun
        return Found(seen.view, seen.scale, seen.size, found, names, image_seconds, query_seconds, seconds)

    def view(self, path: str) -> tuple[Image.Image, float]:
        """The picture as it is shown, and how many of its pixels one pixel of the file became."""
        return _reduced(self.read(path).pixels, self.side)

    def read(self, path: str) -> Picture:
        """The picture in a file."""
        return read_picture(read_bytes(path, self.limits), self.limits)

    def _look(self, path: str) -> tuple[_Seen, float]:
        """The picture in a file, encoded, and the seconds that took."""
        data = read_bytes(path, self.limits)
        return self.pictures.get(digest(data), lambda: self._encode(data))

    def _encode(self, data: bytes) -> _Seen:
        picture = read_picture(data, self.limits).pixels
        encoded = self._call("encode_image", [picture])
        return _Seen(encoded, *_reduced(picture, self.side), picture.size)

    def _bank(self, question: Question) -> tuple[Any, list[str], float]:
        """The question as a bank of queries, what they are called, and the seconds that took."""
        if question.example is None:
            texts = list(question.names)
            bank, seconds = self.banks.get(question.names, lambda: self._call("encode_queries", texts=texts))
            return bank, label_names(texts), seconds
        example, seconds = self._look(question.example)
        box = box_in(question.box, example.size)
        boxes = [box]  # of a picture that was encoded: choosing another box runs no tower
        bank = self._call("encode_queries", images=example.encoded, boxes=boxes)
        return bank, list(question.names[:1]) or ["like the example"], seconds

    def _call(self, verb: str, *given: Any, **options: Any) -> Any:
        """The detector's answer; what it refuses, it refuses in a line that the page can show."""
        try:
            return getattr(self.detector, verb)(*given, **options)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(str(error)) from None
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise UserError(
                "there is not enough memory for this: use a smaller picture or fewer names"
            ) from None


def _reduced(picture: Image.Image, side: int) -> tuple[Image.Image, float]:
    """The picture with at most `side` pixels on its longer side, and the factor."""
    scale = min(1.0, side / max(picture.size))
    if scale == 1.0:
        return picture, 1.0
    width, height = (max(1, round(value * scale)) for value in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS), scale
