"""Our state dict -> a peer's, by the peer's table of names read from right to left.

The first line of a table that reaches one of our names gives the peer's name: tables list the spelling of
files before the spelling in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, cat

from mmvit.hub.convert import keymap
from mmvit.hub.convert.keymap import LEFT_OUT, Line

_UNDO: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    keymap.row: lambda x: x[0],
    keymap.token: lambda x: x.reshape(-1),
    keymap.transpose: keymap.transpose,
    keymap.scalar: lambda x: x.reshape(()),
    # The parts of one stacked tensor are joined again, in the order of their lines.
    keymap.first_third: lambda x: x,
    keymap.last_thirds: lambda x: x,
}
_PARTS = (keymap.first_third, keymap.last_thirds)


def untranslate(state: Mapping[str, Tensor], table: Sequence[Line], *, target: str) -> dict[str, Tensor]:
    """The tensors of `state` under the peer's names: the inverse of `keymap.translate`.

    Args:
        state: our state dict.
        table: lines (source, target[, change]) as in `keymap`; lines that leave something out are skipped.
        target: who the tensors are for, for error messages.

    Raises:
        ValueError: a tensor of ours that no line reaches, two that claim one name, or a change that cannot
            be undone.
    """
    lines = [
        (keymap.pattern(line[1].partition("#")[0]), line)
        for line in table
        if not line[1].startswith(LEFT_OUT)
    ]
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, value in state.items():
        wanted: dict[int, tuple[int, str, Line]] = {}  # part -> number of the line, peer's name, line
        for number, (pattern, line) in enumerate(lines):
            if match := pattern.fullmatch(name):
                part = int(line[1].partition("#")[2] or 0)
                wanted.setdefault(part, (number, keymap.filled(line[0], match)[0], line))
        if not wanted:
            raise ValueError(f"{target} has no place for our tensor '{name}'")
        pieces = value.chunk(len(wanted)) if value.ndim else (value,)
        for part, rows in zip(sorted(wanted), pieces, strict=True):
            number, theirs, line = wanted[part]
            if len(line) == 3 and line[2] not in _UNDO:
                raise ValueError(f"{target}: what makes '{name}' of '{theirs}' cannot be undone")
            whole = len(line) == 2 or line[2] not in _PARTS
            if theirs in found and whole:
                raise ValueError(f"{target}: two of our tensors claim '{theirs}', the second is '{name}'")
            found.setdefault(theirs, []).append((number, _UNDO[line[2]](rows) if len(line) == 3 else rows))
    return {theirs: _join(pieces) for theirs, pieces in found.items()}


def _join(pieces: list[tuple[int, Tensor]]) -> Tensor:
    rows = [rows for _, rows in sorted(pieces, key=lambda piece: piece[0])]
    return (rows[0] if len(rows) == 1 else cat(rows)).contiguous()
