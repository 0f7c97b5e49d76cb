"""Embeddings kept between programs: what `eval/zero_shot.py` embedded, other programs reuse.

One .npz of pictures per (model, shards, precision) and one of texts per (model, precision), used only when
the model's fingerprint and the shards' places, sizes and times are the ones it was made from: sounds of one
length make shards of one size, so names and sizes alone would not tell two splits apart.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvit.data.shards import ShardIndex


def kept_file(folder: str | Path, urls: str, fingerprint: str, precision: str) -> Path:
    """Where the embeddings of these shards by this model lie; the name holds all that they depend on."""
    shards = [shard for pattern in urls.split("::") for shard in ShardIndex.open(pattern.strip()).shards]
    facts = [
        [os.path.realpath(shard.path), os.stat(shard.path).st_mtime_ns, shard.samples, shard.bytes]
        for shard in shards
    ]
    name = hashlib.sha256(json.dumps([facts, fingerprint, precision]).encode()).hexdigest()[:24]
    return Path(folder) / f"{name}.npz"


def keep(file: Path, index: Tensor, embeddings: Tensor) -> None:
    """Writes sample numbers (N,) and embeddings (N,E) (None), whole or not at all."""
    _publish(file, index=index.numpy(), embeddings=embeddings.numpy())


def recall(file: Path) -> tuple[Tensor, Tensor] | None:
    """(sample numbers (N,), embeddings (N,E) float32), or None when nothing usable is there."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return torch.from_numpy(content["index"]), torch.from_numpy(content["embeddings"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def keep_rows(file: Path, rows: Mapping[str, Tensor]) -> None:
    """Writes named tensors of N rows each (None), whole or not at all."""
    _publish(file, **{name: values.numpy() for name, values in rows.items()})


def recall_rows(file: Path) -> dict[str, Tensor] | None:
    """What `keep_rows` wrote, or None when nothing usable is there."""
    try:
        with np.load(file, allow_pickle=False) as content:
            rows = {name: torch.from_numpy(content[name]) for name in content.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return rows if "index" in rows else None


class KeptTexts:
    """A text encoder that remembers what it embedded, in memory and, after `save`, in a file.

    Args:
        encode: texts -> (T,E) float32.
        folder: where the file lies, "" = nowhere.
        fingerprint: of the model.
        precision: it computes in.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Tensor], folder: str, fingerprint: str, precision: str
    ):
        self._encode = encode
        self._file = Path(folder) / f"texts-{fingerprint[:24]}-{precision}.npz" if folder else None
        self._texts: dict[str, int] = {}
        self._rows = torch.zeros(0, 0)
        self._kept = 0
        if self._file is not None:
            self._read(self._file)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(T,E) float32 embeddings; only texts that are new are computed."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            rows = self._encode(new)
            self._rows = torch.cat([self._rows, rows]) if len(self._rows) else rows
            self._texts |= {text: len(self._texts) + i for i, text in enumerate(new)}
        return self._rows[[self._texts[text] for text in texts]]

    def save(self) -> None:
        """Writes the file (None) when something is new."""
        if self._file is None or len(self._texts) == self._kept:
            return
        texts = np.frombuffer(json.dumps(list(self._texts)).encode(), np.uint8)
        _publish(self._file, texts=texts, embeddings=self._rows.numpy())
        self._kept = len(self._texts)

    def _read(self, file: Path) -> None:
        try:
            with np.load(file, allow_pickle=False) as content:
                texts, rows = json.loads(content["texts"].tobytes()), torch.from_numpy(content["embeddings"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return
        self._texts, self._rows, self._kept = {text: i for i, text in enumerate(texts)}, rows, len(texts)


def _publish(file: Path, **arrays: Any) -> None:
    """Writes an .npz (None), whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=file.parent)
    with os.fdopen(handle, "wb") as stream:
        np.savez(stream, **arrays)
    os.replace(name, file)
