"""Result JSON: one object per (model, dataset, task), read by the report, the quickstart and other tools.

{"model","preset","step","dataset","split","task","metrics":{…},"n","config_hash","date", …}; metrics are
named as CLIP_benchmark names them: acc1, acc5, mean_per_class_recall, image_retrieval_recall@5,
text_retrieval_recall@5.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmvit.errors import UserError

NEEDED = ("model", "dataset", "split", "task", "metrics", "n")


def result(
    *,
    model: str,
    config: Mapping[str, Any],
    data: str,
    task: str,
    metrics: Mapping[str, Any],
    n: int,
    dataset: str = "",
    split: str = "",
    **facts: Any,
) -> dict[str, Any]:
    """One result object.

    Args:
        model: the model's folder.
        config: its config.json; a card in it may name preset and step.
        data: shard pattern; gives dataset and split where these are empty.
        task: zero_shot_classification or zero_shot_retrieval.
        metrics: name -> number.
        n: samples that were measured.
        dataset: name of the data set.
        split: name of the split.
        **facts: what else a reader must know: templates, protocol, index, seconds.
    """
    card = config.get("card") or {}
    guessed = dataset_and_split(data)
    encoded = json.dumps(config.get("model"), sort_keys=True).encode()
    return {
        "model": model,
        "preset": card.get("preset"),
        "step": card.get("step", card.get("steps")),
        "dataset": dataset or guessed[0],
        "split": split or guessed[1],
        "task": task,
        "metrics": dict(metrics),
        "n": n,
        "config_hash": hashlib.sha256(encoded).hexdigest()[:16],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fingerprint": config.get("fingerprint"),
        "data": data,
        **facts,
    }


def dataset_and_split(urls: str) -> tuple[str, str]:
    """("corpus", "test_style/emoji") for "data/corpus/test_style/emoji/emoji-{000000..000002}.tar".

    The split begins at the first folder whose name starts with train, val or test; without one it is empty
    and the data set is the last folder, or the file's stem.
    """
    first = urls.split("::")[0]
    parts = [part for part in Path(first).parts if part not in ("/", ".", "..")]
    stem = parts.pop() if first.endswith(".tar") else ""
    parts = list(itertools.takewhile(lambda part: not set(part) & set("*?[{"), parts))
    for i, part in enumerate(parts):
        if part.startswith(("train", "val", "test")):
            return (parts[i - 1] if i else ""), "/".join(parts[i:])
    name = re.sub(r"[-_.]*([{*?\[].*|\d+)$", "", stem.removesuffix(".tar"))
    return (parts[-1] if parts else name or first), ""


def write_results(results: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Writes `path` (None): one object, or a list of several; whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    content = json.dumps(results[0] if len(results) == 1 else list(results), indent=1, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content + "\n")
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from None


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The result objects in a JSON file.

    Raises:
        UserError: the file is missing, not JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    found = content if isinstance(content, list) else [content]
    for entry in found:
        if not isinstance(entry, dict) or (missing := [name for name in NEEDED if name not in entry]):
            lacks = "it is no object" if not isinstance(entry, dict) else f"it lacks {', '.join(missing)}"
            raise UserError(f"{path} holds no result of eval/zero_shot.py or eval/retrieval.py: {lacks}")
    return found
