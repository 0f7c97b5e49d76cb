"""Linear probe: a linear classifier on frozen features, and how well it names what it has not seen.

Letters: N samples, V views of each, D features, C classes.
Source: logistic regression by L-BFGS on standardised features, CLIP (arXiv:2103.00020) appendix A.3; its
strength is chosen on a part of the training samples. The head of low rank: VATT (arXiv:2104.11178) A.3.2.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.evaluators.folds import split_off

STRENGTHS = tuple(10.0**k for k in (-5, -4, -3, -2, -1, 0, 1))


@dataclass
class Linear:
    """A fitted classifier of features.

    Attributes:
        weight: (C,D) float64, of standardised features.
        bias: (C,) float64.
        mean: (D,) float64 of the training features.
        scale: (D,) float64, their deviation; 1 where a feature never changes.
        strength: C of the fit, 0 for a head that has none.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    strength: float = 0.0

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (...,C) float64 of features (...,D)."""
        return ((features.double() - self.mean) / self.scale) @ self.weight.T + self.bias


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strength: float = 0.1,
    *,
    start: Linear | None = None,
    steps: int = 200,
) -> Linear:
    """The classifier that minimises |W|^2 / 2 + strength * sum of losses, all samples at once.

    With labels (N,) the loss is softmax cross-entropy, with labels (N,C) bool a binary one for each class.
    The strength is what scikit-learn's LogisticRegression calls C.

    Args:
        features: (N,D).
        labels: (N,) int64 in 0..classes-1, or (N,C) bool.
        classes: C.
        strength: above 0; the smaller, the more the weights are held down.
        start: a fit of the same features to go on from.
        steps: most steps of L-BFGS.

    Raises:
        ValueError: shapes that disagree, features that are not finite, labels outside, or a bad strength.
    """
    _check(features, labels, classes)
    if strength <= 0:
        raise ValueError(f"strength={strength} must be above 0")
    mean, scale, x = _standardised(features)
    weight = x.new_zeros(classes, x.shape[1]) if start is None else start.weight.clone()
    bias = x.new_zeros(classes) if start is None else start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-7
    )

    def closure() -> Tensor:
        search.zero_grad()
        # Divided by N and the strength, so that one tolerance fits all sizes.
        loss = _loss(x @ weight.T + bias, labels) + weight.square().sum() / (2 * strength * len(x))
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        search.step(closure)
    return Linear(weight.detach(), bias.detach(), mean, scale, strength)


def choose_strength(
    features: Tensor,
    labels: Tensor,
    classes: int,
    groups: Sequence[Hashable],
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> float:
    """The strength whose fit to four fifths of the groups has the lowest loss on the others.

    Args:
        features: (N,D) of training samples only.
        labels: as `fit_logistic` takes them.
        classes: C.
        groups: N values; equal ones (views of a sample, pictures of an object) stay together.
        strengths: candidates; each fit starts from the one before.
        seed: of the split.

    Raises:
        ValueError: a single group, or as `fit_logistic`.
    """
    held = split_off(groups, seed=seed)
    best, fit = (float("inf"), strengths[0]), None
    for strength in sorted(strengths):
        fit = fit_logistic(features[~held], labels[~held], classes, strength, start=fit)
        best = min(best, (float(_loss(fit(features[held]), labels[held])), strength))
    return best[1]


def fit_low_rank(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    rank: int = 128,
    keep: float = 0.1,
    steps: int = 2000,
    batch_size: int = 64,
    lr: float = 5e-4,
    l2: float = 0.0,
    seed: int = 0,
) -> Linear:
    """VATT's head: two linear maps with dropout between them, trained by Adam, given back as their product.

    Differs: features are standardised, there are 2,000 steps in place of 50,000, for small data, and `l2` is
    0, not 0.1.

    Args:
        features: (N,D).
        labels: as `fit_logistic` takes them.
        classes: C.
        rank: components between the maps.
        keep: share of the components that take part in a step, above 0 and at most 1.
        steps: of Adam.
        batch_size: samples in a step.
        lr: learning rate.
        l2: times the sum of squares of the second map, added to the loss.
        seed: of the start, the batches and the dropout.

    Raises:
        ValueError: as `fit_logistic`, or keep outside 0..1.
    """
    _check(features, labels, classes)
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie above 0 and at most at 1")
    mean, scale, x = _standardised(features)
    x = x.float()
    draw = torch.Generator().manual_seed(seed)
    down = (torch.randn(rank, x.shape[1], generator=draw) * x.shape[1] ** -0.5).requires_grad_()
    up = (torch.randn(classes, rank, generator=draw) * rank**-0.5).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    adam = torch.optim.Adam([down, up, bias], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (batch_size,), generator=draw)
            kept = torch.rand(batch_size, rank, generator=draw) < keep
            logits = (x[rows] @ down.T * kept / keep) @ up.T + bias
            loss = _loss(logits, labels[rows]) + l2 * up.square().sum()
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
    return Linear(up.detach().double() @ down.detach().double(), bias.detach().double(), mean, scale)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples of the softmax, or of the summed binary, cross-entropy."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").sum(1).mean()


def _standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean (D,), deviation (D,), standardised features (N,D)), all float64."""
    x = features.double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    # What rounding alone moves must not be blown up to deviation 1.
    scale = torch.where(scale > 1e-6 * x.abs().amax(0).clamp(min=1e-30), scale, torch.ones_like(scale))
    return mean, scale, (x - mean) / scale


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    if features.ndim != 2 or len(labels) != len(features) or not len(features):
        raise ValueError(
            f"features must be (N,D) with N labels, got {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    if not features.isfinite().all():
        row = int((~features.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"features: row {row} is NaN or infinite")
    if labels.ndim == 2 and (labels.shape[1] != classes or labels.dtype != torch.bool):
        raise ValueError(
            f"labels must be (N,{classes}) bool or (N,) int64, got {tuple(labels.shape)} {labels.dtype}"
        )
    if labels.ndim == 1 and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
