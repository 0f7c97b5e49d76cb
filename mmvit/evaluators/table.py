"""Results of several runs side by side: one block per split, one row per run, chance as the last row.

Pictures, captions and boxes of a split share a block; every other pair of modalities, and every field by
which clips and sounds are named, has its own, as has every field but "label" by which pictures are. The
terminal's table and the HTML report are made from the same `blocks`.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmvit.errors import need

# (heading, column, task, metric, metric of chance); image_retrieval = texts ask, images are found.
COLUMNS = (
    ("zero-shot", "top-1", "zero_shot_classification", "acc1", "chance_acc1"),
    ("zero-shot", "top-5", "zero_shot_classification", "acc5", "chance_acc5"),
    *(
        (heading, f"R@{k}", "zero_shot_retrieval", f"{found}_recall@{k}", f"{found}_chance@{k}")
        for heading, found in (("text → image", "image_retrieval"), ("image → text", "text_retrieval"))
        for k in (1, 5, 10)
    ),
    ("detection", "AP", "object_detection", "AP", "chance_AP"),
    ("detection", "AP50", "object_detection", "AP50", "chance_AP50"),
    *(("detection", name, "object_detection", name, "") for name in ("AP75", "APr", "APc", "APf")),
    *(("AP of classes", name, "object_detection", f"AP_{name}", "") for name in ("seen", "unseen")),
    ("one-shot", "AP50", "object_detection", "one_shot_AP50", ""),
)
Column = tuple[str, str, str, str, str]
_NAMED = (
    ("zero-shot", "top-1", "zero_shot_classification", "acc1", "chance_acc1"),
    ("zero-shot", "top-5", "zero_shot_classification", "acc5", "chance_acc5"),
    ("zero-shot", "bal.", "zero_shot_classification", "mean_per_class_recall", "chance_acc1"),
    ("probe", "top-1", "linear_probe", "acc1", "majority_acc1"),
    ("probe", "top-5", "linear_probe", "acc5", "chance_acc5"),
    ("probe", "bal.", "linear_probe", "mean_per_class_recall", "chance_acc1"),
    ("probe", "mAP", "linear_probe", "map", "chance_map"),
    ("probe", "AUC", "linear_probe", "auc", ""),
    ("probe", "d'", "linear_probe", "d_prime", ""),
    ("trained", "top-1", "classification", "acc1", "chance_acc1"),
    ("trained", "top-5", "classification", "acc5", "chance_acc5"),
    ("trained", "bal.", "classification", "mean_per_class_recall", "chance_acc1"),
    ("trained", "mAP", "classification", "map", "chance_map"),
    ("trained", "AUC", "classification", "auc", ""),
    ("trained", "d'", "classification", "d_prime", ""),
)
# What is no share: shown as it is. Of ranks the smallest is the best.
_PLAIN = ("median_rank", "d_prime")


def pair_columns(pair: str) -> tuple[Column, ...]:
    """The columns of a block of one pair of modalities, such as "audio-video"."""
    a, b = pair.split("-")
    return tuple(
        (f"{asks} → {found}", *column)
        for asks, found in ((b, a), (a, b))
        for column in (
            *(
                (
                    f"R@{k}",
                    "zero_shot_retrieval",
                    f"{found}_retrieval_recall@{k}",
                    f"{found}_retrieval_chance@{k}",
                )
                for k in (1, 5, 10)
            ),
            (
                "MedR",
                "zero_shot_retrieval",
                f"{found}_retrieval_median_rank",
                f"{found}_retrieval_chance_median_rank",
            ),
        )
    )


@dataclass
class Block:
    """The runs on one split.

    Attributes:
        split: "corpus test_style/emoji".
        size: "2,929 pictures, 1,520 classes".
        rows: (run, percentages in the order of the columns; None = not measured).
        chance: percentages of a random order.
        columns: (heading, column, task, metric, metric of chance) of each value.
    """

    split: str
    size: str
    rows: list[tuple[str, list[float | None]]]
    chance: list[float | None]
    columns: tuple[Column, ...] = COLUMNS

    def best(self) -> list[float | None]:
        """The best value of each column, None where nobody measured it or only one run did."""
        values = zip(*(values for _, values in self.rows), strict=True)
        found = [[v for v in column if v is not None] for column in values]
        best = [min if column[3].endswith("_rank") else max for column in self.columns]
        return [
            choose(column) if len(column) > 1 else None for choose, column in zip(best, found, strict=True)
        ]

    def used(self) -> list[int]:
        """The columns that some run measured."""
        return [i for i in range(len(self.columns)) if any(row[i] is not None for _, row in self.rows)]


def run_name(model: str) -> str:
    """The run's folder for "runs/NAME/model" and "runs/NAME/checkpoints/…", else the last folder."""
    parts = Path(model).parts
    for before, part in itertools.pairwise(parts):
        if part in ("model", "checkpoints"):
            return before
    return parts[-1] if parts else model


def blocks(results: Sequence[Mapping[str, Any]], names: Mapping[str, str] | None = None) -> list[Block]:
    """One block per (dataset, split, part), in the order in which they occur; later results win.

    Args:
        results: result objects of both tasks.
        names: model -> what the row is called; otherwise the run's folder.
    """
    order: dict[tuple[str, str, str], dict[str, dict[str, Mapping[str, Any]]]] = {}
    for found in results:
        runs = order.setdefault((found["dataset"], found["split"], _part(found)), {})
        name = (names or {}).get(found["model"], run_name(found["model"]))
        runs.setdefault(name, {})[found["task"]] = found
    made = []
    for (dataset, split, part), runs in order.items():
        columns = COLUMNS if not part else _NAMED if " by " in part else pair_columns(part)
        rows = [
            (run, [_percent(tasks, column[2], column[3]) for column in columns])
            for run, tasks in runs.items()
        ]
        lucky = [[_percent(tasks, column[2], column[4]) for column in columns] for tasks in runs.values()]
        chance = [next((v for v in values if v is not None), None) for values in zip(*lucky, strict=True)]
        title = " ".join(filter(None, (dataset, split, f"· {part}" if part else "")))
        made.append(Block(title, _size(runs, part), rows, chance, columns))
    return made


def comparison_table(
    results: Sequence[Mapping[str, Any]],
    names: Mapping[str, str] | None = None,
    terminal: bool | None = None,
) -> str:
    """The blocks as text, in percent: with colours and rules for a terminal, else plain aligned columns.

    Args:
        results: result objects of both tasks.
        names: model -> what the row is called.
        terminal: None = whether stdout is one.
    """
    if terminal is None:
        terminal = sys.stdout.isatty()
    draw = _rich if terminal else _plain
    return "\n\n".join(draw(block) for block in blocks(results, names))


def percent(value: float | None) -> str:
    """One decimal, two below one percent, a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:.2f}" if 0 < value < 0.995 else f"{value:.1f}"


def _plain(block: Block) -> str:
    used, columns = block.used(), block.columns
    groups = [list(g) for _, g in itertools.groupby(used, lambda i: columns[i][0])]
    rows = [*block.rows, ("chance", block.chance)]
    left = max(len(name) for name, _ in rows)

    def line(name: str, cells: Sequence[str]) -> str:
        return " │".join([name.ljust(left), *cells]).rstrip()

    lines = [f"{block.split}: {block.size}; percent"]
    lines.append(line("", [f" {columns[group[0]][0]:<{7 * len(group) - 1}}" for group in groups]))
    lines.append(line("", ["".join(f"{columns[i][1]:>7}" for i in group) for group in groups]))
    for name, values in rows:
        lines.append(line(name, ["".join(f"{percent(values[i]):>7}" for i in group) for group in groups]))
    return "\n".join(lines)


def _rich(block: Block) -> str:
    box = need("rich.box").SIMPLE
    table = need("rich.table").Table(box=box, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    used, previous = block.used(), ""
    for i in used:
        heading, column = block.columns[i][:2]
        # The heading stands once, over the first column of its group, so that 80 characters are enough.
        table.add_column(f"{heading if heading != previous else ''}\n{column}", justify="right", no_wrap=True)
        previous = heading
    best = block.best()
    for name, values in block.rows:
        cells = [percent(values[i]) for i in used]
        top = [values[i] is not None and values[i] == best[i] for i in used]
        table.add_row(name, *(f"[bold green]{c}[/]" if t else c for c, t in zip(cells, top, strict=True)))
    table.add_section()
    table.add_row("chance", *(percent(block.chance[i]) for i in used), style="dim")
    text = io.StringIO()
    console = need("rich.console").Console(file=text, force_terminal=True, width=100)
    console.print(f"[bold]{block.split}[/]: {block.size}; percent", highlight=False)
    console.print(table)
    return text.getvalue().rstrip()


def _part(found: Mapping[str, Any]) -> str:
    """What has a block of its own: "audio-video", "video by motion"; "" for pictures, texts and boxes."""
    if found.get("pair") not in (None, "image-text"):
        return str(found["pair"])
    if "modality" in found:
        return f"{found['modality']} by {found.get('label')}"
    named = found["task"] == "zero_shot_classification" and found.get("label", "label") != "label"
    return f"image by {found['label']}" if named else ""


def _percent(tasks: Mapping[str, Mapping[str, Any]], task: str, metric: str) -> float | None:
    value = tasks.get(task, {}).get("metrics", {}).get(metric)
    return None if value is None else float(value) * (1 if metric.endswith(_PLAIN) else 100)


def _size(runs: Mapping[str, Mapping[str, Mapping[str, Any]]], part: str = "") -> str:
    found = next(iter(runs.values()))
    parts = [f"{next(iter(found.values()))['n']:,} samples"]
    if part:
        metrics = next(iter(found.values()))["metrics"]
        return ", ".join(parts + ([f"{metrics['classes']:,} classes"] if " by " in part else []))
    if "zero_shot_classification" in found:
        parts.append(f"{found['zero_shot_classification']['metrics']['classes']:,} classes")
    if "zero_shot_retrieval" in found:
        parts.append(f"{found['zero_shot_retrieval']['metrics']['image_retrieval_n']:,} captions")
    if "object_detection" in found:
        counts = found["object_detection"]["metrics"]
        parts.append(f"{counts['boxes']:,} boxes of {counts['classes']:,} classes")
    return ", ".join(parts)
