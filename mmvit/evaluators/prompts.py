"""Class names -> prompts -> one embedding per class: the zero-shot classifier as a matrix (C,E).

Shape letters: C classes, P prompts, E embedding dim.
Source: Radford et al. 2021 (CLIP), section 3.1.4: embed every prompt, normalise, average, normalise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmvit.data.prompts import TEMPLATES, resolve_templates

__all__ = ["TEMPLATES", "Classes", "class_embeddings", "resolve_classes", "resolve_templates"]

Classes = Sequence[str] | Mapping[str, Sequence[str]]


def resolve_classes(classes: Classes) -> dict[str, tuple[str, ...]]:
    """Label -> the names that stand for it in prompts, in the given order.

    Args:
        classes: labels that are their own names, or label -> synonyms.

    Raises:
        ValueError: no class, a repeated label, a label without names, or something that is not text.
    """
    if isinstance(classes, str):
        raise ValueError(
            f"classes is the text {classes!r}: expected a list of names or a dict label -> names"
        )
    if len(classes) == 0:
        raise ValueError("the class list is empty: a classifier needs at least one class")
    if isinstance(classes, Mapping):
        pairs = [(k, (v,) if isinstance(v, str) else tuple(v)) for k, v in classes.items()]
    else:
        pairs = [(name, (name,)) for name in classes]
    found: dict[str, tuple[str, ...]] = {}
    for label, names in pairs:
        if label in found:
            raise ValueError(f"class {label!r} is listed twice; synonyms go into a dict: {{label: [names]}}")
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"class {label!r} needs at least one non-empty name, got {list(names)!r}")
        found[label] = names
    return found


@torch.no_grad()
def class_embeddings(
    encode_text: Callable[[list[str]], Tensor],
    classes: Classes,
    templates: str | Sequence[str] = "default",
    *,
    prompts_at_once: int = 1024,
) -> Tensor:
    """One unit vector per class, (C,E) float32, in the order of `classes` and on the device of the prompts'.

    The mean runs over synonyms x templates, each embedding normalised first.

    Args:
        encode_text: P prompts -> (P,E) embeddings; normalised here, so either form will do.
        classes: labels, or label -> synonyms.
        templates: a named set or a list (`resolve_templates`).
        prompts_at_once: about how many prompts go into one call of `encode_text`; bounds memory only.

    Raises:
        ValueError: as `resolve_classes` and `resolve_templates`.
    """
    filled = resolve_templates(templates)
    groups = [
        [t.replace("{}", n) for n in names for t in filled] for names in resolve_classes(classes).values()
    ]
    rows = []
    for chunk in _chunks(groups, prompts_at_once):
        embedded = normalize(encode_text([p for prompts in chunk for p in prompts]).float(), dim=-1)
        parts = embedded.split([len(prompts) for prompts in chunk])
        rows.append(normalize(torch.stack([part.mean(0) for part in parts]), dim=-1))
    return torch.cat(rows)


def _chunks(groups: list[list[str]], limit: int) -> Iterator[list[list[str]]]:
    """Runs of whole groups with about `limit` members in all."""
    chunk: list[list[str]] = []
    for group in groups:
        if chunk and sum(map(len, chunk)) + len(group) > limit:
            yield chunk
            chunk = []
        chunk.append(group)
    yield chunk
