"""Class lists and templates from files.

A class file is text with one class a line, or JSON: a list of labels, or {label: [names in prompts]}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmvit.errors import UserError
from mmvit.evaluators.prompts import Classes, resolve_classes, resolve_templates


def read_classes(path: str | Path) -> Classes:
    """The classes in a file, at least one.

    Raises:
        UserError: the file is missing, empty, not UTF-8, not valid JSON, or holds something else.
    """
    content = _read(path, "class list")
    found = _json(path, content) if str(path).endswith(".json") else _lines(content)
    if not found:
        raise UserError(f"the class list {path} is empty: write one class a line")
    if not isinstance(found, list | dict):
        raise UserError(f"the class list {path} must be a list or an object, it is a {type(found).__name__}")
    try:
        resolve_classes(found)
    except (ValueError, TypeError) as error:
        raise UserError(f"the class list {path}: {error}") from None
    return found


def read_templates(templates: str) -> str | list[str]:
    """The named set itself, or the lines of a file.

    Raises:
        UserError: neither a known set nor a readable file, or a template without `{}`.
    """
    found: str | list[str] = templates
    if "/" in templates or templates.endswith((".txt", ".json")) or Path(templates).is_file():
        content = _read(templates, "template list")
        found = _json(templates, content) if templates.endswith(".json") else _lines(content)
    try:
        resolve_templates(found)
    except (ValueError, TypeError) as error:
        raise UserError(f"--templates {templates}: {error}") from None
    return found


def _read(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        at = f"byte {error.start} is {error.object[error.start]:#x}"
        raise UserError(f"the {what} {path} is not UTF-8 ({at}): save it as UTF-8") from None


def _json(path: str | Path, content: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _lines(content: str) -> list[str]:
    return [line.strip() for line in content.splitlines() if line.strip()]
