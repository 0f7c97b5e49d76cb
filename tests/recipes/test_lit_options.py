"""Options that change how a run computes, not what: profile, compiled blocks."""

import json

import pytest


def words(corpus, out, *more):
    base = {
        "--preset": "tiny",
        "--data.train": corpus / "train",
        "--model.tokenizer": corpus / "tokenizer",
        "--out": out,
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--train.steps": 6,
    }
    base |= dict(zip(more[::2], more[1::2], strict=True))
    return [str(word) for pair in base.items() for word in pair]


@pytest.mark.filterwarnings("ignore:.*events.*")
def test_a_profiled_run_has_the_same_losses(corpus, tmp_path, recipe, losses):
    recipe("lit", *words(corpus, tmp_path / "plain"))
    recipe("lit", *words(corpus, tmp_path / "profiled", "--train.profile", 2))
    assert losses(tmp_path / "profiled") == losses(tmp_path / "plain")
    folder = tmp_path / "profiled" / "profile"
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"aten::mm", "Optimizer.step#AdamW.step"} <= names
    log = (tmp_path / "profiled" / "log.txt").read_text()
    assert all(line in log for line in (folder / "top.txt").read_text().splitlines())
    assert not (tmp_path / "plain" / "profile").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_give_the_same_losses(corpus, tmp_path, recipe, losses):
    deep = ("--model.text-options", "depth=2")
    recipe("lit", *words(corpus, tmp_path / "plain", *deep))
    recipe("lit", *words(corpus, tmp_path / "compiled", *deep), "--train.compile")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=2e-5)
    assert "blocks will be compiled" in (tmp_path / "compiled" / "log.txt").read_text()
