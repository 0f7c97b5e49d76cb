"""The page: sections as HTML strings, and the file around them. Nothing is fetched, nothing is run."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from html import escape

from mmvit.cli.report.charts import bars, legend, line_chart
from mmvit.cli.report.gallery import Guess, Query
from mmvit.cli.report.runs import RunFolder
from mmvit.cli.report.style import CSS
from mmvit.evaluators.table import Block, percent

# metric of metrics.jsonl -> title of its chart; evaluation metrics follow by their own names.
CURVES = {
    "train/loss": "training loss",
    "train/in_batch_top1": "right text found in the batch, by picture",
    "train/logit_scale": "temperature (logit scale)",
}
FOUND = {"image": "picture", "video": "clip", "audio": "sound", "text": "caption"}


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]], top: str = "") -> str:
    """The whole file.

    Args:
        title: heading.
        subtitle: one line below it.
        sections: (heading, HTML) in order; empty ones are left out.
        top: HTML between the heading and the first section.
    """
    present = [(f"s{i}", heading, html) for i, (heading, html) in enumerate(sections) if html]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in present)
    body = "".join(f'<h2 id="{name}">{escape(heading)}</h2>{html}' for name, heading, html in present)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="meta">{escape(subtitle)}</p>{top}<nav>{links}</nav>{body}'
        "<footer>Made by eval/report.py. One file: pictures and styles are inside, nothing is loaded from "
        "elsewhere. Ties count against the model; examples are chosen by a hash of their keys.</footer>"
        "</main></body></html>\n"
    )


def cards(blocks: Sequence[Block]) -> str:
    """The best run of each block in zero-shot top-1 and in R@5 of its first direction, with its chance."""
    made = []
    for metric in ("acc1", "recall@5"):
        for block in blocks:
            column = next((i for i, c in enumerate(block.columns) if c[3].endswith(metric)), None)
            if column is None:
                continue
            found = FOUND.get(block.columns[column][3].split("_retrieval_")[0])
            what = f"right {found} among the first five" if found else "named right at first guess"
            measured = [(values[column], name) for name, values in block.rows if values[column] is not None]
            if not measured:
                continue
            value, name = max(measured, key=lambda pair: pair[0] or 0.0)
            chance = block.chance[column]
            times = f", {value / chance:,.0f} × chance ({percent(chance)} %)" if value and chance else ""
            made.append(
                f'<div class="card"><p class="what">{escape(block.split)}<br>{what}</p>'
                f'<b>{percent(value)} %</b><p class="than">{escape(name)}{times}</p></div>'
            )
    return f'<div class="cards">{"".join(made)}</div>' if made else ""


def comparison(blocks: Sequence[Block]) -> str:
    """One table per split: runs, and chance as the last row."""
    if not blocks:
        return ""
    text = (
        "Percent. <b>Zero-shot</b>: a picture, clip or sound is named out of all the labels of its split; "
        "<b>probe</b>: by a linear classifier of locked features; <b>trained</b>: by a classifier; bal. is "
        "the mean over the classes. <b>Retrieval</b>, a → b: with a one looks for the b that belongs to it, "
        "among all of the split; R@K asks whether a right one is among the first K, MedR is the median rank "
        "of the first right one (a rank, as d' is no percentage). <b>Detection</b>: average precision of "
        "boxes, every label of the split asked in every scene; apart for labels that training had boxes of; "
        "one-shot asks with a box in place of a name. Bold green is the best run; chance is what a random "
        "order reaches, of boxes: the same boxes under wrong names."
    )
    return f'<p class="soft">{text}</p>' + "".join(_table(block) for block in blocks)


def _table(block: Block) -> str:
    used, columns = block.used(), block.columns
    groups = [(head, len(list(group))) for head, group in itertools.groupby(columns[i][0] for i in used)]
    first = [i for n, i in enumerate(used) if n == 0 or columns[used[n - 1]][0] != columns[i][0]]
    best = block.best()

    def cell(i: int, value: float | None, mark: bool = False) -> str:
        css = " ".join((["left"] if i in first else []) + (["best"] if mark else []))
        return f'<td class="{css}">{percent(value)}</td>'

    top = "".join(f'<th class="group" colspan="{span}">{escape(head)}</th>' for head, span in groups)
    heads = "".join(f'<th class="{"left" if i in first else ""}">{columns[i][1]}</th>' for i in used)
    rows = []
    for name, values in block.rows:
        cells = [cell(i, values[i], values[i] is not None and values[i] == best[i]) for i in used]
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    chance = "".join(cell(i, block.chance[i]) for i in used)
    return (
        f'<h3>{escape(block.split)} <span class="size">· {escape(block.size)}</span></h3>'
        f'<div class="scroll"><table><thead><tr><th></th>{top}</tr><tr><th></th>{heads}</tr></thead>'
        f'<tbody>{"".join(rows)}<tr class="chance"><td>chance</td>{chance}</tr></tbody></table></div>'
    )


def tabs(name: str, panes: Sequence[tuple[str, str]]) -> str:
    """Panes behind buttons, without a script; a single pane stands alone."""
    panes = [(title, html) for title, html in panes if html]
    if len(panes) < 2:
        return "".join(html for _, html in panes)
    inputs, labels, sections, rules = [], [], [], []
    for i, (title, html) in enumerate(panes):
        key = f"{name}{i}"
        checked = " checked" if i == 0 else ""
        inputs.append(f'<input type="radio" name="{name}" id="{key}"{checked}>')
        labels.append(f'<label for="{key}">{escape(title)}</label>')
        sections.append(f'<section id="{key}p">{html}</section>')
        rules.append(
            f"#{key}:checked~#{key}p{{display:block}}#{key}:checked~label[for={key}]"
            "{background:var(--tint);border-color:var(--accent);color:var(--accent)}"
            f"#{key}:focus-visible~label[for={key}]{{outline:2px solid var(--accent)}}"
        )
    style = f"<style>{''.join(rules)}</style>"
    return f'<div class="tabs">{style}{"".join(inputs)}{"".join(labels)}{"".join(sections)}</div>'


def found_pictures(queries: Sequence[Query], thumbnail: Callable[[int], str]) -> str:
    """Captions, each with the five pictures it found; right ones framed green and ticked."""
    rows = []
    for query in queries:
        tiles = []
        for hit in query.hits:
            mark = '<span class="mark" title="right">✓</span>' if hit.right else ""
            image = f'<img src="{thumbnail(hit.row)}" alt="{escape(hit.caption)}" loading="lazy">'
            tiles.append(
                f'<div class="hit{" right" if hit.right else ""}"><div class="tile">{image}{mark}</div>'
                f'<span class="word" title="{escape(hit.caption)}">{escape(hit.caption)}</span>'
                f'<span class="score">{hit.score:.2f}</span></div>'
            )
        right = sum(hit.right for hit in query.hits)
        there = "found" if right else "not found"
        if query.positives > 1:
            there = f"{right or 'none'} of the {query.positives} right ones"
        rows.append(
            f'<div class="query"><div class="ask">“{escape(query.caption)}”<small>{there}</small></div>'
            f'<div class="hits">{"".join(tiles)}</div></div>'
        )
    return "".join(rows)


def named_pictures(guesses: Sequence[Guess], thumbnail: Callable[[int], str]) -> str:
    """Pictures, each with the five likeliest classes as bars."""
    made = []
    for guess in guesses:
        image = f'<img src="{thumbnail(guess.row)}" alt="{escape(guess.label)}" loading="lazy">'
        rows = [(name, p, f"{100 * p:.1f} %", name == guess.label) for name, p in guess.classes]
        made.append(
            f'<div class="guess"><div class="tile">{image}</div><div><p class="label">it is: '
            f"<b>{escape(guess.label)}</b></p>{bars(rows)}</div></div>"
        )
    return f'<div class="guesses">{"".join(made)}</div>' if made else ""


def sheets(runs: Sequence[RunFolder]) -> str:
    """HTML of the pictures that evaluation programs drew, each under its run's name; "" for none."""
    shown = [(run.name, sheet) for run in runs for sheet in run.sheets]
    return "".join(
        f"<h3>{escape(name)}</h3>"
        f'<img class="sheet" alt="{escape(sheet.stem)}" '
        f'src="data:image/png;base64,{base64.b64encode(sheet.read_bytes()).decode()}">'
        for name, sheet in shown
    )


def curves(runs: Sequence[RunFolder]) -> str:
    """Loss and metrics over samples seen, one line per run."""
    names = [run.name for run in runs if run.rows]
    places = {name: i % 6 for i, name in enumerate(names)}
    evaluated = sorted({key for run in runs for row in run.rows for key in row if key.startswith("eval/")})
    shown = {key: _title(key) for key in evaluated if _worth(key)}
    charts = []
    for metric, title in (CURVES | shown).items():
        lines = {run.name: points for run in runs if len(points := run.series(metric)) > 1}
        if lines:
            charts.append(line_chart(title, lines, places))
    note = (
        '<p class="soft">Over samples seen; where a line is noisy, the strong one is its moving average.</p>'
    )
    return note + legend(names, places) + f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _title(metric: str) -> str:
    """A reader's words for an evaluation metric."""
    words = metric.removeprefix("eval/")
    for name, plain in (
        ("acc1", "zero-shot top-1"),
        ("acc5", "zero-shot top-5"),
        ("image_retrieval_recall@", "text → image R@"),
        ("text_retrieval_recall@", "image → text R@"),
        ("rsum", "sum of the six recalls, %"),
    ):
        words = words.replace(name, plain)
    return "validation: " + words.replace("_", " ")


def _worth(metric: str) -> bool:
    """Evaluation metrics that a reader wants to see as a curve: not counts, chances or means of ranks."""
    return not any(
        word in metric for word in ("chance", "_n", "/n", "candidates", "without", "classes", "rank")
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table; its first and last column are words, the others numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        last = len(row) - 1
        css = [' class="words"' if i in (0, last) else "" for i in range(len(row))]
        return "".join(f"<{tag}{c}>{escape(text)}</{tag}>" for c, text in zip(css, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def timing(seconds: Mapping[str, float]) -> str:
    """Seconds of each step as bars, and their sum."""
    if not seconds:
        return ""
    rows = [(name, s, clock(s), False) for name, s in seconds.items()]
    said = f"{clock(sum(seconds.values()))} if one after the other; steps may have run side by side."
    return f'<p class="soft">{said}</p><div class="wide">{bars(rows)}</div>'


def clock(seconds: float) -> str:
    """12 s, 3 min 20 s."""
    whole = round(seconds)
    return (
        f"{whole // 60} min {whole % 60:02d} s"
        if whole >= 60
        else f"{seconds:.1f} s"
        if seconds < 10
        else f"{whole} s"
    )


def configuration(runs: Sequence[RunFolder]) -> str:
    """Each run's configuration and machine, folded."""
    made = []
    for run in runs:
        lines = [
            f"{key}: {value}" for key, value in run.environment.items() if not isinstance(value, dict | list)
        ]
        packages = run.environment.get("packages") or {}
        lines += [", ".join(f"{name} {version}" for name, version in packages.items())] if packages else []
        text = "\n\n".join(part for part in (run.config.strip(), "\n".join(lines)) if part)
        if text:
            made.append(f"<details><summary>{escape(run.name)}</summary><pre>{escape(text)}</pre></details>")
    return "".join(made)
