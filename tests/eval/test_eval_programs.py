"""eval/zero_shot.py and eval/retrieval.py against the API and plain arithmetic; mistakes are one line."""

import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
import torch
from PIL import Image

import mmvit
from mmvit.data.shards import ShardIndex
from mmvit.data.write import ShardWriter


def read_everything(shards):
    index = ShardIndex.open(str(shards))
    raws = [index.read(i) for i in range(index.samples)]
    return (
        [raw["png"] for raw in raws],
        [raw["txt"].decode() for raw in raws],
        [json.loads(raw["json"]) for raw in raws],
    )


def test_zero_shot_equals_the_api(program, model, shards, tmp_path):
    out = tmp_path / "deep" / "zs.json"
    code, stdout, stderr = program(
        "eval/zero_shot.py", "--model", model, "--data", shards, "--out", out, "--batch-size", 7
    )
    assert code == 0, stderr
    assert "zero-shot" in stdout
    assert "tiny" in stdout
    found = json.loads(out.read_text())
    m = mmvit.load(model)
    pictures, _, metas = read_everything(shards)
    classifier = mmvit.ZeroShotClassifier(m, classes=["bar", "disc", "square"])
    best = classifier.logits(pictures).argmax(1)
    truth = torch.tensor([["bar", "disc", "square"].index(meta["label"]) for meta in metas])
    assert found["metrics"]["acc1"] == pytest.approx((best == truth).double().mean().item())
    assert found["metrics"]["acc5"] == 1
    assert found["metrics"]["chance_acc1"] == pytest.approx(1 / 3)
    assert (found["dataset"], found["split"], found["task"]) == (
        "drawings",
        "test_toy",
        "zero_shot_classification",
    )
    assert (found["n"], found["fingerprint"]) == (36, m.fingerprint)
    assert found["templates"] == ["{}", "a picture of {}", "a drawing of {}"]
    assert {"model", "preset", "step", "config_hash", "date"} <= set(found)


def test_class_and_template_files(program, model, shards, tmp_path):
    classes, templates = tmp_path / "classes.json", tmp_path / "templates.txt"
    classes.write_text(json.dumps({"disc": ["disc", "circle"], "square": ["square"], "star": ["star"]}))
    templates.write_text("one {}\nthe {} there\n")
    run = ["--model", model, "--data", shards, "--classes", classes, "--templates", templates]
    code, _, stderr = program("eval/zero_shot.py", *run, "--out", tmp_path / "a.json")
    assert code == 0, stderr
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["metrics"]["n"], found["metrics"]["without_label"], found["metrics"]["classes"]) == (
        24,
        12,
        3,
    )
    assert found["templates"] == ["one {}", "the {} there"]


def test_retrieval_equals_plain_arithmetic(program, model, shards, tmp_path):
    out = tmp_path / "r.json"
    code, stdout, stderr = program("eval/retrieval.py", "--model", model, "--data", shards, "--out", out)
    assert code == 0, stderr
    assert "text → image" in stdout
    metrics = json.loads(out.read_text())["metrics"]
    m = mmvit.load(model)
    pictures, captions, _ = read_everything(shards)
    score = m.encode(text=captions) @ m.encode(image=pictures).T
    right = torch.tensor([[a == b for b in captions] for a in captions])
    for name, s in (("image_retrieval", score), ("text_retrieval", score.T)):
        top = s.topk(5).indices
        assert metrics[f"{name}_recall@5"] == pytest.approx(
            right.gather(1, top).any(1).double().mean().item()
        )
        assert metrics[f"{name}_n"] == 36
        assert metrics[f"{name}_chance@1"] == pytest.approx(2 / 36)


def test_retrieval_protocols(program, model, shards, tmp_path):
    def metrics(*options):
        run = ["--model", model, "--data", shards, "--out", tmp_path / "r.json", *options]
        code, stdout, stderr = program("eval/retrieval.py", *run)
        assert code == 0, stderr
        return json.loads((tmp_path / "r.json").read_text()), stdout

    dedup, _ = metrics("--dedup-captions")
    assert dedup["metrics"]["image_retrieval_n"] == 18
    assert dedup["protocol"]["texts"] == 18
    every, _ = metrics("--captions", "all", "--group-by", "sample")
    assert every["metrics"]["image_retrieval_n"] == 72
    assert every["metrics"]["image_retrieval_chance@1"] == pytest.approx(1 / 36)
    assert every["metrics"]["text_retrieval_chance@1"] == pytest.approx(2 / 72)
    label, _ = metrics("--group-by", "label")
    assert label["metrics"]["image_retrieval_chance@1"] == pytest.approx(1 / 3)
    near, stdout = metrics("--index", "IVF4,Flat")
    assert near["approximate"]["image_retrieval"]["overlap@10"] >= 0.95
    assert "IVF4,Flat" in stdout
    plain = metrics()[0]["metrics"]
    assert near["metrics"] == plain  # the headline stays exact
    once, _ = metrics("--group-by", "label", "--distinct", "image")  # a picture of each label
    assert once["protocol"]["rows"] == {"image": 3, "text": 36}
    assert once["metrics"]["text_retrieval_n"] == 3


def test_kept_embeddings_change_nothing_and_spare_the_pictures(program, model, shards, tmp_path, monkeypatch):
    run = ["--model", model, "--data", shards, "--out", tmp_path / "a.json"]
    assert program("eval/retrieval.py", *run)[0] == 0
    plain = json.loads((tmp_path / "a.json").read_text())["metrics"]
    assert program("eval/zero_shot.py", *run, "--cache", tmp_path / "kept")[0] == 0
    assert len(list((tmp_path / "kept").iterdir())) == 2  # pictures, texts
    monkeypatch.setattr("mmvit.cli.pair.embed_pictures", lambda *_, **__: pytest.fail("embedded again"))
    assert program("eval/retrieval.py", *run, "--cache", tmp_path / "kept")[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["metrics"] == plain
    monkeypatch.undo()
    for kept in (tmp_path / "kept").iterdir():
        kept.write_bytes(b"torn")  # a full disk, say: embedded again
    code, _, stderr = program("eval/retrieval.py", *run, "--cache", tmp_path / "kept")
    assert code == 0
    assert "embedding" in stderr
    assert json.loads((tmp_path / "a.json").read_text())["metrics"] == plain


def test_several_sets_give_a_list(program, model, shards, tmp_path):
    out = tmp_path / "r.json"
    one = shards / "toy-000000.tar"
    code, _, stderr = program("eval/retrieval.py", "--model", model, "--data", shards, one, "--out", out)
    assert code == 0, stderr
    assert [found["n"] for found in json.loads(out.read_text())] == [36, 15]


def test_two_processes_share_the_pictures_and_agree_with_one(program, model, shards, tmp_path, root, start):
    data = shards / "toy-000001.tar"  # 15 pictures: unequal shares
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert program("eval/retrieval.py", "--model", model, "--data", data, "--out", one)[0] == 0
    port = str(29500 + os.getpid() % 1000)
    command = [sys.executable, root / "eval/retrieval.py", "--model", model, "--data", data, "--out", two]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        start(command, env=os.environ | world | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert "text → image" in said[0]
    assert said[1] == ""
    a, b = json.loads(one.read_text()), json.loads(two.read_text())
    assert a["n"] == b["n"] == 15
    assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-9)


def test_samples_that_cannot_be_used_are_left_out_and_said(program, model, tmp_path):
    data = tmp_path / "drawings" / "test_gaps"
    writer = ShardWriter(data / "gaps")
    writer.write("whole", {"png": picture_bytes(0), "txt": "red square", "json": {"label": "square"}})
    writer.write("mute", {"png": picture_bytes(9), "json": {"label": "square"}})
    writer.write("blind", {"txt": "a sound", "json": {"label": "sound"}})
    writer.write("torn", {"png": b"no picture", "txt": "red disc", "json": {"label": "disc"}})
    writer.finish()
    run = ["--model", model, "--data", data, "--cache", tmp_path / "kept", "--out", tmp_path / "r.json"]
    for path, n in (("retrieval", 1), ("zero_shot", 2), ("retrieval", 1)):  # the third from kept embeddings
        code, _, stderr = program(f"eval/{path}.py", *run)
        assert code == 0, stderr
        assert f"left out {4 - n} of 4 samples: " in stderr
        found = json.loads((tmp_path / "r.json").read_text())
        assert found["n"] == n
        assert sum(found["skipped"].values()) == 4 - n


def picture_bytes(shade):
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (200, shade, 0)).save(out, "png")
    return out.getvalue()


@pytest.fixture
def not_utf8(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("café\n".encode("latin-1"))
    return path


@pytest.fixture
def mistakes(tmp_path, model, shards, not_utf8):
    empty, broken, scalar = tmp_path / "empty.txt", tmp_path / "broken.tar", tmp_path / "scalar.json"
    empty.write_text("\n \n")
    broken.write_bytes(b"this is no tar" * 100)
    scalar.write_text("3")
    bare = tmp_path / "bare"
    bare.mkdir()
    with tarfile.open(bare / "bare-000000.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        data = ShardIndex.open(str(shards)).read(0)["png"]
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    good = ["--model", model, "--data", shards, "--out", tmp_path / "o.json"]
    return {
        "no model": (["--model", tmp_path / "nowhere", *good[2:]], "no model folder"),
        "no shards": ([*good[:2], "--data", tmp_path / "nowhere.tar", *good[4:]], "no such shard"),
        "not a tar": ([*good[:2], "--data", broken, *good[4:]], "broken.tar"),
        "empty classes": ([*good, "--classes", empty], "is empty"),
        "missing classes": ([*good, "--classes", tmp_path / "c.txt"], "cannot read the class list"),
        "classes not UTF-8": ([*good, "--classes", not_utf8], "not UTF-8"),
        "classes no list": ([*good, "--classes", scalar], "must be a list"),
        "unknown templates": ([*good, "--templates", "defualt"], "did you mean default"),
        "unknown classes": (
            [*good, "--classes", _file(tmp_path / "u.txt", "moose")],
            "none of the 36 samples",
        ),
        "no labels": ([*good[:2], "--data", bare, *good[4:]], "field 'label'"),
        "wrong option": ([*good, "--clases", "x"], "did you mean --classes"),
        "missing option": (good[:4], "--out is missing"),
        "no data named": ([*good[:2], "--data", "--out", "x.json"], "--data"),
        "bad device": ([*good, "--device", "abacus"], "--device abacus"),
        "bad precision": ([*good, "--precision", "fp8"], "fp8"),
        "out is a folder": ([*good[:4], "--out", tmp_path], "cannot write"),
    }


def _file(path, text):
    path.write_text(text)
    return path


MISTAKES = [
    "no model", "no shards", "not a tar", "empty classes",
    "missing classes", "classes not UTF-8", "classes no list", "unknown templates",
    "unknown classes", "no labels", "wrong option", "missing option",
    "no data named", "bad device", "bad precision", "out is a folder",
]  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(program, mistakes, name):
    assert set(mistakes) == set(MISTAKES)
    arguments, message = mistakes[name]
    code, _, stderr = program("eval/zero_shot.py", *arguments)
    assert code == 2
    lines = [line for line in stderr.splitlines() if not line.startswith("embedding ")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--index", "IVFF,Flat"], "IVFF,Flat"),
        (["--index", "IVF4096,Flat"], "36 rows"),
        (["--group-by", "artist"], "'artist'"),
        (["--captions", "all"], "--group-by sample"),
        (["--space", "va"], "space 'va' does not hold both"),
    ],
)
def test_retrieval_mistakes(program, model, shards, tmp_path, options, message):
    run = ["--model", model, "--data", shards, "--out", tmp_path / "o.json", *options]
    code, _, stderr = program("eval/retrieval.py", *run)
    assert code == 2
    assert message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
