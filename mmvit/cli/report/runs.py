"""What a run folder says about itself: metrics, results, configuration, environment, its saved model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmvit.errors import UserError
from mmvit.evaluators.results import read_results


@dataclass
class RunFolder:
    """One run.

    Attributes:
        path: the folder.
        name: what the report calls it.
        rows: of metrics.jsonl.
        results: result objects of the evaluation programs.
        config: text of config.yaml, "" when there is none.
        environment: of env.json.
    """

    path: Path
    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """Folder of the saved model."""
        return self.path / "model"

    @property
    def kind(self) -> str:
        """What the saved model is, e.g. dual_encoder or detector; "" when there is none."""
        file = self.model / "config.json"
        return json.loads(file.read_text(encoding="utf-8")).get("kind", "") if file.is_file() else ""

    @property
    def sheets(self) -> list[Path]:
        """Pictures that the evaluation programs drew."""
        return sorted(self.path.glob("eval/*.png"))

    def series(self, metric: str) -> list[tuple[float, float]]:
        """(samples seen, value) of every row that carries the metric as a finite number."""
        rows = [row for row in self.rows if isinstance(row.get(metric), int | float)]
        return [(float(row.get("samples_seen", row.get("step", 0))), float(row[metric])) for row in rows]


def read_run(path: str | Path, name: str = "") -> RunFolder:
    """The run in a folder; whatever is missing there is left out.

    Raises:
        UserError: no such folder, or one that is no run.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no run folder at {path}")
    run = RunFolder(path, name or path.name)
    if (metrics := path / "metrics.jsonl").is_file():
        run.rows = [row for line in metrics.read_text(encoding="utf-8").splitlines() if (row := _row(line))]
    for file in sorted([*path.glob("*.json"), *path.glob("eval/*.json"), *path.glob("results/*.json")]):
        if _holds_results(file):
            run.results += read_results(file)
    for found in run.results:
        found["model"] = str(path)  # moved and renamed runs still belong together
    if (config := path / "config.yaml").is_file():
        run.config = config.read_text(encoding="utf-8")
    if (environment := path / "env.json").is_file():
        run.environment = _row(environment.read_text(encoding="utf-8")) or {}
    if not (run.rows or run.results or run.model.is_dir()):
        raise UserError(f"{path} is no run folder: it has neither metrics.jsonl, results nor a model/")
    return run


def _row(text: str) -> dict[str, Any] | None:
    """A JSON object, None for the torn last line of a killed run."""
    try:
        row = json.loads(text)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _holds_results(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    first = content[0] if isinstance(content, list) and content else content
    return isinstance(first, dict) and "task" in first and "metrics" in first
