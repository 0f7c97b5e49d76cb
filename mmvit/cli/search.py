"""mmvit-search: finds embedded pictures, clips and sounds by words, or by one of them.

mmvit-search --model runs/lit/model --index photos.emb --build          builds the index once
mmvit-search --model runs/lit/model --index photos.emb "a red fox" "a violin"
mmvit-search --model runs/lit/model --index photos.emb --image fox.jpg -k 20
mmvit-search --model runs/vatt/shared/model --index media.emb --audio bark.wav --only video --json found.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from mmvit.api import Embedder
from mmvit.cli.embed import open_model, read_embeddings
from mmvit.cli.items import MEDIA, modality_of
from mmvit.errors import UserError, one_line
from mmvit.options import parse
from mmvit.search import SearchIndex


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        model: folder of the model that made the embeddings.
        index: folder that mmvit-embed wrote, or one of SearchIndex.save.
        query: what to look for, in words; several queries are answered one after the other.
        image: look for what goes with this picture.
        video: look for what goes with this clip.
        audio: look for what goes with this sound (or the sound of a clip).
        only: list this modality alone, of an index of several: image, video or audio.
        k: how many to list.
        json: write the results to this file as well.
        build: build the index from the embeddings first.
        factory: with --build: auto, flat, or a FAISS factory string such as HNSW32.
        device: auto, cpu, cuda, cuda:1, ….
    """

    model: str
    index: str
    query: Positional[tuple[str, ...]] = ()
    image: str = ""
    video: str = ""
    audio: str = ""
    only: Literal["all", "image", "video", "audio"] = "all"
    k: Annotated[int, arg(aliases=["-k"])] = 10
    json: str = ""
    build: bool = False
    factory: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Found:
    """One row of an answer: key, cosine, and what it is ("" where the index does not say)."""

    key: str
    score: float
    modality: str


def open_index(folder: Path, model: Embedder, build: bool, factory: str) -> SearchIndex:
    """The search index in `folder`, built from its embeddings when that is asked for.

    Raises:
        UserError: nothing to search there, a damaged index, or embeddings of another model.
    """
    home = folder / "search" if (folder / "embeddings").is_dir() else folder
    try:
        if build:
            embeddings, keys, record = read_embeddings(folder)
            _same_model(record["fingerprint"], model, folder)
            index = SearchIndex.build(embeddings, keys, factory, fingerprint=record["fingerprint"])
            index.save(home)
            print(f"{len(index):,} rows indexed as {index.factory} in {home}")
            return index
        if home != folder and not home.is_dir():
            raise UserError(f"{folder} holds embeddings but no index yet: add --build once")
        index = SearchIndex.load(home)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        raise UserError(str(error)) from None
    _same_model(index.fingerprint, model, folder)
    return index


def nearest_of(index: SearchIndex, query: Any, k: int, only: str, default: str) -> list[Found]:
    """The k nearest rows of one modality, best first; fewer where there are no more.

    Args:
        index: its keys carry extensions where they are of several modalities.
        query: (1,E) embedding.
        k: at most so many.
        only: image, video, audio or all.
        default: modality of keys that do not say.
    """
    take = k
    while True:
        keys, scores = index.search(query, take)
        rows = [
            Found(str(key), score, _modality(str(key), default))
            for key, score in zip(keys[0], scores[0].tolist(), strict=True)
            if key is not None
        ]
        rows = [row for row in rows if only in ("all", row.modality)][:k]
        if len(rows) == k or take >= len(index):
            return rows
        take = min(len(index), 4 * take)


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Prints, for every query, the cosines and keys of what is nearest."""
    config = parse(Config, argv=argv, description=__doc__ or "")
    if config.k < 1:
        raise UserError(f"--k {config.k} must be at least 1")
    files = {name: getattr(config, name) for name in ("image", "video", "audio") if getattr(config, name)}
    if not (config.query or files or config.build):
        raise UserError('nothing to look for: write words, "a red fox", or --image, --video or --audio FILE')
    model = open_model(config.model, config.device)
    for name in (["text"] if config.query else []) + list(files):
        if name not in model.modalities:
            raise UserError(
                f"{config.model} embeds {', '.join(model.modalities)}: '{name}' cannot be searched for"
            )
    folder = Path(config.index)
    index = open_index(folder, model, config.build, config.factory)
    record = _record(folder)
    space, default = record.get("space") or None, record.get("modality", "")
    answers = []
    try:
        asked = [(text, model.encode(text=text, space=space)) for text in config.query]
        asked += [(path, model.encode(**{name: path}, space=space)) for name, path in files.items()]
        for query, embedding in asked:
            rows = nearest_of(index, embedding, config.k, config.only, default)
            _print(query, rows, mixed=default == "auto")
            answers.append({"query": query, "results": [row.__dict__ for row in rows]})
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    if config.json:
        _save(config.json, answers)


def _print(query: str, rows: Sequence[Found], mixed: bool) -> None:
    """A line for the query and one for each row: cosine, modality where there are several, key."""
    print(json.dumps(query, ensure_ascii=False))
    for row in rows:
        print(f"  {row.score:6.3f}  {f'{row.modality:5s}  ' if mixed else ''}{row.key}")
    if not rows:
        print("  nothing of that kind is in the index")


def _save(path: str, answers: list[dict[str, Any]]) -> None:
    try:
        text = json.dumps(answers, ensure_ascii=False, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"results: {path}")


def _record(folder: Path) -> dict[str, Any]:
    """index.json of mmvit-embed, {} where there is only an index."""
    try:
        record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("format") == "mmvit-embeddings" else {}


def _modality(key: str, default: str) -> str:
    if default in MEDIA:
        return default
    return modality_of(Path(key).suffix.lstrip(".")) or ""


def _same_model(fingerprint: str | None, model: Embedder, folder: Path) -> None:
    if fingerprint and fingerprint != model.fingerprint:
        raise UserError(
            f"{folder} holds embeddings of another model ({fingerprint[:12]}, --model is "
            f"{model.fingerprint[:12]}): embed again with this one, or name the one that was used"
        )
