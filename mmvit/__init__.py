"""One vision transformer for every modality.

The public names below are imported on first use, so that `import mmvit` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmvit import hub, losses
    from mmvit.api import Embedder, Prediction, ZeroShotClassifier, load
    from mmvit.detector import Detector, QueryBank
    from mmvit.models.presets import create_model, list_models
    from mmvit.search import SearchIndex

_HOMES = {
    "Detector": "mmvit.detector",
    "Embedder": "mmvit.api",
    "Prediction": "mmvit.api",
    "QueryBank": "mmvit.detector",
    "ZeroShotClassifier": "mmvit.api",
    "load": "mmvit.api",
    "create_model": "mmvit.models.presets",
    "list_models": "mmvit.models.presets",
    "SearchIndex": "mmvit.search",
    "hub": "mmvit.hub",
    "losses": "mmvit.losses",
}

__all__ = [
    "Detector",
    "Embedder",
    "Prediction",
    "QueryBank",
    "SearchIndex",
    "ZeroShotClassifier",
    "create_model",
    "hub",
    "list_models",
    "load",
    "losses",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmvit' has no attribute '{name}'")
    module = importlib.import_module(_HOMES[name])
    return module if _HOMES[name].endswith("." + name) else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
