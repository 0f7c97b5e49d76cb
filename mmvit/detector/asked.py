"""What people give as queries -> words and pictures apart, and which of them each picture is asked for.

Words are `str`; everything else (PIL pictures, `Path`, bytes, arrays) is a picture of the thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmvit.data.inputs import as_list
from mmvit.detector.bank import QueryBank


@dataclass(frozen=True)
class Asked:
    """Queries of a call.

    Attributes:
        items: words and pictures, in order; the same word once when sets were given.
        sets: for each searched picture the numbers of its own items, None = all items for all pictures.
    """

    items: list[Any]
    sets: list[list[int]] | None


def resolve(queries: Any) -> Asked:
    """The queries of a call, checked.

    Args:
        queries: a word or picture, a list of them, or a list of such lists, one for each searched picture.

    Raises:
        ValueError: no query, an empty one, or sets and single queries mixed.
    """
    items = [queries] if isinstance(queries, str) else list(as_list("image", queries))
    if not items:
        raise ValueError('there is no query: name at least one thing to find, such as queries=["a red fox"]')
    nested = [isinstance(item, list | tuple) for item in items]
    if not any(nested):
        for i, item in enumerate(items):
            _check(item, f"query {i}")
        return Asked(items, None)
    if not all(nested):
        at = nested.index(False)
        raise ValueError(
            f"queries[{at}] is a {type(items[at]).__name__} among lists: give one list for all pictures, or "
            "one list of lists"
        )
    flat: list[Any] = []
    words: dict[str, int] = {}
    sets = []
    for picture, own in enumerate(items):
        numbers = []
        for i, item in enumerate(own):
            _check(item, f"query {i} of picture {picture}")
            known = words.get(item) if isinstance(item, str) else None
            if known is None:
                known = len(flat)
                flat.append(item)
                if isinstance(item, str):
                    words[item] = known
            numbers.append(known)
        sets.append(numbers)
    return Asked(flat, sets)


def _check(item: Any, where: str) -> None:
    if isinstance(item, str) and not item.strip():
        raise ValueError(f"{where} is empty ({item!r}): name a thing to find, or leave it out")


def rows_of_sets(queries: Any, bank: QueryBank, count: int) -> list[list[int]]:
    """For each picture the numbers of the bank's queries to ask.

    Args:
        queries: for each picture names and numbers, or a mask (B,C) bool.
        bank: C queries.
        count: B.

    Raises:
        ValueError: another number of lists, a mask of another shape, an unknown name.
    """
    if isinstance(queries, Tensor):
        if queries.shape != (count, len(bank)) or queries.dtype != torch.bool:
            raise ValueError(
                f"queries is {queries.dtype} {tuple(queries.shape)}, expected bool ({count}, {len(bank)})"
            )
        return [row.nonzero()[:, 0].tolist() for row in queries]
    if isinstance(queries, str) or len(queries) != count:
        raise ValueError(f"queries must be {count} lists, one for each picture, got {queries!r:.80}")
    return [bank.rows(own) for own in queries]
