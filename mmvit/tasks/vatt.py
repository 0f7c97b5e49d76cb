"""Contrastive training of video, audio and text together: three towers, common spaces, NCE and MIL-NCE.

Rows may lack modalities; each loss is the mean over the rows that have both of its own. A row's visual side
is its clip, else its picture, standing still.
Shape letters: b rows of this rank, n rows that have a modality, P candidates, L text length, D width of
features, N grid tokens, K kept ones.
Source: VATT (arXiv:2104.11178) and its repository (google-research/vatt).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmvit.errors import UserError
from mmvit.heads.spaces import FineCoarse
from mmvit.losses.mil_nce import Equals, Normalization, mil_nce_chance, mil_nce_terms
from mmvit.models.config import AudioTowerConfig, TowerConfig, VideoTowerConfig, WaveformTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.stem import tower_grid
from mmvit.models.vatt import Vatt
from mmvit.tokens.select import drop_tokens
from mmvit.types import Batch

MODALITIES = ("video", "audio", "text")
TERMS = {"va": ("video", "audio"), "vt": ("video", "text"), "at": ("audio", "text")}


class VattTask(nn.Module):
    """task(batch) -> {"loss", "loss_va", "loss_vt", …, "va_top1", "va_top1_audio", …, "rows_video", …}.

    The total is the mean of the terms by their weights. "vt_top1" is the share of the clips whose best text
    is one of their own, "vt_top1_text" of the rows whose texts' best clip is their own, rows of equal
    `batch.group` left aside; "rows_audio" is the share of rows with sound.

    Args:
        model: towers and spaces.
        weights: of the terms, 0 or absent = left out: "va" video and audio in S_va, "vt" video and text in
            S_vt, "at" audio and text in S_vt.
        keep_rate: share of a clip's or picture's tokens that a step computes (DropToken), above 0, to 1.
        audio_keep_rate: the same of sounds.
        shared_drop: one subset for the whole batch in place of one for each row.
        symmetric: see `mil_nce_loss`.
        duplicates: what rows of equal `batch.group` are to each other, "negative" or "mask".
        normalization: of the losses over ranks, see `mil_nce_loss`.
        num_candidates: P; rows with fewer texts have missing ones, further texts are not read.
        seed: of the kept tokens, which depend on it, on the batch's position and on the row's key only: they
            are the same on any number of ranks, with micro-batches, and in a run that was resumed.

    Raises:
        ValueError: a term without a name here, no weight above 0, a rate outside 0..1, an unknown mode.
    """

    def __init__(
        self,
        model: Vatt,
        weights: Mapping[str, float] | None = None,
        keep_rate: float = 0.5,
        audio_keep_rate: float = 0.5,
        shared_drop: bool = False,
        symmetric: bool = False,
        duplicates: Equals = "negative",
        normalization: Normalization = "global",
        num_candidates: int = 5,
        seed: int = 0,
    ):
        super().__init__()
        weights = {"vt": 1.0, "va": 1.0} if weights is None else dict(weights)
        _check(weights, keep_rate, audio_keep_rate, duplicates, num_candidates)
        self.model = model
        self.weights = {name: weights[name] for name in TERMS if weights.get(name, 0.0) > 0}
        used = {modality for name in self.weights for modality in TERMS[name]}
        self.modalities = tuple(m for m in MODALITIES if m in used)
        self.keep_rates = {"video": keep_rate, "audio": audio_keep_rate}
        self.shared_drop, self.seed = shared_drop, seed
        self.symmetric, self.duplicates, self.normalization = symmetric, duplicates, normalization
        self.num_candidates = num_candidates

    def idle(self) -> list[str]:
        r"""Patterns of the parameters ("model\.audio\..*") that no term reaches: a run has to freeze them."""
        names = [m for m in MODALITIES if m not in self.modalities]
        core = r"(?!core\.)" if self.model.config.shared else ""  # a shared core is never idle
        found = [rf"model\.{name}\.{core}.*" for name in names]
        if not isinstance(self.model.spaces, FineCoarse):
            return found + [rf"model\.spaces\.(maps|norms)\.{name}\..*" for name in names]
        own = {"video": "video_.*", "audio": r"audio_va\..*", "text": r"text_vt\..*"}
        found += [rf"model\.spaces\.{own[name]}" for name in names]
        return found if "text" in self.modalities else [*found, r"model\.spaces\.va_vt.*"]

    def precompute(self, batch: Batch) -> Batch:
        """`batch` as it was: nothing is cached."""
        return batch

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """The towers' features before the spaces: video (b,D), audio (b,D), text (b,P,D), those with a term.

        Rows that lack a modality hold zeros: towers run on the others. Where none has it they run on one
        blank row that weighs nothing, so that every step touches the same parameters on all ranks.
        """
        calls = {"video": self._video, "audio": self._audio, "text": self._text}
        return tuple(calls[modality](batch) for modality in self.modalities)

    def loss(self, embeddings: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """The loss of this rank's rows against all ranks' and the metrics, scalars all.

        The spaces are part of it, since their norms look at the whole batch.
        """
        device = embeddings[0].device
        has = {name: self._has(name, batch, device) for name in self.modalities}
        spaces = {}
        for name, features in zip(self.modalities, embeddings, strict=True):
            rows = has[name].flatten().nonzero().squeeze(1)  # only these may count in the norms
            vectors = getattr(self.model.spaces, name)(features.flatten(0, -2)[rows])
            spaces[name] = {space: _scattered(z, rows, has[name].shape) for space, z in vectors.items()}
        out: dict[str, Tensor] = {}
        for term in self.weights:
            one, other = TERMS[term]
            space = "va" if term == "va" else "vt"
            second, there = spaces[other][space], has[other]
            terms = mil_nce_terms(
                spaces[one][space],
                second if second.ndim == 3 else second[:, None],
                candidates=there if there.ndim == 2 else there[:, None],
                video_valid=has[one],
                temperature=self.model.config.temperature,
                symmetric=self.symmetric,
                normalization=self.normalization,
                same=batch.group,
                duplicates=self.duplicates,
            )
            out[f"loss_{term}"] = terms.loss
            out[f"{term}_top1"] = (terms.hits * terms.share).sum()
            out[f"{term}_top1_{other}"] = (terms.hits_back * terms.share).sum()
        parts = [weight * out[f"loss_{term}"] for term, weight in self.weights.items()]
        for name, there in has.items():
            rows = there.any(1) if there.ndim == 2 else there
            out[f"rows_{name}"] = rows.double().mean()
        return {"loss": torch.stack(parts).sum() / sum(self.weights.values()), **out}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss and metrics of a batch."""
        return self.loss(self.embed(batch), batch)

    def loss_parameters(self) -> list[nn.Parameter]:
        """Those of the spaces, which `loss` applies."""
        return [p for p in self.model.spaces.parameters() if p.requires_grad]

    def chance(self, batch_size: int) -> float:
        """The loss of vectors that are all equal, for `batch_size` rows on all ranks that lack nothing."""
        return mil_nce_chance(batch_size, self.symmetric)

    def after_step(self) -> None:
        """Nothing: no parameter is bound to a range."""

    def _has(self, modality: str, batch: Batch, device: torch.device) -> Tensor:
        """(b,) bool, of texts (b,P): what a row has."""
        if modality == "text":
            return self._texts(batch, device)[2]
        if modality == "audio":
            return _present(batch.audio, batch.audio_mask, len(batch), device)
        clips = _present(batch.video, batch.video_mask, len(batch), device)
        return clips | _present(batch.image, batch.image_mask, len(batch), device)

    def _video(self, batch: Batch) -> Tensor:
        """Features (b,D); one run for clips and one for pictures, where the batch has the field.

        So all ranks run equally often: they bring sharded weights together in every block.
        """
        b, device, config = len(batch), _device(self.model.video), self.model.config.video
        clips = _present(batch.video, batch.video_mask, b, device)
        stills = _present(batch.image, batch.image_mask, b, device) & ~clips
        size = config.patch_size if config.stem is None else config.clip_size
        parts = []
        if batch.video is not None or batch.image is None:
            parts.append(self._run("video", batch, batch.video, clips, size))
        if batch.image is not None:
            parts.append(self._run("video", batch, self.model.still(batch.image), stills, size))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _audio(self, batch: Batch) -> Tensor:
        config = self.model.config.audio
        size = (config.samples,) if isinstance(config, WaveformTowerConfig) else config.spectrogram_size
        has = _present(batch.audio, batch.audio_mask, len(batch), _device(self.model.audio))
        return self._run("audio", batch, batch.audio, has, size)

    def _text(self, batch: Batch) -> Tensor:
        tower = self.model.text
        ids, real, has = self._texts(batch, _device(tower))
        rows = has.flatten().nonzero().squeeze(1)
        with _gradients(tower):
            if not len(rows):
                word = torch.ones(1, 1, dtype=torch.bool, device=ids.device)
                return 0.0 * tower(ids.new_zeros(1, 1), word).expand(*has.shape, -1)
            mask = None if real is None else real.flatten(0, 1)[rows]
            return _scattered(tower(ids.flatten(0, 1)[rows], mask), rows, has.shape)

    def _texts(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
        """Ids (b,P,L), their mask (b,P,L) or None, and which texts are there (b,P)."""
        P, b = self.num_candidates, len(batch)
        ids, real, has = batch.candidates, batch.candidates_mask, batch.candidate_mask
        if ids is None and batch.text is not None:
            ids, has = batch.text[:, None], None
            real = None if batch.text_mask is None else batch.text_mask[:, None]
        if ids is None:
            ids, real, has = (
                torch.zeros(b, P, 1, dtype=torch.int64),
                None,
                torch.zeros(b, P, dtype=torch.bool),
            )
        if has is None:  # a text without a word is none
            has = torch.ones(ids.shape[:2], dtype=torch.bool) if real is None else real.any(-1)
        ids, has = _columns(ids.to(device), P), _columns(has.to(device), P)
        return ids, None if real is None else _columns(real.to(device), P), has

    def _run(
        self, modality: str, batch: Batch, x: Tensor | None, has: Tensor, blank: tuple[int, ...]
    ) -> Tensor:
        """Features (b,D) of the rows of x that `has` (b,) names, zeros elsewhere.

        Where it names none, the zeros depend on all of the tower's parameters, at the price of one token of a
        blank input of the extent `blank`.
        """
        tower = getattr(self.model, modality)
        rows = has.nonzero().squeeze(1)
        with _gradients(tower):
            if x is None or not len(rows):
                channels = (3,) if modality == "video" else ()
                x = torch.zeros(1, *channels, *blank, device=has.device)
                keep = torch.zeros(1, 1, dtype=torch.int64, device=has.device) if _sparse(tower) else None
                return 0.0 * tower(x, keep).expand(len(has), -1)
            x = x if len(rows) == len(x) else x[rows]
            keep = self._keep(modality, tower, x, batch, rows)
            return _scattered(tower(x, keep), rows, (len(has),))

    def _keep(self, modality: str, tower: Any, x: Tensor, batch: Batch, rows: Tensor) -> Tensor | None:
        """(n,K) int64 tokens that a step computes of x (n,…), the batch's `rows` (n,); None = all.

        Raises:
            UserError: a tower that cannot compute some of its tokens only.
        """
        rate = self.keep_rates[modality]
        if not tower.training or rate == 1:
            return None
        whole = None if _sparse(tower) else "core computes whole grids only"
        if getattr(tower.patch_embed, "skip_silence", False):
            whole = "stem leaves out silence by itself"
        if whole:
            option = "--loss.keep-rate" if modality == "video" else "--loss.audio-keep-rate"
            raise UserError(
                f"the {modality} tower's {whole}, and {rate:g} of the tokens were to stay: set {option} to 1"
            )
        names = [""] * len(rows) if self.shared_drop else [batch.keys[i] for i in rows.tolist()]
        label = f"{self.seed}:{batch.position}:{modality}"
        return kept_tokens(names, label, math.prod(_grid(tower.config, x)), rate).to(x.device)


def kept_tokens(keys: Sequence[str], label: str, N: int, rate: float) -> Tensor:
    """(n,K) int64 ascending indices of the K = int(rate * N), at least 1, tokens that each row keeps.

    Args:
        keys: of the rows; a row's subset depends on its key and `label` only.
        label: what else it depends on.
        N: tokens of a row.
        rate: 0..1.
    """
    drawn: dict[str, Tensor] = {}
    for key in keys:
        if key not in drawn:
            digest = hashlib.blake2b(
                f"{label}:{key}".encode(errors="surrogateescape"), digest_size=8
            ).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            drawn[key] = torch.rand(N, generator=generator)
    noise = torch.stack([drawn[key] for key in keys])
    return drop_tokens(noise, max(rate, 1 / N))


def _present(field: Tensor | None, mask: Tensor | None, b: int, device: torch.device) -> Tensor:
    """(b,) bool: which rows have the modality of a batch's field."""
    if field is None or mask is None:
        return torch.full((b,), field is not None, dtype=torch.bool, device=device)
    return mask.to(device)


def _scattered(features: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """(*shape,D) with the features (n,D) in the flat places `rows` (n,), zeros elsewhere."""
    full = features.new_zeros(math.prod(shape), features.shape[-1])
    return full.index_copy(0, rows, features).unflatten(0, tuple(shape))


def _columns(x: Tensor, P: int) -> Tensor:
    """(b,P,…) of x (b,p,…): zeros behind, or the first P."""
    missing = x.new_zeros(len(x), max(0, P - x.shape[1]), *x.shape[2:])
    return torch.cat([x[:, :P], missing], 1)


def _grid(config: TowerConfig, x: Tensor) -> tuple[int, ...]:
    """The token grid of inputs like x."""
    if isinstance(config, VideoTowerConfig):
        T, H, W = x.shape[2:]
        return tower_grid(dataclasses.replace(config, clip_size=(T, H, W)))
    if isinstance(config, WaveformTowerConfig):
        return tower_grid(dataclasses.replace(config, samples=x.shape[1]))
    assert isinstance(config, AudioTowerConfig)
    return tower_grid(dataclasses.replace(config, spectrogram_size=(x.shape[1], x.shape[2])))


def _sparse(tower: Any) -> bool:
    """Whether a tower's core takes some of the tokens for all of them."""
    return isinstance(tower.config.core, CoreConfig)


def _gradients(tower: nn.Module) -> AbstractContextManager[object]:
    """No gradients through a tower that learns nothing: its activations need not be kept."""
    return nullcontext() if any(p.requires_grad for p in tower.parameters()) else torch.no_grad()


def _device(tower: nn.Module) -> torch.device:
    return next(tower.parameters()).device


def _check(
    weights: Mapping[str, float],
    keep_rate: float,
    audio_keep_rate: float,
    duplicates: str,
    num_candidates: int,
) -> None:
    if unknown := set(weights) - set(TERMS):
        raise ValueError(f"weights name the terms {', '.join(TERMS)}, got '{sorted(unknown)[0]}'")
    if any(not w >= 0 or math.isinf(w) for w in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights are at least 0 and one is above, got {dict(weights)}")
    for name, rate in (("keep_rate", keep_rate), ("audio_keep_rate", audio_keep_rate)):
        if not 0 < rate <= 1:
            raise ValueError(f"{name} is the share of tokens that stay, above 0 to 1, got {rate}")
    if duplicates not in ("negative", "mask"):
        raise ValueError(f"duplicates is 'negative' or 'mask', got '{duplicates}'")
    if num_candidates < 1:
        raise ValueError(f"num_candidates is at least 1, got {num_candidates}")
