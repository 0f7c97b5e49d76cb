"""mmvit-embed and mmvit-search: a picture is found again under its own key, by the model that embedded it."""

import json

import numpy as np
import pytest

import mmvit
from mmvit.cli import embed, search
from mmvit.data.shards import ShardIndex


@pytest.fixture
def say(capsys):
    """say(main, arguments…) -> (exit code, stdout, stderr)."""

    def run(main, *arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def folder(shards, tmp_path):
    """The toy pictures as plain files, one of them broken."""
    index = ShardIndex.open(str(shards))
    home = tmp_path / "pictures"
    (home / "deep").mkdir(parents=True)
    for i in range(6):
        raw = index.read(i)
        (home / ("deep" if i % 2 else "") / f"{raw['__key__'].decode()}.png").write_bytes(raw["png"])
    (home / "broken.png").write_bytes(b"no picture")
    (home / "notes.txt").write_text("x")
    return home


def test_every_picture_finds_itself(say, model, shards, tmp_path):
    out = tmp_path / "emb"
    code, stdout, _ = say(embed.main, "--model", model, "--data", shards, "--out", out, "--part-size", 10)
    assert code == 0
    assert "36 embeddings of 24 dimensions" in stdout
    assert len(list((out / "embeddings").iterdir())) == 4
    rows, keys, record = embed.read_embeddings(out)
    index = ShardIndex.open(str(shards))
    assert keys == [index.key(i) for i in range(36)]
    m = mmvit.load(model)
    np.testing.assert_allclose(rows, m.encode(image=[index.read(i)["png"] for i in range(36)]), atol=1e-3)
    assert record["fingerprint"] == m.fingerprint
    code, stdout, stderr = say(search.main, "--model", model, "--index", out, "--build", "red disc", "-k", 3)
    assert code == 0, stderr
    lines = stdout.splitlines()
    assert lines[1] == '"red disc"'
    best = (m.encode(text="red disc") @ rows.T)[0].numpy()
    assert lines[2].split() == [f"{best.max():.3f}", keys[int(best.argmax())]]
    assert len(lines) == 5
    picture = tmp_path / "query.png"
    picture.write_bytes(index.read(20)["png"])
    code, stdout, _ = say(search.main, "--model", model, "--index", out, "--image", picture, "--k", 1)
    assert code == 0
    assert stdout.splitlines()[1].split()[0] == "1.000"


def test_a_folder_of_pictures_and_a_broken_one(say, model, folder, tmp_path):
    code, stdout, _ = say(embed.main, "--model", model, "--data", folder, "--out", tmp_path / "emb")
    assert code == 0
    assert "6 embeddings" in stdout
    assert "1 unreadable picture" in stdout
    _, keys, _ = embed.read_embeddings(tmp_path / "emb")
    assert "deep/red-disc-0.png" in keys
    assert "broken.png" not in keys


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(say, model, shards, tmp_path, monkeypatch):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run = ["--model", model, "--data", shards, "--part-size", 10, "--batch-size", 4]
    assert say(embed.main, *run, "--out", whole)[0] == 0
    calls = []
    original = mmvit.Embedder.encode

    def dies(self, **inputs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, **inputs)

    monkeypatch.setattr(mmvit.Embedder, "encode", dies)
    assert say(embed.main, *run, "--out", torn)[0] == 130
    assert json.loads((torn / "index.json").read_text())["read"] == 20
    assert say(embed.main, *run, "--out", torn)[0] == 0
    assert len(calls) == 8 + 5  # the last two parts, of 3 and 2 batches
    for part in sorted((whole / "embeddings").iterdir()):
        assert part.read_bytes() == (torn / "embeddings" / part.name).read_bytes()
    assert say(embed.main, *run, "--out", torn)[0] == 0
    assert len(calls) == 13


def test_mistakes_are_one_line(say, model, other, shards, folder, tmp_path):
    out = tmp_path / "emb"
    assert say(embed.main, "--model", model, "--data", shards, "--out", out)[0] == 0
    empty = tmp_path / "empty"
    empty.mkdir()
    found = ["--model", model, "--index", out]
    cases = [
        (embed.main, ["--model", other, "--data", shards, "--out", out], "another model"),
        (embed.main, ["--model", model, "--data", folder, "--out", out], "other data"),
        (embed.main, ["--model", model, "--data", empty, "--out", tmp_path / "x"], "neither .tar shards"),
        (
            embed.main,
            ["--model", tmp_path / "no", "--data", shards, "--out", tmp_path / "x"],
            "no model folder",
        ),
        (embed.main, ["--data", shards, "--out", tmp_path / "x"], "--model is missing"),
        (search.main, [*found, "a fox"], "add --build once"),
        (search.main, [*found, "--build", "--factory", "IVFF"], "IVFF"),
        (search.main, ["--model", other, "--index", out, "--build"], "another model"),
        (search.main, found, "nothing to look for"),
        (search.main, ["--model", model, "--index", empty, "a fox"], "index.json is missing"),
        (search.main, [*found, "--build", "--image", tmp_path / "no.png"], "no file"),
        (search.main, [*found, "fox", "--k", "0"], "at least 1"),
        (search.main, [*found, "fox", "--facctory", "flat"], "did you mean --factory"),
    ]
    for main, arguments, message in cases:
        code, _, stderr = say(main, *arguments)
        lines = [line for line in stderr.splitlines() if not line.startswith("embedding")]
        assert (code, len(lines)) == (2, 1), (arguments, stderr)
        assert message in lines[0]
