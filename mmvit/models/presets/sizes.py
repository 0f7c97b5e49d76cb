"""The sizes that families share, by name.

Source: Scaling ViT (arXiv:2106.04560) table 2 and big_vision's `decode_variant`.
"""

from __future__ import annotations

from typing import Any

from mmvit.models.core_config import CoreConfig

# name: (width, depth, mlp_dim, num_heads)
SIZES: dict[str, tuple[int, int, int, int]] = {
    "mu": (32, 1, 128, 2),
    "tiny": (192, 12, 768, 3),
    "small": (384, 12, 1536, 6),
    "medium": (512, 12, 2048, 8),
    "base": (768, 12, 3072, 12),
    "large": (1024, 24, 4096, 16),
    "so400m": (1152, 27, 4304, 16),
    "huge": (1280, 32, 5120, 16),
    "giant": (1408, 40, 6144, 16),
    "giantopt": (1536, 40, 6144, 16),
    "gigantic": (1664, 48, 8192, 16),
    "giganticopt": (1536, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}


def core_of(size: str, **fields: Any) -> CoreConfig:
    """The core of a named size, other fields as given."""
    width, depth, mlp_dim, num_heads = SIZES[size]
    return CoreConfig(**{"width": width, "depth": depth, "mlp_dim": mlp_dim, "num_heads": num_heads} | fields)
