import hashlib
import importlib.util
import json
import sys

import numpy as np
import pytest

from mmvit.data.loader import make_loader
from mmvit.data.shards import ShardIndex
from mmvit.data.text import load_tokenizer
from mmvit.data.validate import validate
from mmvit.data.write import ShardWriter


@pytest.fixture(scope="module")
def scripts(root_path):
    """scripts("name", *arguments) runs scripts/name.py as a command line would; returns its exit code."""

    def run(name: str, *arguments) -> int:
        spec = importlib.util.spec_from_file_location(name, root_path / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        before, sys.argv = sys.argv, [name, *map(str, arguments)]
        try:
            module.main()
        except SystemExit as exit_:
            return exit_.code or 0
        finally:
            sys.argv = before
        return 0

    return run


@pytest.fixture(scope="module")
def root_path(request):
    return request.config.rootpath


@pytest.fixture
def photos(tmp_path, picture, image_bytes):
    """Two classes, one photo at the top with its caption, one broken picture."""
    folder = tmp_path / "photos"
    for name in ("cats/a.b.png", "cats/two.jpg", "big dogs/a.png", "top.png", "cats/broken.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        path.write_bytes(b"broken" if "broken" in name else image_bytes(picture(9, 9), kind))
    (folder / "top.txt").write_text("from the file")
    (folder / "top.json").write_text('{"texts": ["more"]}')
    return folder


def samples(folder) -> dict[str, dict]:
    index = ShardIndex.open(str(folder))
    return {index.key(i): index.read(i) for i in range(index.samples)}


def test_a_folder_becomes_shards(scripts, photos, tmp_path, capsys):
    assert (
        scripts(
            "make_shards", "--source", photos, "--out", tmp_path / "s" / "train", "--samples-per-shard", 3
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert "4 samples in 2 shards" in out
    assert "left out 1: image-unreadable" in err
    read = samples(tmp_path / "s")
    assert set(read) == {"cats_a_b", "cats_two", "big_dogs_a", "top"}
    assert read["cats_a_b"]["txt"] == b"cats"
    assert json.loads(read["big_dogs_a"]["json"]) == {"label": "big dogs"}
    assert read["top"]["txt"] == b"from the file"
    assert {"jpg", "txt", "json"} <= set(read["cats_two"])
    assert scripts("make_shards", "--validate", tmp_path / "s") == 0
    with make_loader(str(tmp_path / "s"), batch_size=4, num_batches=1) as loader:
        assert next(iter(loader)).image.shape == (4, 3, 224, 224)


def test_tables_become_shards(scripts, photos, tmp_path):
    (photos / "pairs.csv").write_text(
        "file,title,kind\ncats/two.jpg,first,x\ncats/two.jpg,second,x\ntop.png,caf\u00e9,y\nmissing.png,gone,y\n",
        encoding="utf-8",
    )
    options = ("--image-column", "file", "--text-column", "title", "--label-column", "kind")
    assert (
        scripts("make_shards", "--source", photos / "pairs.csv", "--out", tmp_path / "c" / "t", *options) == 0
    )
    read = samples(tmp_path / "c")
    assert read["cats_two"]["txt"] == b"first"
    assert json.loads(read["cats_two"]["json"]) == {"label": "x", "texts": ["second"]}
    assert read["top"]["txt"].decode() == "caf\u00e9"
    assert len(read) == 2
    rows = [
        {"image": "top.png", "text": ["one", "two"], "source": "me"},
        {"image": "cats/two.jpg", "text": "three"},
    ]
    (photos / "pairs.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    assert scripts("make_shards", "--source", photos / "pairs.jsonl", "--out", tmp_path / "j" / "t") == 0
    read = samples(tmp_path / "j")
    assert json.loads(read["top"]["json"]) == {"source": "me", "texts": ["two"]}
    assert read["cats_two"]["txt"] == b"three"


def test_videos_and_sounds_become_shards(scripts, tmp_path, movie, sound_bytes, picture, image_bytes, capsys):
    root = tmp_path / "in"
    (root / "birds").mkdir(parents=True)
    wave = np.sin(np.arange(16_000) / 5) / 2
    files = {
        "birds/duck.mp4": movie([9] * 20, sound=np.ones(96_000) * 0.1), "birds/duck.txt": b"a duck swims",
        "birds/crow.wav": sound_bytes(wave), "birds/crow.fr.wav": sound_bytes(wave),
        "fox.png": image_bytes(picture(8, 8, 0)), "fox.wav": sound_bytes(wave), "fox.txt": b"a fox",
        "cut.mp4": b"\0" * 99,
    }  # fmt: skip
    for name, data in files.items():
        (root / name).write_bytes(data)
    scripts("make_shards", "--source", str(root), "--out", str(tmp_path / "out" / "a"))
    assert "left out 1: media-unreadable" in capsys.readouterr().err
    found = samples(tmp_path / "out")
    assert {key: sorted(set(raw) - {"__key__"}) for key, raw in found.items()} == {
        "birds_duck": ["json", "mp4", "txt"],
        "birds_crow": ["fr.wav", "json", "txt", "wav"],
        "fox": ["png", "txt", "wav"],
    }
    assert found["birds_crow"]["txt"] == b"birds"
    report = validate(str(tmp_path / "out"))
    assert report.ok
    assert report.seconds["videos"] == (1, pytest.approx(2.0), pytest.approx(2.0))
    assert report.seconds["sounds"][0] == 3
    hurt = wave.copy()
    hurt[9000] = np.nan
    with ShardWriter(tmp_path / "bad" / "a", 9) as writer:
        writer.write("a", {"wav": sound_bytes(hurt, 16_000, "WAV", "FLOAT"), "txt": "x"})
        writer.write("b", {"mp4": files["birds/duck.mp4"][:600]})
    assert dict(validate(str(tmp_path / "bad")).problems) == {"audio-not-finite": 1, "media-unreadable": 1}


def test_equal_input_gives_equal_shards(scripts, photos, tmp_path):
    digests = []
    for name in ("one", "two"):
        assert scripts("make_shards", "--source", photos, "--out", tmp_path / name / "t") == 0
        digests.append(hashlib.sha256((tmp_path / name / "t-000000.tar").read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_colliding_names_stay_apart(scripts, tmp_path, picture, image_bytes):
    folder = tmp_path / "p"
    folder.mkdir()
    for name in ("a b.png", "a.b.png", "a_b.png", "x" * 150 + ".png", "x" * 150 + "y.png"):
        (folder / name).write_bytes(image_bytes(picture(4, 4)))
    assert scripts("make_shards", "--source", folder, "--out", tmp_path / "s" / "t") == 0
    assert len(samples(tmp_path / "s")) == 5


def test_mistakes_are_one_line_and_exit_code_2(scripts, photos, tmp_path, capsys):
    (photos / "latin.csv").write_bytes("image,text\ntop.png,caf\xe9\n".encode("latin1"))
    (photos / "bad.jsonl").write_text('{"image": "top.png"}\n{oops\n')
    (photos / "cols.csv").write_text("picture,text\ntop.png,x\n")
    (photos / "gone.csv").write_text("image,text\nnowhere.png,x\n")
    (tmp_path / "empty").mkdir()
    for source, message in [
        (tmp_path / "nowhere", "no such folder or table"),
        (tmp_path / "empty", "holds no pictures"),
        (photos / "latin.csv", "not a UTF-8 table"),
        (photos / "bad.jsonl", "line 2 is not JSON"),
        (photos / "cols.csv", "no column 'image'"),
        (photos / "gone.csv", "none of the 1 samples can be used"),
        (photos / "top.png", "expected a folder"),
    ]:
        assert scripts("make_shards", "--source", source, "--out", tmp_path / "o" / "t") == 2
        err = capsys.readouterr().err.strip()
        assert message in err
        assert err.startswith("error: ")
        assert "\n" not in err
    assert scripts("make_shards", "--source", photos) == 2
    assert not list((tmp_path / "o").glob("*.tar")) if (tmp_path / "o").exists() else True


def test_validate_and_index_modes(scripts, shards, tmp_path, raw_tar, capsys):
    raw_tar("a.tar", [("x.txt", b"")])
    assert scripts("make_shards", "--validate", tmp_path) == 1
    assert "PROBLEM member-empty: 1" in capsys.readouterr().out
    assert scripts("make_shards", "--index", tmp_path) == 0
    assert "1 shards, 1 samples" in capsys.readouterr().out
    assert scripts("make_shards", "--index", tmp_path / "none") == 2


def test_train_tokenizer(scripts, shards, tmp_path, capsys):
    for name in ("one", "two"):
        code = scripts("train_tokenizer", "--data", shards, "--out", tmp_path / name, "--vocab-size", 300,
                       "--languages", "en", "de")  # fmt: skip
        assert code == 0
    out = capsys.readouterr().out
    assert "180 captions" in out
    one, two = load_tokenizer(tmp_path / "one"), load_tokenizer(tmp_path / "two")
    assert one.fingerprint() == two.fingerprint()
    assert one.decode(one(["s caption 7"]).ids[0].tolist()) == "s caption 7"
    assert scripts("train_tokenizer", "--data", shards) == 2
