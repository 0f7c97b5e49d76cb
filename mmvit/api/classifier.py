"""Zero-shot classification: class names as words, pictures, clips, sounds or texts as inputs.

Shape letters: N inputs, C classes, E embedding dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvit.api.embedder import Embedder
from mmvit.errors import nearest
from mmvit.evaluators.prompts import Classes, class_embeddings, resolve_classes


class Prediction(NamedTuple):
    """A class and how probable it is, 0..1, as the model was trained to say it."""

    label: str
    score: float


class ZeroShotClassifier:
    """Names pictures, clips, sounds or texts with classes that are given as words.

    Class embeddings are computed once and kept; see `evaluators.prompts` for how.

    Args:
        model: one that reads text and embeds what is to be named.
        classes: labels, or label -> synonyms, all of which stand for it.
        templates: "default", another named set, or a list of texts with {} for the name.
        batch_size: prompts embedded at a time.

    Raises:
        ValueError: no class, a class twice, a template without {}, or a model without text.

    Example:
        >>> clf = ZeroShotClassifier(model, {"cat": ["cat", "kitten"], "dog": ["dog"]})   # doctest: +SKIP
        >>> clf.predict(["photo.jpg"], top_k=1)[0][0].label
    """

    def __init__(
        self,
        model: Embedder,
        classes: Classes,
        templates: str | Sequence[str] = "default",
        batch_size: int = 256,
    ) -> None:
        if "text" not in model.modalities:
            raise ValueError(
                f"a zero-shot classifier needs a model that reads text, this one embeds {model.modalities}"
            )
        self.model, self.templates, self.batch_size = model, templates, batch_size
        self.classes = resolve_classes(classes)
        self.embeddings = self._embed(self.classes)

    @property
    def labels(self) -> list[str]:
        """The C class names in the order of the logits' columns."""
        return list(self.classes)

    def add_classes(self, classes: Classes) -> None:
        """Nothing; appends classes, embedding only the new ones.

        Raises:
            ValueError: a label that is there already.
        """
        new = resolve_classes(classes)
        if twice := [label for label in new if label in self.classes]:
            raise ValueError(f"class {twice[0]!r} is already there; remove it first to give it other names")
        self.embeddings = torch.cat([self.embeddings, self._embed(new)])
        self.classes = self.classes | new

    def remove_classes(self, labels: Sequence[str]) -> None:
        """Nothing; takes classes out.

        Raises:
            ValueError: an unknown label, or no class would be left.
        """
        labels = [labels] if isinstance(labels, str) else labels
        for label in labels:
            if label not in self.classes:
                raise ValueError(f"no class {label!r}: {nearest(label, self.classes)}")
        keep = [i for i, label in enumerate(self.classes) if label not in labels]
        if not keep:
            raise ValueError("no class would be left: a classifier needs at least one")
        self.embeddings = self.embeddings[keep]
        self.classes = {label: names for label, names in self.classes.items() if label not in labels}

    def logits(
        self, inputs: Any, modality: str = "image", batch_size: int | None = None, **options: Any
    ) -> Tensor:
        """(N,C) float32: cosine x temperature (+ bias), columns in the order of `labels`.

        Args:
            inputs: what `Embedder.encode` takes for that modality, or embeddings (N,E) made before.
            modality: "image", "video", "audio", or "text" to sort texts.
            batch_size: inputs computed at a time, None = as `Embedder.encode` chooses.
            options: more that `Embedder.encode` takes, such as views=4.
        """
        if not (isinstance(inputs, Tensor) and inputs.ndim == 2):
            inputs = self.model.encode(**{modality: inputs}, batch_size=batch_size, **options)
        return self.model.logits(inputs, self.embeddings)

    def predict(
        self,
        inputs: Any,
        modality: str = "image",
        top_k: int = 5,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[list[Prediction]]:
        """For each input its `top_k` (at most C) classes, best first, with probabilities.

        Args:
            inputs: as `logits` takes them.
            modality: likewise.
            top_k: at least 1.
            batch_size: likewise.
            options: likewise.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        logits = self.logits(inputs, modality, batch_size, **options)
        sigmoid = getattr(self.model.model.config, "activation", "softmax") == "sigmoid"
        scores = logits.sigmoid() if sigmoid else logits.softmax(dim=-1)
        # Ordered by the logits: far-away probabilities of a sigmoid may all round to the same number.
        best = logits.topk(min(top_k, len(self.classes)), dim=-1).indices
        labels = self.labels
        return [
            [Prediction(labels[c], scores[n, c].item()) for c in row] for n, row in enumerate(best.tolist())
        ]

    def _embed(self, classes: Classes) -> Tensor:
        def encode(prompts: list[str]) -> Tensor:
            return self.model.encode(text=prompts, batch_size=self.batch_size)

        return class_embeddings(encode, classes, self.templates)
