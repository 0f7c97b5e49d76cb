"""What people call: load a model, embed pictures and texts, compare, classify without training.

Shape letters: N inputs, C classes, E embedding dim.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmvit.data.inputs import ReadPicture, as_list
from mmvit.errors import nearest
from mmvit.evaluators.prompts import Classes, class_embeddings, resolve_classes
from mmvit.hub.folder import Loaded
from mmvit.hub.folder import load as load_folder
from mmvit.hub.folder import save as save_folder

log = logging.getLogger(__name__)

_MODALITIES = {
    "dual_encoder": ("image", "text"),
    "detector": ("text",),
    "image_tower": ("image",),
    "text_tower": ("text",),
}


def load(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Embedder:
    """A saved model, ready to embed; a local folder needs no network.

    Args:
        path: the folder, or "hf-hub:owner/name[@revision]" to fetch a hub's model into the local cache first;
            with HF_HUB_OFFLINE=1 only the cache is looked at.
        device: where to compute, e.g. "cpu", "cuda", "cuda:1".
        dtype: type to compute in under autocast, e.g. torch.bfloat16; None = float32. Results are float32.

    Raises:
        FileNotFoundError: no such folder or hub's model, or a file is missing in it.
        ValueError: a damaged file, or one that does not belong to this model.
        PermissionError: the hub refuses to show the model.
        ConnectionError: the hub cannot be reached.

    Example:
        >>> model = load("runs/lit/model")                                     # doctest: +SKIP
        >>> model.similarity(model.encode(image=["fox.png"]), model.encode(text=["a fox", "a violin"]))
    """
    return Embedder(load_folder(path), device=device, dtype=dtype)


class Embedder:
    """One object that owns weights, preprocessing, tokenizer and temperature.

    Of a detector it embeds texts; pictures go to `mmvit.Detector`, which takes this object.

    Args:
        loaded: what `hub.load` read.
        device: where to compute.
        dtype: as `load` takes it.

    Raises:
        ValueError: a model that does not embed (a classifier).
    """

    def __init__(
        self, loaded: Loaded, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        kind = loaded.config["kind"]
        if kind not in _MODALITIES:
            raise ValueError(
                f"a {kind} does not embed; read it with mmvit.hub.load: valid: {', '.join(_MODALITIES)}"
            )
        self.model: Any = loaded.model.to(device).eval()
        self.preprocess, self.tokenizer = loaded.preprocess, loaded.tokenizer
        self.config, self.fingerprint = loaded.config, loaded.fingerprint
        self.modalities: tuple[str, ...] = _MODALITIES[kind]
        self.device, self.dtype = torch.device(device), dtype
        self.embed_dim: int = loaded.model.embed_dim  # type: ignore[assignment]

    @torch.no_grad()
    def encode(
        self,
        *,
        image: Any = None,
        text: Any = None,
        batch_size: int = 64,
        show_progress: bool = False,
        patch_size: int | None = None,
        **other: Any,
    ) -> Tensor:
        """Embeddings (N,E) float32, L2-normalised, on the CPU, in the order of the inputs.

        Args:
            image: pictures: PIL pictures, paths, bytes, or uint8 arrays (H,W), (H,W,3), (H,W,4); one of them
                alone counts as a list of one. Transparency is laid over the model's background colour.
            text: texts; longer ones than the model's context are cut, and how many is logged.
            batch_size: inputs held and computed at a time.
            show_progress: draw a progress bar where the output is a terminal.
            patch_size: side of the patches in pixels that pictures are cut into, of a model made for many
                (FlexiViT): larger ones take less time and see less; None = the one it is stored with.
            other: any other modality, refused by name.

        Raises:
            ValueError: none or several modalities, one that the model lacks, an input that cannot be read, or
                a patch size that the model was not made for or its pictures are no multiple of.
            FileNotFoundError: a path that is not there.
        """
        given = {k: v for k, v in {"image": image, "text": text, **other}.items() if v is not None}
        modality = self._modality(given)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        inputs = as_list(modality, given[modality])
        embed = self._embed_texts
        if patch_size is not None:
            self._check_patch_size(patch_size, modality)
        if modality == "image":
            embed = partial(self._embed_images, patch_size=patch_size)
        rows = [embed(inputs[i : i + batch_size], i) for i in _steps(len(inputs), batch_size, show_progress)]
        return torch.cat(rows) if rows else torch.empty(0, self.embed_dim)

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """How well rows of a (A,E) go with rows of b (B,E), as trained: (A,B) float32 in 0..1.

        A softmax model gives probabilities over b that sum to 1 per row; a sigmoid model gives each pair its
        own. A tower alone has no temperature and gives cosines in -1..1.

        Raises:
            ValueError: the embeddings are not (.,E).
        """
        logits = self.logits(a, b)
        if self.config["kind"] != "dual_encoder":
            return logits
        return logits.sigmoid() if self.model.config.activation == "sigmoid" else logits.softmax(dim=-1)

    @torch.no_grad()
    def logits(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines of a (A,E) and b (B,E) under the model's temperature and bias, (A,B) float32 on the CPU."""
        for name, x in (("a", a), ("b", b)):
            if x.ndim != 2 or x.shape[1] != self.embed_dim:
                raise ValueError(f"{name} is {tuple(x.shape)}, expected (rows, {self.embed_dim}) embeddings")
        cosine = normalize(a.float().cpu(), dim=-1) @ normalize(b.float().cpu(), dim=-1).T
        if self.config["kind"] != "dual_encoder":
            return cosine
        bias = self.model.logit_bias
        return self.model.logit_scale.float().exp().cpu() * cosine + (
            0.0 if bias is None else bias.float().cpu()
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Nothing; writes the model's folder, which `load` reads."""
        save_folder(
            self.model,
            path,
            preprocess=self.preprocess,
            tokenizer=self.tokenizer,
            card=self.config.get("card"),
        )

    def _modality(self, given: dict[str, Any]) -> str:
        valid = ", ".join(self.modalities)
        if len(given) != 1:
            raise ValueError(f"encode takes exactly one of {valid}, got {', '.join(given) or 'none'}")
        (name,) = given
        if name == "image" and self.config["kind"] == "detector":
            raise ValueError("a detector gives boxes, no embedding of a picture: use mmvit.Detector(model)")
        if name not in self.modalities:
            raise ValueError(f"this model does not embed '{name}': {nearest(name, self.modalities)}")
        return name

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else nullcontext()

    def _check_patch_size(self, patch_size: int, modality: str) -> None:
        """Raises ValueError for a patch size that cannot be used here."""
        if modality != "image":
            raise ValueError(f"patch_size={patch_size} is for pictures, and this call encodes '{modality}'")
        config = (self.model.image if self.config["kind"] == "dual_encoder" else self.model).config
        if getattr(config, "patch_resample", None) is None:
            has = getattr(config, "patch_size", None)
            raise ValueError(
                f"patch_size={patch_size} was asked for, and this model was not made for many patch sizes"
                f"{f' but for {has} alone' if has else ''}: leave it out"
            )
        assert self.preprocess is not None
        height, width = self.preprocess.size
        valid = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
        if patch_size not in valid:
            raise ValueError(
                f"patch_size={patch_size} does not divide this model's pictures of {height}x{width} pixels: "
                f"valid: {', '.join(map(str, valid))}"
            )

    def _embed_images(self, pictures: Sequence[Any], start: int, patch_size: int | None = None) -> Tensor:
        read = ReadPicture(self.preprocess, start)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            pixels = torch.stack(list(pool.map(read, range(len(pictures)), pictures)))
        tower = self.model.image if self.config["kind"] == "dual_encoder" else self.model
        chosen = {} if patch_size is None else {"patch_size": patch_size}
        with self._autocast():
            return normalize(tower(pixels.to(self.device), **chosen).float(), dim=-1).cpu()

    def _embed_texts(self, texts: Sequence[Any], start: int) -> Tensor:
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {start + i} is a {type(text).__name__}, expected str")
        assert self.tokenizer is not None
        tokens = self.tokenizer(list(texts))
        if tokens.truncated:
            limit = self.tokenizer.context_length
            log.warning("%d of %d texts were cut to %d tokens", tokens.truncated, len(texts), limit)
        tower = self.model if self.config["kind"] == "text_tower" else self.model.text
        if tower.config.pool != "last" and (tower.config.pad_mask or tower.config.core.causal):
            tokens = tokens.trim()  # nothing looks at the padding, so it need not be computed
        with self._autocast():
            out = tower(tokens.ids.to(self.device), tokens.mask.to(self.device))
        return normalize(out.float(), dim=-1).cpu()


class Prediction(NamedTuple):
    """A class and how probable it is, 0..1, as the model was trained to say it."""

    label: str
    score: float


class ZeroShotClassifier:
    """Names pictures (or texts) with classes that are given as words.

    Class embeddings are computed once and kept; see `evaluators.prompts` for how.

    Args:
        model: an image-text model.
        classes: labels, or label -> synonyms, all of which stand for it.
        templates: "default", another named set, or a list of texts with {} for the name.
        batch_size: prompts embedded at a time.

    Raises:
        ValueError: no class, a class twice, a template without {}, or a model without text.

    Example:
        >>> clf = ZeroShotClassifier(model, {"cat": ["cat", "kitten"], "dog": ["dog"]})   # doctest: +SKIP
        >>> clf.predict(["photo.jpg"], top_k=1)[0][0].label
    """

    def __init__(
        self,
        model: Embedder,
        classes: Classes,
        templates: str | Sequence[str] = "default",
        batch_size: int = 256,
    ) -> None:
        if "text" not in model.modalities:
            raise ValueError(
                f"a zero-shot classifier needs a model that reads text, this one embeds {model.modalities}"
            )
        self.model, self.templates, self.batch_size = model, templates, batch_size
        self.classes = resolve_classes(classes)
        self.embeddings = self._embed(self.classes)

    @property
    def labels(self) -> list[str]:
        """The C class names in the order of the logits' columns."""
        return list(self.classes)

    def add_classes(self, classes: Classes) -> None:
        """Nothing; appends classes, embedding only the new ones.

        Raises:
            ValueError: a label that is there already.
        """
        new = resolve_classes(classes)
        if twice := [label for label in new if label in self.classes]:
            raise ValueError(f"class {twice[0]!r} is already there; remove it first to give it other names")
        self.embeddings = torch.cat([self.embeddings, self._embed(new)])
        self.classes = self.classes | new

    def remove_classes(self, labels: Sequence[str]) -> None:
        """Nothing; takes classes out.

        Raises:
            ValueError: an unknown label, or no class would be left.
        """
        labels = [labels] if isinstance(labels, str) else labels
        for label in labels:
            if label not in self.classes:
                raise ValueError(f"no class {label!r}: {nearest(label, self.classes)}")
        keep = [i for i, label in enumerate(self.classes) if label not in labels]
        if not keep:
            raise ValueError("no class would be left: a classifier needs at least one")
        self.embeddings = self.embeddings[keep]
        self.classes = {label: names for label, names in self.classes.items() if label not in labels}

    def logits(self, inputs: Any, modality: str = "image", batch_size: int = 64) -> Tensor:
        """(N,C) float32: cosine x temperature (+ bias), columns in the order of `labels`.

        Args:
            inputs: what `Embedder.encode` takes for that modality, or embeddings (N,E) made before.
            modality: "image", or "text" to sort texts.
            batch_size: inputs computed at a time.
        """
        if not (isinstance(inputs, Tensor) and inputs.ndim == 2):
            inputs = self.model.encode(**{modality: inputs}, batch_size=batch_size)
        return self.model.logits(inputs, self.embeddings)

    def predict(
        self, inputs: Any, modality: str = "image", top_k: int = 5, batch_size: int = 64
    ) -> list[list[Prediction]]:
        """For each input its `top_k` (at most C) classes, best first, with probabilities.

        Args:
            inputs: as `logits` takes them.
            modality: likewise.
            top_k: at least 1.
            batch_size: likewise.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        logits = self.logits(inputs, modality, batch_size)
        sigmoid = getattr(self.model.model.config, "activation", "softmax") == "sigmoid"
        scores = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)
        # Ordered by the logits: far-away probabilities of a sigmoid may all round to the same number.
        best = logits.topk(min(top_k, len(self.classes)), dim=-1).indices
        labels = self.labels
        return [
            [Prediction(labels[c], scores[n, c].item()) for c in row] for n, row in enumerate(best.tolist())
        ]

    def _embed(self, classes: Classes) -> Tensor:
        def encode(prompts: list[str]) -> Tensor:
            return self.model.encode(text=prompts, batch_size=self.batch_size)

        return class_embeddings(encode, classes, self.templates)


def _steps(count: int, batch_size: int, show_progress: bool) -> Iterator[int]:
    """Starts of the batches, drawn as a progress bar on a terminal."""
    starts = range(0, count, batch_size)
    if not show_progress:
        yield from starts
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(starts, "encoding", console=console, disable=not console.is_terminal)
