"""Which labels a picture is asked for in training: its positives, verified negatives, pseudo-negatives.

A label is supervised in a picture only if it is asked there, so annotations need not be complete.
Source: OWL-ViT (arXiv:2205.06230) section 3.2 and appendix A1.5, A1.6.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mmvit.data.annotations import canonical
from mmvit.data.labels import LabelCounts
from mmvit.data.prompts import resolve_templates
from mmvit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class QuerySets:
    """How the queries of a picture are chosen.

    Attributes:
        num_queries: at most this many, positives first.
        min_negatives: pseudo-negatives are drawn until there are so many negatives.
        templates: a named set of prompt templates or a list; each label of a picture gets one of them.
        forbid: labels that are neither positives nor negatives, e.g. those kept for a test.
    """

    num_queries: int = 100
    min_negatives: int = 50
    templates: str | Sequence[str] = "owl"
    forbid: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.num_queries < 1 or self.min_negatives < 0:
            raise UserError(
                f"num_queries={self.num_queries} must be at least 1 and min_negatives="
                f"{self.min_negatives} at least 0"
            )
        try:
            object.__setattr__(self, "templates", resolve_templates(self.templates))
        except ValueError as error:
            raise UserError(str(error)) from None
        object.__setattr__(self, "forbid", frozenset(canonical(label) for label in self.forbid))

    def choose(
        self,
        positives: Sequence[str],
        negatives: Sequence[str],
        unsure: Sequence[str],
        exhaustive: bool,
        source: LabelCounts,
        rng: random.Random,
    ) -> list[str]:
        """Different labels, at most `num_queries`: positives, verified negatives, then drawn ones.

        Args:
            positives: labels that have a box.
            negatives: verified ones.
            unsure: labels that must not be negatives.
            exhaustive: the picture lacks every label of the source that has no box: draw as many as fit.
            source: what pseudo-negatives are drawn from.
            rng: the position's generator.
        """
        asked = list(dict.fromkeys(positives))
        never = {*asked, *unsure, *self.forbid}
        verified = [label for label in dict.fromkeys(negatives) if label not in never]
        room = self.num_queries - len(asked) - len(verified)
        lacking = room if exhaustive else min(room, self.min_negatives - len(verified))
        drawn = source.draw(lacking, {*never, *verified}, rng)
        return (asked + verified + drawn)[: self.num_queries]

    def prompts(self, labels: Sequence[str], fixed: frozenset[str], rng: random.Random) -> list[str]:
        """One text per label: a template of its own, or the bare label where it is in `fixed`."""
        drawn = [self.templates[rng.randrange(len(self.templates))] for _ in labels]
        return [
            label if label in fixed else template.replace("{}", label)
            for label, template in zip(labels, drawn, strict=True)
        ]
