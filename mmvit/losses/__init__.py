"""Embeddings -> one number: losses over the global batch as plain functions."""

from mmvit.losses.contrastive import ContrastiveTerms, chance_level, contrastive_loss, contrastive_terms
from mmvit.losses.gather import gather, gather_with_grad

__all__ = [
    "ContrastiveTerms",
    "chance_level",
    "contrastive_loss",
    "contrastive_terms",
    "gather",
    "gather_with_grad",
]
