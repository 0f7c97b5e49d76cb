"""A command line -> a frozen dataclass; mistakes become one line that names the nearest valid option."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from mmvit.errors import UserError, nearest, need

C = TypeVar("C")


def read(config: type[C], argv: Sequence[str] | None = None, description: str = "") -> C:
    """The options as `config`, whose fields become `--field-name`; those without default are required.

    Args:
        config: a flat dataclass; its docstring's Attributes are the help texts.
        argv: arguments, None = the process's.
        description: first lines of --help.

    Raises:
        UserError: an unknown option, a missing one, or a value of the wrong kind.
    """
    tyro = need("tyro")
    arguments = list(sys.argv[1:] if argv is None else argv)
    helped = bool({"-h", "--help"} & set(arguments))
    said = io.StringIO()
    if not helped and (mistake := _mistake(config, arguments)):
        raise UserError(mistake)
    try:
        with contextlib.nullcontext() if helped else contextlib.redirect_stderr(said):
            return tyro.cli(config, args=arguments, description=description)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue())) from None


def _mistake(config: Any, arguments: Sequence[str]) -> str:
    """What is wrong with the names of the options, "" when nothing is."""
    assert dataclasses.is_dataclass(config)
    kinds, valid, given = typing.get_type_hints(config), ["--help"], set()
    for field in dataclasses.fields(config):
        name = _option(field.name)
        valid += [name, f"--no-{name[2:]}"] if kinds[field.name] is bool else [name]
    for word in arguments:
        name = word.split("=", 1)[0].replace("_", "-")
        given.add(name)
        if name.startswith("--") and len(name) > 2 and name not in valid:
            return f"unknown option '{name}': {nearest(name, valid)}"
    for field in dataclasses.fields(config):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and _option(field.name) not in given:
            return f"the option {_option(field.name)} is missing; see --help"
    return ""


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _one_line(text: str) -> str:
    """The library's boxed message as one line without box and titles."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in text.splitlines()]
    kept = " ".join(line for line in lines if line and "full helptext" not in line)
    kept = re.sub(r"\s+", " ", kept).split(" Argument helptext:")[0]
    return re.sub(r"^(Invalid choice|Parsing error|Missing argument|Value error) ", "", kept) or "see --help"
