"""A saved model, ready to embed: pictures, clips, sounds and texts -> rows that can be compared.

Shape letters: N inputs, V windows of an input, E embedding dim.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmvit.api.ways import Way, ways_of
from mmvit.data.inputs import as_list, reader
from mmvit.errors import nearest
from mmvit.hub.folder import Loaded
from mmvit.hub.folder import load as load_folder
from mmvit.hub.folder import save as save_folder

log = logging.getLogger(__name__)

_AT_ONCE = {"video": 8}  # a clip weighs as much as its frames
_OFTEN = 64


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

    Attributes:
        modalities: what `encode` takes, in the order of the model's config.
        embed_dim: E of the default space.
        fingerprint: of model and preprocessing together.

    Raises:
        ValueError: a model that does not embed (a classifier, a tower saved without its preprocessing).
    """

    def __init__(
        self, loaded: Loaded, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        kind = loaded.config["kind"]
        self.model: Any = loaded.model.to(device).eval()
        self.preprocess, self.tokenizer = loaded.preprocess, loaded.tokenizer
        self.config, self.fingerprint = loaded.config, loaded.fingerprint
        self.ways: dict[str, Way] = ways_of(kind, loaded.model, loaded.preprocess)
        if not self.ways:
            lacks = ", or save it with its preprocessing" if kind.endswith("_tower") else ""
            raise ValueError(f"a {kind} does not embed; read it with mmvit.hub.load{lacks}")
        self.modalities: tuple[str, ...] = tuple(self.ways)
        self.device, self.dtype = torch.device(device), dtype
        self.embed_dim: int = loaded.model.embed_dim  # type: ignore[assignment]

    @torch.no_grad()
    def encode(
        self,
        *,
        image: Any = None,
        text: Any = None,
        video: Any = None,
        audio: Any = None,
        space: str | None = None,
        views: int = 1,
        keep_rate: float | None = None,
        batch_size: int | None = None,
        show_progress: bool = False,
        patch_size: int | None = None,
        **other: Any,
    ) -> Tensor:
        """Embeddings (N,E) float32, L2-normalised, on the CPU, in the order of the inputs.

        Args:
            image: pictures: PIL pictures, paths, bytes, or uint8 arrays (H,W), (H,W,3), (H,W,4); one of them
                alone counts as a list of one. Transparency is laid over the model's background colour.
            text: texts; longer ones than the model's context are cut, and how many is logged.
            video: clips: paths, bytes, or pairs of frames, uint8 (T,H,W,3), and how many go by in a second.
            audio: sounds: paths, bytes (of a clip too: its sound is taken), or pairs of a waveform, floating
                -1..1, (S,) or (S,channels), and its rate in Hz.
            space: of a model with several: "vt", where every modality is, or "va", finer, for clips, pictures
                and sounds; None = "vt".
            views: windows of the model's length, spread evenly over a clip or a sound; their embeddings are
                averaged before they are normalised. 1 = the one in the middle.
            keep_rate: share of a clip's, sound's or picture's tokens that is computed, above 0 to 1, of a
                model trained with tokens dropped: less work, less exact. The same ones every time.
            batch_size: inputs (windows) held and computed at a time; None = 64, of clips 8.
            show_progress: draw a progress bar where the output is a terminal.
            patch_size: side of the patches in pixels that pictures are cut into, of a model made for many
                (FlexiViT): larger ones take less time and see less; None = the one it is stored with.
            other: any other modality, refused by name.

        Raises:
            ValueError: none or several modalities, one that the model lacks, an input that cannot be read, a
                space in which the modality is not, a patch size, keep rate or number of views that cannot be.
            FileNotFoundError: a path that is not there.
        """
        seen = {"image": image, "text": text, "video": video, "audio": audio, **other}
        given = {k: v for k, v in seen.items() if v is not None}
        modality = self._modality(given)
        space = self._space(space, modality)
        batch_size = _AT_ONCE.get(modality, _OFTEN) if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self._check_options(modality, views, keep_rate)
        if patch_size is not None:
            self._check_patch_size(patch_size, modality)
        options = {"patch_size": patch_size, "keep_rate": keep_rate}
        inputs = as_list(modality, given[modality])
        step = max(1, batch_size // views)
        rows = [
            self._embed(modality, inputs[i : i + step], i, space, views, options)
            for i in _steps(len(inputs), step, show_progress)
        ]
        return torch.cat(rows) if rows else torch.empty(0, self.width(space))

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """How well rows of a (A,E) go with rows of b (B,E), as trained: (A,B) float32 in 0..1.

        A softmax model gives probabilities over b that sum to 1 per row; a sigmoid model gives each pair its
        own. A tower alone has no temperature and gives cosines in -1..1.

        Raises:
            ValueError: the embeddings are not (.,E), or of two spaces.
        """
        logits = self.logits(a, b)
        if self.config["kind"] not in ("dual_encoder", "vatt"):
            return logits
        sigmoid = getattr(self.model.config, "activation", "softmax") == "sigmoid"
        return logits.sigmoid() if sigmoid else logits.softmax(dim=-1)

    @torch.no_grad()
    def logits(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosines of a (A,E) and b (B,E) under the model's temperature and bias, (A,B) float32 on the CPU."""
        widths = {self.width(space): None for way in self.ways.values() for space in way.spaces}
        if a.ndim == 2 and a.shape[1] in widths:
            widths = {a.shape[1]: None}
        for name, x in (("a", a), ("b", b)):
            if x.ndim != 2 or x.shape[1] not in widths:
                valid = " or ".join(f"(rows, {width})" for width in widths)
                raise ValueError(f"{name} is {tuple(x.shape)}, expected {valid} embeddings")
        cosine = normalize(a.float().cpu(), dim=-1) @ normalize(b.float().cpu(), dim=-1).T
        if self.config["kind"] == "vatt":
            return cosine / self.model.config.temperature
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

    def _space(self, space: str | None, modality: str) -> str:
        spaces = self.ways[modality].spaces
        if space is None:
            return spaces[0]
        if space not in spaces or not space:
            valid = f"valid: {', '.join(spaces)}" if spaces[0] else "this model has one space, leave it out"
            raise ValueError(f"space={space!r}: '{modality}' is not there; {valid}")
        return space

    def width(self, space: str | None = None) -> int:
        """E of a space, None = the default one."""
        if self.config["kind"] == "vatt" and space == "va":
            return self.model.config.va_dim
        return self.embed_dim

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else nullcontext()

    def _check_options(self, modality: str, views: int, keep_rate: float | None) -> None:
        """Raises ValueError for a number of windows or a share of tokens that cannot be."""
        if views < 1 or (views > 1 and modality not in ("video", "audio")):
            valid = "at least 1" if modality in ("video", "audio") else f"1 where '{modality}' is encoded"
            raise ValueError(f"views is {views}, expected {valid}")
        if keep_rate is None:
            return
        if modality == "text" or not hasattr(self.ways[modality].tower, "patch_embed"):
            raise ValueError(
                f"keep_rate={keep_rate} was asked for, and '{modality}' has no tokens to leave out"
            )
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate is {keep_rate}, expected above 0 to 1")

    def _check_patch_size(self, patch_size: int, modality: str) -> None:
        """Raises ValueError for a patch size that cannot be used here."""
        if modality != "image":
            raise ValueError(f"patch_size={patch_size} is for pictures, and this call encodes '{modality}'")
        way = self.ways["image"]
        if getattr(way.tower.config, "patch_resample", None) is None:
            has = getattr(way.tower.config, "patch_size", None)
            raise ValueError(
                f"patch_size={patch_size} was asked for, and this model was not made for many patch sizes"
                f"{f' but for {has} alone' if has else ''}: leave it out"
            )
        height, width = way.prepare.size
        valid = [p for p in range(1, min(height, width) + 1) if height % p == width % p == 0]
        if patch_size not in valid:
            raise ValueError(
                f"patch_size={patch_size} does not divide this model's pictures of {height}x{width} pixels: "
                f"valid: {', '.join(map(str, valid))}"
            )

    def _embed(
        self,
        modality: str,
        inputs: Sequence[Any],
        start: int,
        space: str,
        views: int,
        options: dict[str, Any],
    ) -> Tensor:
        """The embeddings (N,E) of inputs of which the first has number `start`."""
        way = self.ways[modality]
        if modality == "text":
            with self._autocast():
                z = way.finish(way.tower(*self._tokens(inputs, start, way.tower)))[space]
            return normalize(z.float(), dim=-1).cpu()
        read = reader(modality, way.prepare, start, views)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            windows = list(pool.map(read, range(len(inputs)), inputs))
        x = torch.cat(windows).to(self.device)
        x = x if way.still is None else way.still(x)
        with self._autocast():
            z = way.finish(way.tower(x, **_chosen(way.tower, x, **options)))[space].float()
        z = torch.stack([rows.mean(0) for rows in z.split([len(w) for w in windows])])
        return normalize(z, dim=-1).cpu()

    def _tokens(self, texts: Sequence[Any], start: int, tower: Any) -> tuple[Tensor, Tensor]:
        """(ids, mask), each (N,L), on the model's device."""
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {start + i} is a {type(text).__name__}, expected str")
        assert self.tokenizer is not None
        tokens = self.tokenizer(list(texts))
        if tokens.truncated:
            limit = self.tokenizer.context_length
            log.warning("%d of %d texts were cut to %d tokens", tokens.truncated, len(texts), limit)
        if getattr(tower, "ignores_padding", False):
            tokens = tokens.trim()  # nothing looks at the padding, so it need not be computed
        return tokens.ids.to(self.device), tokens.mask.to(self.device)


def _chosen(tower: Any, x: Tensor, patch_size: int | None, keep_rate: float | None) -> dict[str, Any]:
    """What the tower is told beside its inputs x (B,...)."""
    chosen: dict[str, Any] = {} if patch_size is None else {"patch_size": patch_size}
    if keep_rate is not None and keep_rate < 1:
        stem = tower.patch_embed(x[:1]) if patch_size is None else tower.patch_embed(x[:1], patch_size)
        count = stem.values.shape[1]
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        keep = drawn[: max(1, int(keep_rate * count))].sort().values
        chosen["keep"] = keep.expand(len(x), -1).to(x.device)
    return chosen


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
