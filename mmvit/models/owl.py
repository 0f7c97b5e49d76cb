"""An open-vocabulary detector: every token of the image tower is a candidate, every text a query.

Shape letters: B batch, N = h*w grid tokens, D width, E embedding width, Q queries, L text length.
Source: OWL-ViT (arXiv:2205.06230) section 3; OWLv2 (arXiv:2306.09683) for the objectness.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mmvit.core.mlp import ACTIVATIONS
from mmvit.heads.detect import MISSING, BoxHead, ClassHead, MergeClass, box_bias, grid_mask, query_logits
from mmvit.models.build import build_image_tower, build_text_tower
from mmvit.models.config import DetectorConfig, ForeignImageTowerConfig, ImageTowerConfig
from mmvit.models.core_config import CaitConfig
from mmvit.models.text import TextTower
from mmvit.types import Candidates, Encoded, Located


class OwlDetector(nn.Module):
    """Pictures and queries -> logits of every query at every token, and a box for every token.

    State dict: `image.*`, `text.*`, `merge.norm.*`, `class_head.{dense,logit_shift,logit_scale}.*`,
    `box_head.dense{0,1,2}.*`, `objectness_head.dense{0,1,2}.*`.

    Args:
        config: what to build.
        image: the image tower to use, None = a new one from the config.
        text: likewise.

    Raises:
        ValueError: an image tower with a head or with parameters that would learn nothing, a peer's tower
            that does not serve tokens, or an unknown way of merging or biasing.
    """

    def __init__(self, config: DetectorConfig, image: Any = None, text: TextTower | None = None) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.image: Any = build_image_tower(config.image) if image is None else image
        self.text = build_text_tower(config.text) if text is None else text
        if config.image.embed_dim is not None or any(True for _ in _pool_parameters(self.image)):
            raise ValueError(
                "the image tower of a detector has no head and no pooling of its own: see models.surgery"
            )
        width, embed_dim = self.image.width, self.text.embed_dim
        self.reads_class = config.merge == "mul_ln" and _has_class(config.image)
        norms = self.reads_class or config.merge == "norm"
        self.merge = MergeClass(width, config.merge_eps) if norms else None
        self.class_head = ClassHead(width, embed_dim, config.prior)
        activation = ACTIVATIONS[config.activation]
        self.box_head = BoxHead(width, 4, activation, zero=True)
        self.objectness_head = BoxHead(width, 1, activation) if config.objectness else None
        self._bias: dict[tuple[Any, ...], Tensor] = {}

    @property
    def embed_dim(self) -> int:
        """E, the width of class embeddings and queries."""
        return self.text.embed_dim

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory in both towers; a peer's image tower that cannot is left as it is."""
        for tower in (self.image, self.text):
            switch = getattr(tower, "set_checkpointing", None)
            if switch is not None:
                switch(on)

    def encode_image(self, pixels: Tensor, regions: Tensor | None = None) -> Candidates:
        """The candidates of each picture; nothing in them depends on a query.

        Args:
            pixels: (B,3,H,W) uint8 0..255, or float already normalised; any size that the tower takes.
            regions: (B,R,4) xyxy fractions of the tensor that pictures cover, None = all of it.
        """
        encoded, mask = self._encode(pixels, regions)
        grid = (encoded.grid[0], encoded.grid[1])
        tokens = encoded.values[:, encoded.prefix :]
        if self.merge is not None:
            tokens = self.merge(tokens, encoded.values[:, 0] if self.reads_class else None)
        embeddings, shift, scale = self.class_head(tokens)
        boxes = (self.box_head(tokens) + self._box_bias(grid, tokens.device)).sigmoid()
        objectness = None
        if self.objectness_head is not None:
            objectness = self.objectness_head(tokens.detach()).squeeze(-1)
        return Candidates(embeddings, shift, scale, boxes, grid, objectness, mask)

    def encode_queries(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Query embeddings (...,E), at least float32, not normalised; equal rows are computed once.

        Args:
            ids: (...,L) int64 token ids.
            mask: (...,L) bool, True = real token, None = all real, or as `config.clip_ids` says.
        """
        if mask is None and self.config.clip_ids:
            mask = torch.arange(ids.shape[-1], device=ids.device) <= ids.argmax(-1, keepdim=True)
        shape, L = ids.shape[:-1], ids.shape[-1]
        if not ids.numel():
            return ids.new_zeros(*shape, self.embed_dim, dtype=torch.float32)
        rows = ids.reshape(-1, L)
        if mask is not None:  # equal ids under another mask are another query
            rows = torch.cat([rows, mask.reshape(-1, L).to(rows.dtype)], dim=1)
        unique, back = rows.unique(dim=0, return_inverse=True)
        real = None if mask is None else unique[:, L:].bool()
        if real is not None:  # a row that is all padding is no query; attention to nothing would be NaN
            real[:, 0] |= ~real.any(1)
        return self.text(unique[:, :L], real)[back].reshape(*shape, -1)

    def score(self, candidates: Candidates, queries: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Logits (B,N,Q), at least float32; -1e6 at missing queries and at tokens on padding.

        Args:
            candidates: of B pictures.
            queries: (Q,E) the same for all pictures, or (B,Q,E) each picture's own; any length.
            query_mask: (B,Q) or (Q,) bool, True = real query, None = all real.
        """
        c = candidates
        logits = query_logits(c.embeddings, c.shift, c.scale, queries)
        if query_mask is not None:
            logits = logits.masked_fill(~query_mask.unsqueeze(-2), MISSING)
        if c.mask is not None:
            logits = logits.masked_fill(~c.mask[..., None], MISSING)
        return logits

    def forward(
        self,
        pixels: Tensor,
        ids: Tensor,
        ids_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        regions: Tensor | None = None,
    ) -> Located:
        """Logits (B,N,Q) and boxes (B,N,4) of pictures and their queries.

        Args:
            pixels: as `encode_image` takes them.
            ids: (B,Q,L) int64, or (Q,L) the same for all pictures.
            ids_mask: likewise, bool, as `encode_queries` takes it.
            query_mask: as `score` takes it.
            regions: as `encode_image` takes them.
        """
        if query_mask is None and ids_mask is None and self.config.clip_ids:
            query_mask = ids[..., 0] > 0
        candidates = self.encode_image(pixels, regions)
        logits = self.score(candidates, self.encode_queries(ids, ids_mask), query_mask)
        return Located(logits, candidates.boxes, candidates.objectness, candidates)

    def _encode(self, pixels: Tensor, regions: Tensor | None) -> tuple[Encoded, Tensor | None]:
        """Encoded tokens and the mask (B,N) of those that see the picture."""
        if not isinstance(self.config.image, ImageTowerConfig):
            encoded = self.image.forward_tokens(pixels)
        else:
            tokens = self.image.tokens(pixels)
            if regions is not None and self.config.hide_padding:
                mask = grid_mask(regions, tokens.grid)
                mask = mask | ~mask.any(1, keepdim=True)  # attention to nothing would be NaN
                special = mask.new_ones(len(mask), tokens.prefix)
                tokens = dataclasses.replace(tokens, mask=torch.cat([special, mask], dim=1))
            encoded = self.image.core(tokens)
        return encoded, None if regions is None else grid_mask(regions, encoded.grid)

    def _box_bias(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """(N,4), made once for a grid and device; anew under a tracer."""
        key = (*grid, device)
        if key in self._bias:
            return self._bias[key]
        bias = box_bias(grid, self.config.box_bias, device)
        if not torch.compiler.is_compiling():
            self._bias = {key: bias}
        return bias


def _check(config: DetectorConfig) -> None:
    """Raises ValueError for a detector that cannot be."""
    image = config.image
    if config.merge not in ("mul_ln", "norm", "drop"):
        raise ValueError(f"merge is '{config.merge}', expected mul_ln, norm or drop")
    if config.box_bias not in ("corner", "center"):
        raise ValueError(f"box_bias is '{config.box_bias}', expected corner or center")
    if isinstance(image, ForeignImageTowerConfig) and not image.tokens:
        raise ValueError(f"the tower {image.name} pools, expected tokens=True: see models.surgery")
    if (
        isinstance(image, ImageTowerConfig)
        and isinstance(image.core, CaitConfig)
        and config.merge != "mul_ln"
    ):
        raise ValueError(
            f"merge is '{config.merge}', but the class blocks of a CaiT would then learn nothing: use mul_ln"
        )


def _has_class(image: Any) -> bool:
    """Whether the first token that comes out of the core is a class token."""
    if not isinstance(image, ImageTowerConfig):
        return False
    return image.class_token or isinstance(image.core, CaitConfig)


def _pool_parameters(tower: Any) -> Any:
    pool = getattr(tower, "pool", None)
    return () if pool is None else pool.parameters()
