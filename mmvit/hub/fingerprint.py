"""One number for "the same model": weights, configuration and preprocessing together.

Cached embeddings carry it, so that a cache made by another tower, resolution or resize rule is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def fingerprint(model: nn.Module, preprocess: Any = None) -> str:
    """64 hex digits over the weights' float32 bytes, the model's config and the preprocessing.

    Args:
        model: one of our models, on any device.
        preprocess: an image preprocessing (its own `fingerprint()` is used), or None.
    """
    return combine(weights_fingerprint(model.state_dict()), model.config, preprocess)


def combine(weights: str, config: Any, preprocess: Any) -> str:
    """The model's fingerprint out of that of its weights, its config and its preprocessing."""
    digest = hashlib.sha256(weights.encode())
    digest.update(json.dumps(_said(config), sort_keys=True).encode())
    digest.update(preprocess.fingerprint().encode() if preprocess is not None else b"none")
    return digest.hexdigest()


def _said(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults: one that is added later changes nothing."""
    said = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            said[field.name] = {"class": type(value).__name__, **_said(value)}
        elif value != field.default:
            said[field.name] = value
    return said


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """64 hex digits over names, shapes and bytes of all tensors by name; floating ones count as float32."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = portable(state[name])
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().data if value.numel() else b"")
    return digest.hexdigest()


def portable(value: Tensor) -> Tensor:
    """A tensor as it is saved: on the CPU, contiguous, float32 where it is floating."""
    value = value.detach().to("cpu")
    return (value.float() if value.is_floating_point() else value).contiguous()
