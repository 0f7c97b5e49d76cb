"""mmvit-embed and mmvit-search over clips, sounds and pictures, apart and in one index."""

import json

import numpy as np
import pytest

import mmvit
from mmvit.cli import embed, search
from mmvit.cli.items import items_of
from tests.api.media import COLOURS, TONES, mp4, png, save_model, tone, wav, write_shards


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


@pytest.fixture(scope="module")
def vatt(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "vatt")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of all kinds, one of them broken, and one that is no medium."""
    home = tmp_path_factory.mktemp("files")
    (home / "deep").mkdir()
    (home / "deep" / "red.mp4").write_bytes(mp4("red"))
    (home / "blue.wav").write_bytes(wav(tone(TONES["blue"])))
    (home / "green.PNG").write_bytes(png("green"))
    (home / "broken.mp4").write_bytes(mp4("red")[:300])
    (home / "notes.txt").write_text("x")
    return home


def test_one_index_of_clips_sounds_and_pictures(say, vatt, media, tmp_path):
    out, places = tmp_path / "emb", f"{media}/clips::{media}/things"
    code, stdout, stderr = say(
        embed.main, "--model", vatt, "--data", places, "--out", out, "--part-size", 3, "--batch-size", 2
    )
    assert code == 0, stderr
    assert "12 embeddings of 16 dimensions" in stdout
    rows, keys, record = embed.read_embeddings(out)
    assert (record["modality"], record["views"]) == ("auto", 1)
    assert keys[:4] == [f"{c}-moves.mp4" for c in COLOURS]
    assert sorted(keys[4:]) == sorted(f"{c}-thing.{e}" for c in COLOURS for e in ("png", "wav"))
    model = mmvit.load(vatt)
    asked = {
        "video": [mp4(c) for c in COLOURS],
        "image": [png(c) for c in COLOURS],
        "audio": [wav(tone(TONES[c])) for c in COLOURS],
    }
    for (modality, contents), extension in zip(asked.items(), ("mp4", "png", "wav"), strict=True):
        mine = [i for i, key in enumerate(keys) if key.endswith(extension)]
        np.testing.assert_allclose(rows[mine], model.encode(**{modality: contents}), atol=1e-3)
    assert [p[:2] for p in embed.read_places(out)[:4]] == [("video", i) for i in range(4)]
    for modality, number, extension in embed.read_places(out):
        items = items_of(places, ("video", "image", "audio")).read(number)
        assert (modality, extension) in {(item.modality, item.extension) for item in items}
    query = tmp_path / "query.wav"
    query.write_bytes(wav(tone(TONES["green"])))
    found = tmp_path / "found.json"
    run = ["--model", vatt, "--index", out, "--audio", query, "-k", 3]
    code, stdout, stderr = say(search.main, *run, "--build", "--json", found)
    assert code == 0, stderr
    assert stdout.splitlines()[2].split() == ["1.000", "audio", "green-thing.wav"]
    (answer,) = json.loads(found.read_text())
    assert answer["results"][0] == {
        "key": "green-thing.wav",
        "score": pytest.approx(1, abs=1e-3),
        "modality": "audio",
    }
    assert len(answer["results"]) == 3
    code, stdout, _ = say(search.main, *run, "--only", "video")
    assert code == 0
    best = (model.encode(audio=query) @ rows[:4].T)[0].argsort(descending=True)[:3]
    assert [line.split()[2] for line in stdout.splitlines()[1:]] == [keys[i] for i in best]
    code, stdout, _ = say(search.main, "--model", vatt, "--index", out, "red square", "--only", "image")
    assert code == 0
    assert len(stdout.splitlines()) == 5  # all 4 pictures there are


def test_one_modality_has_plain_keys_and_views_and_spaces(say, vatt, media, tmp_path):
    out = tmp_path / "emb"
    run = ["--model", vatt, "--data", media / "clips", "--out", out, "--space", "va", "--views", 2]
    code, stdout, stderr = say(embed.main, *run, "--modality", "audio")
    assert code == 0, stderr
    assert "4 embeddings of 24 dimensions" in stdout
    rows, keys, _ = embed.read_embeddings(out)
    assert keys == [f"{c}-moves" for c in COLOURS]
    model = mmvit.load(vatt)
    sounds = model.encode(audio=[mp4(c) for c in COLOURS], space="va", views=2)
    np.testing.assert_allclose(rows, sounds, atol=1e-3)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(mp4("blue"))
    code, stdout, _ = say(search.main, "--model", vatt, "--index", out, "--build", "--video", clip, "-k", 1)
    assert code == 0
    expected = (model.encode(video=clip, space="va") @ rows.T)[0]
    assert stdout.splitlines()[-1].split() == [f"{expected.max():.3f}", keys[int(expected.argmax())]]
    code, _, stderr = say(search.main, "--model", vatt, "--index", out, "a dog")
    assert (code, "'text' is not there" in stderr) == (2, True)
    code, _, stderr = say(embed.main, *run[:-1], 1, "--modality", "audio")
    assert (code, "other options (views differs)" in stderr) == (2, True)


def test_an_index_of_clips_alone_knows_what_they_are(say, vatt, media, tmp_path):
    out = tmp_path / "emb"
    assert say(embed.main, "--model", vatt, "--data", media / "clips", "--out", out)[0] == 0
    found = ["--model", vatt, "--index", out, "red square", "-k", 3]
    code, stdout, _ = say(search.main, *found, "--build", "--only", "video")
    assert (code, len(stdout.splitlines())) == (0, 5)
    code, stdout, _ = say(search.main, *found, "--only", "audio")
    assert (code, stdout.splitlines()[-1]) == (0, "  nothing of that kind is in the index")


def test_a_folder_of_files_and_a_broken_one(say, vatt, folder, tmp_path):
    code, stdout, _ = say(embed.main, "--model", vatt, "--data", folder, "--out", tmp_path / "emb")
    assert code == 0
    assert "3 embeddings" in stdout
    assert "1 unreadable things" in stdout
    _, keys, _ = embed.read_embeddings(tmp_path / "emb")
    assert keys == ["blue.wav", "deep/red.mp4", "green.PNG"]
    code, stdout, _ = say(
        search.main, "--model", vatt, "--index", tmp_path / "emb", "--build", "a", "--only", "image"
    )
    assert code == 0
    assert stdout.splitlines()[-1].split()[1:] == ["image", "green.PNG"]


def test_mistakes_are_one_line(say, vatt, media, folder, tmp_path):
    out = tmp_path / "emb"
    assert say(embed.main, "--model", vatt, "--data", media / "things", "--out", out)[0] == 0
    other = save_model(tmp_path / "other", seed=1)
    found = ["--model", vatt, "--index", out]
    assert say(search.main, *found, "--build")[0] == 0
    new = ["--model", vatt, "--out", tmp_path / "x"]
    cases = [
        (embed.main, [*new, "--data", media / "clips", "--modality", "image"], "holds no pictures"),
        (embed.main, [*new, "--data", media / "things", "--space", "vv"], "--space vv: "),
        (embed.main, [*new, "--data", media / "things", "--views", "0"], "--views 0"),
        (
            embed.main,
            [*new, "--data", folder / "deep", "--modality", "image"],
            "neither .tar shards nor pictures",
        ),
        (search.main, ["--model", other, "--index", out, "a"], "another model"),
        (search.main, [*found, "--audio", folder / "broken.mp4"], "audio 0 '"),
        (search.main, [*found, "--video", folder / "none.mp4"], "no file"),
        (search.main, [*found, "--video", folder / "blue.wav"], "video-missing"),
        (search.main, [*found, "a", "--json", tmp_path / "no" / "x.json"], "cannot write"),
    ]
    for main, arguments, message in cases:
        code, _, stderr = say(main, *arguments)
        lines = [line for line in stderr.splitlines() if not line.startswith("embedding")]
        assert (code, len(lines)) == (2, 1), (arguments, stderr)
        assert message in lines[0], (arguments, lines)


def test_a_model_of_pictures_says_what_it_takes(say, model, media, tmp_path):
    code, _, stderr = say(
        embed.main,
        "--model",
        model,
        "--data",
        media / "clips",
        "--out",
        tmp_path / "x",
        "--modality",
        "video",
    )
    assert code == 2
    assert "this model embeds image, text, expected image" in stderr
    code, _, stderr = say(search.main, "--model", model, "--index", tmp_path, "--audio", "x.wav")
    assert (code, "'audio' cannot be searched for" in stderr) == (2, True)
