"""Embeddings, or logits and boxes -> one number: losses over the global batch as plain functions."""

from mmvit.losses.contrastive import ContrastiveTerms, chance_level, contrastive_loss, contrastive_terms
from mmvit.losses.detection import DetectionTerms, detection_loss, detection_terms
from mmvit.losses.gather import gather, gather_with_grad
from mmvit.losses.match import Matches
from mmvit.losses.mil_nce import MilNceTerms, mil_nce_chance, mil_nce_loss, mil_nce_terms
from mmvit.losses.targets import Targets, pad_targets

__all__ = [
    "ContrastiveTerms",
    "DetectionTerms",
    "Matches",
    "MilNceTerms",
    "Targets",
    "chance_level",
    "contrastive_loss",
    "contrastive_terms",
    "detection_loss",
    "detection_terms",
    "gather",
    "gather_with_grad",
    "mil_nce_chance",
    "mil_nce_loss",
    "mil_nce_terms",
    "pad_targets",
]
