"""eval/report.py: everything is in the one file, the marks are right, and whatever is missing is left out."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from mmvit.cli.report import charts, facts, gallery, page
from mmvit.cli.report.runs import read_run
from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.evaluators.embed import Embedded
from mmvit.hub import save
from mmvit.models.config import CoreConfig, DualEncoderConfig, TextTowerConfig, WaveformTowerConfig
from mmvit.models.lit import DualEncoder
from tests.eval.conftest import tiny_tokenizer

VOID = {"meta", "img", "input", "br", "line", "circle", "polyline", "link", "hr"}


class Tree(HTMLParser):
    """Checks that every element is closed and collects what is needed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID or tag in ("circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag, css=""):
        return [a for t, a in self.elements if t == tag and css in (a.get("class") or "")]


@pytest.fixture
def runs(model, other, tmp_path):
    """Two run folders with models, metrics, configuration and one torn line."""
    made = []
    for name, source in (("lit_Lu", model), ("scratch & <burn>", other)):
        home = tmp_path / "runs" / name
        home.mkdir(parents=True)
        shutil.copytree(source, home / "model")
        rows = [
            {"step": i, "samples_seen": 8 * i, "train/loss": 3 / i, "train/in_batch_top1": 0.1 * i}
            for i in (1, 2, 3)
        ]
        rows += [{"step": 4, "samples_seen": 32, "train/loss": None, "eval/val/acc1": 0.3}]
        (home / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 5, "tr')
        (home / "config.yaml").write_text("preset: tiny\n")
        (home / "env.json").write_text('{"python": "3.11", "packages": {"torch": "2"}}')
        made.append(home)
    return made


@pytest.fixture
def measured(program, runs, shards):
    for run in runs:
        common = ["--model", run / "model", "--data", shards, "--cache", run / "embeddings"]
        assert program("eval/zero_shot.py", *common, "--out", run / "eval" / "zero_shot.json")[0] == 0
        assert program("eval/retrieval.py", *common, "--out", run / "eval" / "retrieval.json")[0] == 0
    return runs


def test_the_report_is_whole_and_self_contained(program, measured, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("mmvit.cli.pair.embed_pictures", lambda *_, **__: pytest.fail("embedded again"))
    out, timing = tmp_path / "out" / "report.html", tmp_path / "timing.json"
    timing.write_text('{"train": 75.2, "evaluate": 3}')
    code, stdout, stderr = program(
        "eval/report.py", "--runs", measured[0], f"other={measured[1]}", "--data", shards, "--train", shards,
        "--timing", timing, "--out", out, "--examples", 4,
    )  # fmt: skip
    assert code == 0, stderr
    assert "text → image" in stdout
    html = out.read_text()
    tree = Tree(html)
    text = " ".join(tree.text)
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)
    assert "http" not in html
    assert not tree.all("script")
    assert html.count("<table>") == 2
    for words in (
        "Comparison",
        "Curves",
        "Data",
        "Time",
        "Configuration",
        "training loss",
        "preset: tiny",
        "1 min 15 s",
    ):
        assert words in text
    for words in ("artist0@1.0", "CC0-1.0", "drawings test_toy"):
        assert words in text
    assert len(tree.all("div", "query")) == 2 * 4
    assert len(tree.all("img")) == 2 * (4 * 5 + 4)
    assert all(a["src"].startswith("data:image/webp;base64,") for a in tree.all("img"))
    assert len(tree.all("input")) == 4  # two tab groups of two runs
    marks = len(tree.all("div", "hit right"))
    assert marks == html.count('<span class="mark"') > 0


def test_a_run_of_sounds_shows_no_pictures(program, measured, shards, tmp_path):
    core = CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=64)
    ears = WaveformTowerConfig(core=core, samples=8000, patch_size=200, position="axes", embed_dim=24)
    text = TextTowerConfig(core=core, vocab_size=56, context_length=24, pool="mean", embed_dim=24)
    run = tmp_path / "heard"
    fed = ClipPreprocess(audio=AudioPreprocess(sample_rate=8000, samples=8000))
    pair = DualEncoder(DualEncoderConfig(image=ears, text=text))
    save(pair, run / "model", preprocess=fed, tokenizer=tiny_tokenizer())
    out = tmp_path / "r.html"
    code, _, stderr = program("eval/report.py", "--runs", run, measured[0], "--data", shards, "--out", out)
    assert code == 0, stderr
    assert len(Tree(out.read_text()).all("div", "query")) == 10


def test_names_are_escaped_and_can_be_given(program, measured, tmp_path):
    out = tmp_path / "r.html"
    code, stdout, _ = program("eval/report.py", "--runs", f"LiT=Lu={measured[0]}", measured[1], "--out", out)
    assert code == 2  # LiT = the folder "Lu=…", which is not there
    code, stdout, _ = program(
        "eval/report.py", "--runs", f"LiT (Lu)={measured[0]}", measured[1], "--out", out
    )
    assert code == 0
    assert "LiT (Lu)" in stdout
    html = out.read_text()
    Tree(html)
    assert "<burn>" not in html
    assert "scratch &amp; &lt;burn&gt;" in html


def test_right_pictures_are_those_of_the_same_caption(measured, shards):
    import torch

    axes = torch.eye(4)
    pictures = Embedded(torch.arange(4), list("abcd"), {"image": axes}, [[c] for c in "xxyz"], [{}] * 4)
    asked = axes + 0.2 * axes[[1, 0, 3, 2]]
    first, second = gallery.queries(pictures, asked, ["Fox", "fox.", "cat", "dog"], [0, 2], k=2)
    assert (first.caption, first.positives, [h.right for h in first.hits]) == ("Fox", 2, [True, True])
    assert (second.caption, second.positives, [h.right for h in second.hits]) == ("cat", 1, [True, False])
    assert [h.row for h in second.hits] == [2, 3]


def test_what_is_missing_is_left_out(program, runs, tmp_path):
    out = tmp_path / "r.html"
    shutil.rmtree(runs[0] / "model")
    (runs[0] / "config.yaml").unlink()
    (runs[0] / "env.json").unlink()
    code, _, stderr = program("eval/report.py", "--runs", runs[0], "--out", out)
    assert code == 0, stderr
    text = " ".join(Tree(out.read_text()).text)
    assert "Curves" in text
    assert not any(word in text for word in ("Configuration", "Comparison", "Time", "Captions"))


def test_mistakes_are_one_line(program, runs, tmp_path, shards):
    bad = tmp_path / "bad.json"
    bad.write_text("[1, 2]")
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "r.html"
    for arguments, message in (
        (["--runs", tmp_path / "none", "--out", out], "no run folder"),
        (["--runs", empty, "--out", out], "is no run folder"),
        (["--runs", runs[0], "--out", out, "--timing", bad], "--timing"),
        (["--runs", runs[0], "--out", out, "--results", bad], "no result"),
        (["--runs", runs[0], "--out", out, "--data", tmp_path / "none.tar"], "no such shard"),
        (["--runs", runs[0], "--out", tmp_path], "cannot write"),
    ):
        code, _, stderr = program("eval/report.py", *arguments)
        assert (code, len(stderr.splitlines())) == (2, 1), stderr
        assert message in stderr


def test_a_runs_series_skips_what_is_no_number(runs):
    run = read_run(runs[0])
    assert run.series("train/loss") == [(8.0, 3.0), (16.0, 1.5), (24.0, 1.0)]
    assert run.series("eval/val/acc1") == [(32.0, 0.3)]
    assert len(run.rows) == 4


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.003, 0.0041), (-5, 1200), (7, 7), (0, 0)])
def test_ticks_are_round_and_cover(low, high):
    found = charts.ticks(low, high, 5)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    steps = {round(b - a, 9) for a, b in zip(found, found[1:], strict=False)}
    assert len(steps) == 1


def test_smoothing_keeps_a_constant_and_counts_are_summed():
    assert [y for _, y in charts.smooth([(x, 2.0) for x in range(50)])] == pytest.approx([2.0] * 50)
    metas = [{"package": "a@1", "licence": "MIT"}, {"package": "a@1 + b@2", "licence": "MIT + GPL"}, {}]
    split = Embedded(None, list("xyz"), {}, [], metas)
    heads, rows = facts.by_package({"train": split})
    assert heads == ["package", "train", "licence"]
    assert rows == [
        ["a@1", "2", "MIT"],
        ["b@2", "1", ""],
        ["not named", "1", ""],
        ["samples in all", "3", ""],
    ]
    assert [page.clock(s) for s in (3.21, 45.4, 75.2, 3600)] == ["3.2 s", "45 s", "1 min 15 s", "60 min 00 s"]
