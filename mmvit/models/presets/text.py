"""Text towers alone: LiT's, from scratch; BERT and the sentence encoders that grew out of it.

Source: LiT (arXiv:2111.07991); BERT (arXiv:1810.04805); MiniLM (arXiv:2002.10957) with Sentence-BERT's mean
pooling (arXiv:1908.10084).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmvit.models.config import Pool, TextTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.presets.sizes import core_of


def lit_text(size: str, **fields: Any) -> TextTowerConfig:
    """LiT's text tower: bidirectional, 16 tokens, 32,000 subwords; padding hidden, the end token read."""
    return TextTowerConfig(core=core_of(size), vocab_size=32_000, **fields)


def bert(width: int, depth: int, num_heads: int, pool: Pool = "cls") -> TextTowerConfig:
    """A post-norm encoder of 512 positions and 30,522 uncased pieces; token type 0 is part of the positions.

    Args:
        width: of the tokens.
        depth: how many blocks.
        num_heads: of the attention.
        pool: "cls" (BERT) or "mean" (sentence encoders).
    """
    core = CoreConfig(
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=4 * width,
        norm="post",
        norm_eps=1e-12,
        norm_first=True,
        norm_last=False,
    )
    return TextTowerConfig(core=core, vocab_size=30_522, context_length=512, pool=pool)


def table() -> dict[str, Callable[[], TextTowerConfig]]:
    """The family's presets."""
    sizes = ("mu", "tiny", "small", "medium", "base", "large")
    found: dict[str, Callable[[], TextTowerConfig]] = {
        f"text_{size}": partial(lit_text, size) for size in sizes
    }
    found["bert_base"] = partial(bert, 768, 12, 12)
    found["bert_large"] = partial(bert, 1024, 24, 16)
    found["minilm_l6"] = partial(bert, 384, 6, 12, "mean")
    found["minilm_l12"] = partial(bert, 384, 12, 12, "mean")
    return found
