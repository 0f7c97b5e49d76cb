"""The means and deviations that published towers were trained with, each set written once.

Per channel, for pixels scaled to 0..1. Weights do not say which set they want, and the wrong one costs
accuracy silently.
"""

from __future__ import annotations

from typing import Any

# As fields of a tower's config: ImageTowerConfig(..., **IMAGENET).
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
# AST's, of log-mel values over AudioSet; it divides by twice the deviation.
AUDIOSET: dict[str, Any] = {"mean": (-4.2677393,), "std": (2 * 4.5689974,)}
# SlowFast's, for videos of Kinetics.
KINETICS: dict[str, Any] = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}

MEAN_STD: dict[str, dict[str, Any]] = {"half": HALF, "imagenet": IMAGENET, "clip": CLIP, "kinetics": KINETICS}
