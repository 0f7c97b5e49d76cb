"""Pictures, clips and sounds that were embedded, each found by an embedding and read again where it lies.

Every modality has an index of its own: cosines of words with sounds and of words with clips are not to be
compared. Only the embeddings are in memory.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmvit.api import Embedder
from mmvit.cli import embed
from mmvit.cli.items import Items, items_of
from mmvit.cli.pair import progress
from mmvit.data.pixels import BadSample, load_rgb, open_image
from mmvit.data.waveform import open_sound
from mmvit.errors import UserError
from mmvit.search import SearchIndex

ORDER = ("video", "audio", "image")
_SHOWN_AS_PNG = ("tif", "tiff")  # no browser shows them


@dataclass(frozen=True)
class Hit:
    """Something that was found.

    Attributes:
        row: its number in the collection.
        key: what it is called.
        modality: image, video or audio.
        caption: what it shows, in words; "" where nobody says.
        score: cosine, -1..1.
    """

    row: int
    key: str
    modality: str
    caption: str
    score: float


class Collection:
    """What can be found: rows 0..len-1.

    Args:
        items: where the things lie.
        keys: what each row is called.
        places: (modality, number among the items, extension) of each row.
        embeddings: name of a space -> (N,E) embeddings of the rows in it.
    """

    def __init__(
        self,
        items: Items,
        keys: Sequence[str],
        places: Sequence[tuple[str, int, str]],
        embeddings: dict[str, np.ndarray],
    ) -> None:
        self.items, self.keys, self.places = items, list(keys), list(places)
        found = {modality for modality, _, _ in places}
        self.modalities = tuple(name for name in ORDER if name in found)
        self.spaces = tuple(embeddings)
        self._lock = threading.Lock()
        self._indexes: dict[tuple[str, str], SearchIndex] = {}
        for name in self.modalities:
            rows = [i for i, (modality, _, _) in enumerate(places) if modality == name]
            for space, values in embeddings.items():
                self._indexes[space, name] = SearchIndex.build(values[rows], rows)

    def __len__(self) -> int:
        return len(self.keys)

    def count(self, modality: str) -> int:
        """How many things there are of a modality."""
        return sum(name == modality for name, _, _ in self.places)

    def search(self, query: Any, k: int, modalities: Sequence[str], space: str) -> dict[str, list[Hit]]:
        """Modality -> its k nearest things, best first, in the order of `modalities`.

        Args:
            query: (1,E) embedding.
            k: at most so many of each.
            modalities: those that are looked for; what the collection does not have is passed over.
            space: in which the query is.
        """
        found = {}
        for name in modalities:
            if (space, name) in self._indexes:
                (rows,), scores = self._indexes[space, name].search(query, k)
                pairs = zip(rows, scores[0].tolist(), strict=True)
                found[name] = [self._hit(int(row), score) for row, score in pairs]
        return found

    def source(self, row: int) -> tuple[bytes | Path, str]:
        """(bytes, or the file they lie in; extension) of a row, as a browser can show it.

        Raises:
            IndexError: no such row.
            UserError: it is no longer there.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"there are {len(self)} things, number {row} is none of them")
        modality, number, extension = self.places[row]
        with self._lock:  # files and tables of shards are shared
            try:
                items = self.items.read(number)
            except UserError as error:
                raise UserError(f"{self.keys[row]} cannot be read any more: {error}") from None
        content = next(
            (i.content for i in items if i.modality == modality and i.extension == extension), None
        )
        if content is None or (isinstance(content, Path) and not content.is_file()):
            raise UserError(f"{self.keys[row]} cannot be read any more")
        return (_as_png(content), "png") if extension in _SHOWN_AS_PNG else (content, extension)

    def captions(self, count: int = 6) -> list[str]:
        """Up to `count` captions of things spread over the collection, each once."""
        step = max(1, len(self) // count)
        numbers = [self.places[row][1] for row in range(step // 2, len(self), step)]
        return [text for text in dict.fromkeys(map(self.items.caption, numbers)) if text][:count]

    def peaks(self, row: int, bars: int = 64, seconds: float = 60.0) -> list[float]:
        """The largest |x| in each of `bars` equal stretches of a sound, of its first `seconds` at most.

        Raises:
            IndexError: no such row.
            UserError: it cannot be read.
        """
        try:
            with open_sound(self.source(row)[0]) as sound:
                values = np.abs(sound.read(0, round(min(seconds, sound.seconds) * sound.rate)))
        except BadSample as error:
            raise UserError(f"{self.keys[row]}: {error}") from None
        return [float(np.nan_to_num(part).max(initial=0.0)) for part in np.array_split(values, bars)]

    def _hit(self, row: int, score: float) -> Hit:
        modality, number, _ = self.places[row]
        with self._lock:
            caption = self.items.caption(number)
        return Hit(row, self.keys[row], modality, caption, score)


def gather(model: Embedder, data: str, folder: Path, config: embed.Config) -> Collection:
    """The things behind `data`, embedded in every space of the model that all of them are in.

    Args:
        model: embeds them.
        data: as `items_of` takes it.
        folder: where embeddings are kept; those that are there are used again.
        config: of mmvit-embed; its `out` and `space` are chosen here.

    Raises:
        UserError: nothing to embed there, or `folder` holds embeddings of something else.
    """
    modalities = embed.modalities_of(model, config.modality)
    items = items_of(data, modalities)
    spaces = [
        s for s in model.ways[modalities[0]].spaces if all(s in model.ways[m].spaces for m in modalities)
    ]
    keys: list[str] = []
    embeddings, places = {}, []
    for space in spaces:
        home = folder / (space or "embeddings")
        with progress(f"embedding{f' in {space}' if space else ''}", items.count) as step:
            record = embed.embed(model, items, replace(config, out=str(home), space=space), step)
        embeddings[space], keys, _ = embed.read_embeddings(home)
        places = embed.read_places(home)
        if not record["n"]:
            raise UserError(f"--data {data} holds nothing that can be read")
    return Collection(items, keys, places, embeddings)


def _as_png(source: bytes | Path) -> bytes:
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        picture = load_rgb(open_image(data, 64_000_000), (255, 255, 255))
    except (BadSample, OSError) as error:
        raise UserError(str(error)) from None
    out = io.BytesIO()
    Image.Image.save(picture, out, "png")
    return out.getvalue()
