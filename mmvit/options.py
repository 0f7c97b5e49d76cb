"""Command lines: dataclasses as options, presets as defaults, a mistake as one line.

Every program reads its options here; the configuration library appears in this file only (and where a program
has positional words). Everything else sees plain dataclasses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mmvit.errors import UserError, nearest, need

C = TypeVar("C")


def parse(
    config: type[C],
    presets: Mapping[str, C] | None = None,
    argv: Sequence[str] | None = None,
    description: str = "",
) -> C:
    """The config of a command line.

    Fields become `--name`, those of nested dataclasses `--part.name`, booleans `--flag` or `--no-flag`.

    Args:
        config: a dataclass; its docstring's Attributes are the help texts. No default = required.
        presets: name -> defaults, for a config with a field `preset`; the first counts when none is named.
        argv: arguments; None = the process's.
        description: the first lines of --help.

    Raises:
        UserError: an unknown preset or option (with the nearest valid ones), a missing option, a wrong value.
    """
    tyro = need("tyro")
    arguments = list(sys.argv[1:] if argv is None else argv)
    default = {} if presets is None else {"default": _preset(presets, arguments)}
    helped = bool({"-h", "--help"} & set(arguments))
    if not helped:
        _check_names(config, presets, arguments)
    said = io.StringIO()
    try:
        with contextlib.nullcontext() if helped else contextlib.redirect_stderr(said):
            result, unknown = tyro.cli(
                config, args=arguments, description=description, return_unknown_args=True, **default
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue())) from None
    if unknown:
        raise UserError(f"'{unknown[0]}' is not an option; options are written --name value")
    return result


def option_names(config: Any, prefix: str = "--") -> list[str]:
    """Every option of a config dataclass, as it is written on the command line."""
    names = []
    for name, kind in typing.get_type_hints(config).items():
        written = name.replace("_", "-")
        if dataclasses.is_dataclass(kind):
            names += option_names(kind, f"{prefix}{written}.")
        else:
            names += [prefix + written, *([f"{prefix}no-{written}"] if kind is bool else [])]
    return names


def _preset(presets: Mapping[str, Any], arguments: Sequence[str]) -> Any:
    name = next(iter(presets))
    for i, word in enumerate(arguments):
        if word.startswith("--preset="):
            name = word.split("=", 1)[1]
        elif word == "--preset" and i + 1 < len(arguments):
            name = arguments[i + 1]
    if name not in presets:
        raise UserError(f"unknown preset '{name}': {nearest(name, presets)}")
    return dataclasses.replace(presets[name], preset=name)


def _check_names(config: Any, presets: Mapping[str, Any] | None, arguments: Sequence[str]) -> None:
    valid = option_names(config)
    given = {word.split("=", 1)[0].replace("_", "-") for word in arguments}
    for name in sorted(given):
        if name.startswith("--") and name not in valid and name != "--":
            raise UserError(f"unknown option '{name}': {nearest(name, valid)}")
    for field in dataclasses.fields(config) if presets is None else ():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        # A field with annotations of the library (a positional word) has a rule of its own there.
        name = "--" + field.name.replace("_", "-")
        if required and "Positional" not in str(field.type) and name not in given:
            raise UserError(f"the option {name} is missing; see --help")


def _one_line(text: str) -> str:
    """The library's boxed message as one line without box and titles."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in text.splitlines()]
    kept = " ".join(line for line in lines if line and "full helptext" not in line)
    kept = re.sub(r"\s+", " ", kept).split(" Argument helptext:")[0]
    kept = re.sub(r"^(Invalid choice|Parsing error|Missing argument|Value error|Required options) ", "", kept)
    return kept or "the options could not be read; see --help"
