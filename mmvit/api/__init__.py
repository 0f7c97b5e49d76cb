"""What people call: load a model, embed pictures, clips, sounds and texts, compare, classify untrained."""

from mmvit.api.classifier import Prediction, ZeroShotClassifier
from mmvit.api.embedder import Embedder, load

__all__ = ["Embedder", "Prediction", "ZeroShotClassifier", "load"]
