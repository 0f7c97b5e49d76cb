"""`Detector`: finds what words or example pictures ask for, in pictures of any size.

Shape letters: B pictures, C queries, T prompts a query, E embedding width, N candidates.
Source: OWL-ViT (arXiv:2205.06230), OWLv2 (arXiv:2306.09683).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from mmvit.api import Embedder
from mmvit.data.image import ImagePreprocess
from mmvit.data.inputs import ReadPicture, as_list
from mmvit.data.tokenizer import Tokenizer
from mmvit.detector.asked import Asked, resolve, rows_of_sets
from mmvit.detector.bank import ENSEMBLES, Ensemble, QueryBank, check_bank, no_queries
from mmvit.detector.examples import example_bank
from mmvit.detector.images import EncodedImages, concatenate, encode, nothing, placed
from mmvit.detector.select import Selection, select
from mmvit.detector.words import embed, word_bank
from mmvit.hub.fingerprint import combine, fingerprint, weights_fingerprint
from mmvit.hub.folder import Loaded
from mmvit.hub.folder import load as load_folder
from mmvit.models.image_query import Choice
from mmvit.models.owl import OwlDetector
from mmvit.types import Detections

_PICTURES = 8  # examples at a time


class Detector:
    """Open-vocabulary detection: pictures are encoded once, queries are embedded once, and compared often.

    Args:
        model: a folder, what `mmvit.load` or `hub.load` returned for one, or "hf-hub:owner/name".
        device: where to compute, None = where the model is.
        dtype: type to compute in under autocast, e.g. torch.bfloat16; None = float32, or the model's.

    Raises:
        ValueError: a model that is no detector.
        FileNotFoundError: no such folder.

    Example:
        >>> detector = mmvit.Detector("runs/owl/model")                                  # doctest: +SKIP
        >>> found = detector.detect(["street.jpg"], queries=["a red bus", "a cyclist"])[0]
        >>> found.boxes, found.scores, [found.query[i] for i in found.labels]
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Loaded | Embedder,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        source: Any = load_folder(model) if isinstance(model, str | os.PathLike) else model
        if isinstance(source, OwlDetector):
            raise ValueError("a bare OwlDetector has no preprocessing: use Detector.from_parts(model, ...)")
        if not isinstance(getattr(source, "model", None), OwlDetector):
            found = source.config["kind"] if isinstance(source, Loaded | Embedder) else type(source).__name__
            raise ValueError(
                f"a detector is needed, this is a {found}: train one with recipes/owl.py or convert one"
            )
        if isinstance(source, Embedder):
            device, dtype = source.device if device is None else device, dtype or source.dtype
        home = next(source.model.parameters()).device
        self.device, self.dtype = home if device is None else torch.device(device), dtype
        self.model: OwlDetector = source.model.to(self.device).eval()
        self.preprocess: ImagePreprocess = source.preprocess
        self.tokenizer: Tokenizer = source.tokenizer
        self._fingerprint: str = source.fingerprint

    @classmethod
    def from_parts(
        cls,
        model: OwlDetector,
        *,
        tokenizer: Tokenizer,
        preprocess: ImagePreprocess | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Detector:
        """A detector of a model in memory, such as one that was just converted or trained.

        Args:
            model: put into eval mode, and not to be changed afterwards: fingerprints are taken once.
            tokenizer: of its text tower, with a context length that fits.
            preprocess: how its pictures are resized, None = as the converter of the model says.
            device: as the constructor takes it.
            dtype: likewise.

        Raises:
            ValueError: no preprocessing, here or on the model.
        """
        preprocess = preprocess or getattr(model, "preprocess", None)
        if preprocess is None:
            raise ValueError("a detector needs its preprocessing: pass preprocess=ImagePreprocess(size=...)")
        parts = Loaded(
            model=model,
            preprocess=preprocess,
            tokenizer=tokenizer,
            config={"kind": "detector"},
            fingerprint="",
        )
        return cls(parts, device=device, dtype=dtype)

    @property
    def embed_dim(self) -> int:
        """E, the width of the queries."""
        return self.model.embed_dim

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits over weights, config and preprocessing."""
        return self._fingerprint or fingerprint(self.model, self.preprocess)

    @cached_property
    def text_fingerprint(self) -> str:
        """64 hex digits over the text tower's weights and config and the tokenizer."""
        tower = self.model.text
        return combine(weights_fingerprint(tower.state_dict()), tower.config, self.tokenizer)

    def detect(
        self,
        images: Any,
        queries: Any,
        *,
        threshold: float | None = 0.1,
        top_k: int | None = 100,
        nms: float | None = None,
        per_token_argmax: bool = False,
        objectness_topk: int | None = None,
        templates: str | Sequence[str] = "plain",
        ensemble: Ensemble = "embed",
        batch_size: int = 8,
    ) -> list[Detections]:
        """What the queries find in each picture: boxes xyxy in its own pixels, best first.

        Args:
            images: pictures of any size: PIL pictures, paths, bytes, or uint8 arrays (H,W), (H,W,3), (H,W,4);
                one of them alone counts as a list of one.
            queries: what to find: words (`str`) and example pictures (anything else that is a picture; a path
                as `Path`), or a list of such lists, one for each picture, or a `QueryBank`. Labels count the
                queries as they were given, the same one twice included.
            threshold: only scores above it, 0..1; None = all.
            top_k: at most so many in each picture, None = all.
            nms: boxes of the same query that overlap a better one by more than this IoU are left out.
            per_token_argmax: keep only the best query of each of the model's candidates, as transformers.
            objectness_topk: look at so many candidates with the highest objectness only (OWLv2).
            templates: as `encode_queries` takes them.
            ensemble: likewise.
            batch_size: pictures held and computed at a time.

        Raises:
            ValueError: no or an empty query, a number out of range, or a picture that cannot be read.
            FileNotFoundError: a path that is not there.
        """
        rules = Selection(
            threshold=threshold,
            top_k=top_k,
            nms=nms,
            per_token_argmax=per_token_argmax,
            objectness_topk=objectness_topk,
        )
        _check_batch(batch_size)
        pictures = as_list("image", images)
        if isinstance(queries, QueryBank):
            bank, sets = queries, None
        else:
            asked = resolve(queries)
            if asked.sets is not None and len(asked.sets) != len(pictures):
                raise ValueError(f"there are {len(asked.sets)} lists of queries for {len(pictures)} pictures")
            bank, sets = self._bank(asked, templates, ensemble), asked.sets
        check_bank(bank, self.embed_dim, self.text_fingerprint, self.fingerprint)
        results = []
        for start in range(0, len(pictures), batch_size):
            part = self._encode(pictures[start : start + batch_size], start)
            own = None if sets is None else sets[start : start + batch_size]
            results += self._score(part, bank, own, rules)
        return results

    def encode_image(
        self, images: Any, *, batch_size: int = 8, keep_on: str | torch.device | None = None
    ) -> EncodedImages:
        """The pictures as the detector sees them, to be asked again and again with `score`.

        Args:
            images: as `detect` takes them.
            batch_size: pictures computed at a time.
            keep_on: device that holds the result, None = the model's. A picture takes about N*E*4 bytes.

        Raises:
            ValueError: a picture that cannot be read; the message names its number.
            FileNotFoundError: a path that is not there.
        """
        _check_batch(batch_size)
        device = self.device if keep_on is None else torch.device(keep_on)
        return self._encode_all(as_list("image", images), batch_size, device)

    def encode_queries(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        images: Any = None,
        boxes: Any = None,
        names: Sequence[str] | None = None,
        templates: str | Sequence[str] = "plain",
        ensemble: Ensemble = "embed",
        canonicalise: bool = False,
        choice: Choice | Literal["auto"] = "auto",
        batch_size: int = 256,
    ) -> QueryBank:
        """A bank of queries, from words or from example pictures; banks of both kinds can be added.

        Args:
            texts: what to find in words, e.g. category names; the same one may come twice.
            images: example pictures, as `detect` takes them, or `EncodedImages`.
            boxes: for each example picture where the thing lies, (x0,y0,x1,y1) in its pixels, None = all of
                it; the part outside the picture is ignored.
            names: of the example pictures, default "image 0", ...; examples of one name are averaged.
            templates: "plain" (the words alone), "clip7" (seven of CLIP's, as OWL-ViT is evaluated), another
                named set, or a list of texts with {} where the words go.
            ensemble: what is averaged over templates: "embed" (one embedding a query), "logit" or "prob".
            canonicalise: ask in lower case, with letters a-z, digits, hyphens and spaces only.
            choice: which of the model's candidates stands for an example: "background-unlike", "objectness"
                or "iou" (see `models.image_query.choose`); "auto" = objectness for examples without a box if
                the model has it, else background-unlike.
            batch_size: prompts embedded at a time.

        Raises:
            ValueError: neither or both of texts and images, no query, an empty text, a box without area or
                outside its picture, or an option that is not known; the message names the query's number.
        """
        _check_batch(batch_size)
        if (texts is None) == (images is None):
            raise ValueError("give either texts or images; encode both apart and add the banks")
        if ensemble not in ENSEMBLES:
            raise ValueError(f"ensemble is {ensemble!r}, valid: {', '.join(ENSEMBLES)}")
        if texts is not None:
            if boxes is not None or names is not None:
                raise ValueError("boxes and names belong to example pictures (images=), not to texts")
            return word_bank(
                [texts] if isinstance(texts, str) else list(texts),
                self._embed,
                templates=templates,
                ensemble=ensemble,
                canonicalise=canonicalise,
                batch_size=batch_size,
                text_fingerprint=self.text_fingerprint,
            )
        if not isinstance(images, EncodedImages):
            images = self._encode_all(as_list("image", images), _PICTURES, self.device, "example")
        images.check(self.fingerprint)
        return example_bank(images, boxes, names, choice, self.text_fingerprint)

    def score(
        self,
        images: EncodedImages,
        bank: QueryBank,
        *,
        queries: Sequence[Sequence[int | str]] | Tensor | None = None,
        threshold: float | None = 0.1,
        top_k: int | None = 100,
        nms: float | None = None,
        per_token_argmax: bool = False,
        objectness_topk: int | None = None,
    ) -> list[Detections]:
        """What the bank's queries find in each encoded picture; no tower runs.

        Args:
            images: B pictures, from `encode_image`.
            bank: C queries, from `encode_queries`.
            queries: for each picture which of the bank's queries to ask, names or numbers; labels then count
                in that picture's own list. Or a mask (B,C) bool. None = all for all.
            threshold: as `detect` takes it.
            top_k: likewise.
            nms: likewise.
            per_token_argmax: likewise.
            objectness_topk: likewise.

        Raises:
            ValueError: pictures or queries of another model, a number out of range, an unknown name.
        """
        rules = Selection(
            threshold=threshold,
            top_k=top_k,
            nms=nms,
            per_token_argmax=per_token_argmax,
            objectness_topk=objectness_topk,
        )
        check_bank(bank, self.embed_dim, self.text_fingerprint, self.fingerprint)
        images.check(self.fingerprint)
        sets = None if queries is None else rows_of_sets(queries, bank, len(images))
        return self._score(images, bank, sets, rules)

    def _score(
        self, images: EncodedImages, bank: QueryBank, sets: list[list[int]] | None, rules: Selection
    ) -> list[Detections]:
        if sets is None:
            return select(images, bank, rules, self.device)
        return [select(images[i], bank[own], rules, self.device)[0] for i, own in enumerate(sets)]

    def _encode_all(
        self, pictures: Sequence[Any], batch_size: int, device: torch.device, what: str = "image"
    ) -> EncodedImages:
        """All pictures, in batches, kept on `device`."""
        starts = range(0, len(pictures), batch_size)
        parts = [self._encode(pictures[i : i + batch_size], i, what).to(device) for i in starts]
        return concatenate(parts) if parts else nothing(self.embed_dim, self.fingerprint)

    def _encode(self, pictures: Sequence[Any], start: int, what: str = "image") -> EncodedImages:
        """One batch of pictures; the first of them is number `start` to its owner, who calls them `what`."""
        read = ReadPicture(partial(placed, self.preprocess), start, what)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            pairs = list(pool.map(read, range(len(pictures)), pictures))
        with torch.no_grad(), self._autocast():
            return encode(self.model, pairs, self.device, self.fingerprint)

    def _embed(self, prompts: list[str]) -> Tensor:
        """(P,E) float32 on the CPU, not normalised."""
        with torch.no_grad(), self._autocast():
            return embed(self.model, self.tokenizer, prompts, self.device)

    def _bank(self, asked: Asked, templates: str | Sequence[str], ensemble: Ensemble) -> QueryBank:
        """The bank of words and pictures in the order in which they were asked."""
        words = [i for i, item in enumerate(asked.items) if isinstance(item, str)]
        shown = [i for i, item in enumerate(asked.items) if not isinstance(item, str)]
        banks = []
        if words:
            texts = [asked.items[i] for i in words]
            banks.append(self.encode_queries(texts, templates=templates, ensemble=ensemble))
        if shown:
            examples, names = [asked.items[i] for i in shown], [f"image {i}" for i in shown]
            banks.append(self.encode_queries(images=examples, names=names))
        if not banks:  # a list of empty lists
            return no_queries(self.embed_dim, self.text_fingerprint)
        bank = banks[0] if len(banks) == 1 else banks[0] + banks[1]
        place = {item: row for row, item in enumerate([*words, *shown])}
        return bank[[place[i] for i in range(len(asked.items))]]

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else nullcontext()


def _check_batch(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
