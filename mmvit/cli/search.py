"""mmvit-search: finds embedded pictures by words or by another picture.

mmvit-search --model runs/lit/model --index photos.emb --build          builds the index once
mmvit-search --model runs/lit/model --index photos.emb "a red fox" "a violin"
mmvit-search --model runs/lit/model --index photos.emb --image fox.jpg -k 20
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mmvit.api import Embedder
from mmvit.cli.embed import open_model, read_embeddings
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
        image: look for what is like this picture.
        k: how many to list.
        build: build the index from the embeddings first.
        factory: with --build: auto, flat, or a FAISS factory string such as HNSW32.
        device: auto, cpu, cuda, cuda:1, ….
    """

    model: str
    index: str
    query: Positional[tuple[str, ...]] = ()
    image: str = ""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    build: bool = False
    factory: str = "auto"
    device: str = "auto"


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


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Prints, for every query, the keys and cosines of the nearest pictures."""
    config = parse(Config, argv=argv, description=__doc__ or "")
    if config.k < 1:
        raise UserError(f"--k {config.k} must be at least 1")
    if not (config.query or config.image or config.build):
        raise UserError('nothing to look for: write words, "a red fox", or --image FILE')
    model = open_model(config.model, config.device)
    if config.query and "text" not in model.modalities:
        raise UserError(
            f"{config.model} embeds {', '.join(model.modalities)}: only --image can be searched for"
        )
    index = open_index(Path(config.index), model, config.build, config.factory)
    try:
        asked = [(text, model.encode(text=text)) for text in config.query]
        if config.image:
            asked.append((config.image, model.encode(image=config.image)))
        for query, embedding in asked:
            keys, scores = index.search(embedding, config.k)
            print(json.dumps(query, ensure_ascii=False))
            for key, score in zip(keys[0], scores[0].tolist(), strict=True):
                print(f"  {score:6.3f}  {key}")
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None


def _same_model(fingerprint: str | None, model: Embedder, folder: Path) -> None:
    if fingerprint and fingerprint != model.fingerprint:
        raise UserError(
            f"{folder} holds embeddings of another model ({fingerprint[:12]}, --model is "
            f"{model.fingerprint[:12]}): embed again with this one, or name the one that was used"
        )
