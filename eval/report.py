"""One HTML file that shows what several runs learned: table, examples with pictures, curves, data, timing.

    python eval/report.py --runs runs/quick/lit_Lu "from scratch"=runs/quick/uu --out runs/quick/report.html
        --data data/corpus/test_style/emoji data/corpus/test_concept/emoji --train 'data/corpus/train/*/*.tar'

A run folder gives its name, metrics.jsonl, config.yaml, env.json, model/, the results in RUN/eval/*.json,
and RUN/embeddings when the evaluation programs were told to keep them there (--cache). Whatever is missing
is left out.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path

from mmvit.cli.pair import embed, is_pair, open_saved, pair_of, texts_of
from mmvit.cli.report import facts, gallery, page
from mmvit.cli.report.runs import RunFolder, read_run
from mmvit.errors import UserError, one_line
from mmvit.evaluators.image_text import read_facts, zero_shot
from mmvit.evaluators.results import dataset_and_split, read_results
from mmvit.evaluators.table import blocks, comparison_table
from mmvit.hub.fingerprint import fingerprint
from mmvit.models.lit import DualEncoder
from mmvit.models.towers import bare
from mmvit.options import parse


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        runs: run folders, in the order of the rows; NAME=FOLDER gives one another name.
        out: the HTML file.
        data: held-out shards whose pictures are shown; folders or quoted patterns.
        train: training shards, for the facts about the data; "::" joins several.
        results: further result JSONs.
        timing: JSON {"step": seconds}.
        title: heading.
        examples: how many captions, and how many pictures, are shown in all.
        precision: fp32, bf16 or fp16, as the evaluation programs had it (embeddings are kept by precision).
        device: auto, cpu, cuda, ….
    """

    runs: tuple[str, ...]
    out: str
    data: tuple[str, ...] = ()
    train: str = ""
    results: tuple[str, ...] = ()
    timing: str = ""
    title: str = "Locked-image tuning: what the runs learned"
    examples: int = 10
    precision: str = "fp32"
    device: str = "auto"


def examples(config: Config, runs: list[RunFolder]) -> tuple[str, str]:
    """HTML of (captions and the pictures they find, pictures and the names they get), a tab per run."""
    found, named = [], []
    thumbnails = {urls: gallery.Thumbnails(urls) for urls in config.data}
    for run in runs:
        if run.kind != "dual_encoder":
            continue
        opened = open_saved(str(run.model), config.device, DualEncoder, "a dual_encoder")
        if not is_pair(opened):
            continue  # it hears sounds or sees clips, and what is shown are pictures
        pair = pair_of(opened, str(run.model))
        tower = fingerprint(bare(pair.model.image), pair.preprocess)
        cache = str(run.path / "embeddings")
        encode = texts_of(pair, config.precision, cache)
        seen, guessed = "", ""
        for urls, count in zip(config.data, _shares(config.examples, len(config.data)), strict=True):
            data, templates = measured(run, urls)
            pictures = embed(pair, data, tower, precision=config.precision, cache=cache)
            numbers = pictures.index.tolist()
            captions = [texts[0] for texts in pictures.captions]
            distinct = {caption: i for i, caption in reversed(list(enumerate(captions)))}
            rows = [
                distinct[c] for c in (sorted(distinct)[i] for i in gallery.chosen(sorted(distinct), count))
            ]
            bank = encode(captions)
            heading = f"<h3>{' '.join(dataset_and_split(urls)).strip()}</h3>"
            show = thumbnails[urls]
            asked = gallery.queries(pictures, bank, captions, rows)
            seen += heading + page.found_pictures(asked, lambda row, n=numbers, t=show: t(n[row]))
            if any(meta.get("label") for meta in pictures.meta):
                names = zero_shot(pair.model, pair.tokenizer, pictures, templates=templates, encode=encode)
                chosen = gallery.guesses(pair.model, pictures, names, gallery.chosen(pictures.keys, count))
                guessed += heading + page.named_pictures(chosen, lambda row, n=numbers, t=show: t(n[row]))
        encode.save()
        found.append((run.name, seen))
        named.append((run.name, guessed))
    return page.tabs("found", found), page.tabs("named", named)


def measured(run: RunFolder, urls: str) -> tuple[str, str | list[str]]:
    """(shards, templates) behind this run's results on the split of `urls`, else (`urls`, default).

    Those shards may hold cached features in place of the pictures, in the same order.
    """
    name = dataset_and_split(urls)
    own = [r for r in run.results if (r["dataset"], r["split"]) == name]
    data = next((r["data"] for r in own if "data" in r), urls)
    return data, next((r["templates"] for r in own if "templates" in r), "default")


def _title(urls: str) -> str:
    """Heading of shards: "corpus test_style/emoji" for one source, "corpus train" for several joined."""
    dataset, split = dataset_and_split(urls.split("::")[0])
    return f"{dataset} {split.split('/')[0] if '::' in urls else split}".strip()


def build(config: Config) -> tuple[str, str]:
    """(the report's HTML, the comparison table for the terminal).

    Raises:
        UserError: a missing run or file, or shards that do not fit the model.
    """
    runs = [_named(word) for word in config.runs]
    results = [found for run in runs for found in run.results]
    results += [found for file in config.results for found in read_results(file)]
    names = {str(run.path): run.name for run in runs}
    table = blocks(results, names)
    found, named = examples(config, runs) if config.data else ("", "")
    splits = {_title(urls): read_facts(urls, captions=None) for urls in _all(config)}
    when = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    machine = next((run.environment for run in runs if run.environment), {})
    subtitle = [when, f"{len(runs)} run{'s' if len(runs) > 1 else ''}", str(machine.get("platform", ""))]
    sections = [
        ("Comparison", page.comparison(table)),
        ("Captions and the pictures they find", _explained(FOUND, found)),
        ("Pictures and the names they get", _explained(NAMED, named)),
        ("Scenes and what is found in them", _explained(SCENES, page.sheets(runs))),
        ("Curves", page.curves(runs)),
        ("Data", page.table(*facts.by_package(splits)) if splits else ""),
        ("Time", page.timing(_timing(config.timing))),
        ("Configuration", page.configuration(runs)),
    ]
    top = page.cards(table)
    html = page.page(config.title, " · ".join(part for part in subtitle if part), sections, top)
    return html, comparison_table(results, names)


FOUND = (
    "Held-out captions. Beside each: the five nearest of all the pictures of the split, with their own "
    "caption and the cosine. A green frame with a tick is right."
)
NAMED = (
    "The five likeliest of all the labels of the split; the model saw no example of this sorting task. Bars"
    " show the probability; the longest one has full width."
)

SCENES = (
    "Scenes of the test splits, chosen by a hash of their keys: true boxes dashed with their names below, "
    "found boxes drawn with the name and its score."
)


def _named(word: str) -> RunFolder:
    """The run of FOLDER or NAME=FOLDER."""
    name, sign, folder = word.partition("=")
    return read_run(folder, name) if sign and not Path(word).is_dir() else read_run(word)


def _explained(text: str, html: str) -> str:
    return f'<p class="soft">{text}</p>{html}' if html else ""


def _all(config: Config) -> list[str]:
    return ([config.train] if config.train else []) + list(config.data)


def _shares(total: int, parts: int) -> list[int]:
    """`total` split evenly, the first parts get what is over."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _timing(file: str) -> dict[str, float]:
    if not file:
        return {}
    try:
        return {str(k): float(v) for k, v in json.loads(Path(file).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f'--timing {file}: expected JSON {{"step": seconds}} ({error})') from None


@one_line
def main() -> None:
    """Writes the report and prints the comparison table."""
    config = parse(Config, description=__doc__ or "")
    if not config.runs:
        raise UserError("--runs names no run folder")
    html, table = build(config)
    out = Path(config.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another --out") from None
    print(table, end="\n" if table else "")
    print(f"report: {out.resolve()} ({len(html) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
