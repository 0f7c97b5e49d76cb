"""The search page without a browser: what is found, sent and refused, and the command's mistakes."""

import asyncio
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import mmvit
from mmvit.cli import embed
from mmvit.cli.demo import cards, command
from mmvit.cli.demo.collection import Hit, gather
from mmvit.cli.demo.media import TYPES, routes, span
from mmvit.cli.demo.search_handlers import SearchHandlers
from mmvit.cli.demo.seeker import Answer, Seeker
from mmvit.cli.demo.uploads import Limits
from mmvit.cli.items import MEDIA
from mmvit.errors import UserError
from tests.api.media import TONES, mp4, png, save_model, tone, wav, write_shards
from tests.api.test_embedder import save_pair


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mmvit.load(save_model(tmp_path_factory.mktemp("model") / "vatt"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    home = write_shards(tmp_path_factory.mktemp("media"))
    return f"{home}/clips::{home}/things"


@pytest.fixture(scope="module")
def collection(model, data, tmp_path_factory):
    return gather(model, data, tmp_path_factory.mktemp("kept"), embed.Config("m", data, ""))


@pytest.fixture
def seeker(model, collection):
    return Seeker(model, collection, Limits(max_bytes=2**20))


def ask(collection, path, row, header=""):
    """The response to a request for a row."""
    request = types.SimpleNamespace(path_params={"row": row}, headers={"range": header} if header else {})
    return routes(collection)[path](request)


def test_everything_is_there_in_both_spaces(collection, model):
    assert len(collection) == 12
    assert (collection.modalities, collection.spaces) == (("video", "audio", "image"), ("vt", "va"))
    assert [collection.count(name) for name in collection.modalities] == [4, 4, 4]
    z = model.encode(audio=wav(tone(TONES["blue"])), space="va")
    found = collection.search(z, 2, ("audio", "video"), "va")
    assert list(found) == ["audio", "video"]
    assert (found["audio"][0].key, found["audio"][0].caption) == ("blue-thing.wav", "blue thing")
    assert found["audio"][0].score == pytest.approx(1, abs=1e-3)
    assert {hit.modality for hit in found["video"]} == {"video"}
    assert len(set(collection.captions(5))) == 5


def test_what_is_sent_is_what_lies_there(collection):
    for row, key in enumerate(collection.keys):
        colour, _, extension = key.replace("-", ".").split(".")
        whole = {"mp4": mp4, "png": png, "wav": lambda c: wav(tone(TONES[c]))}[extension](colour)
        response = ask(collection, "/media/{row:int}", row)
        assert (response.status_code, response.media_type) == (200, TYPES[extension])
        assert response.headers["x-content-type-options"] == "nosniff"
        if extension != "mp4":  # x264 does not promise equal bytes
            assert response.body == whole
        part = ask(collection, "/media/{row:int}", row, "bytes=10-19")
        assert (part.status_code, part.body) == (206, response.body[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(response.body)}"
    assert ask(collection, "/media/{row:int}", 0, "bytes=99999999-").status_code == 416
    assert ask(collection, "/media/{row:int}", 12).status_code == 404
    assert ask(collection, "/wave/{row:int}", 99).status_code == 404
    assert ask(collection, "/wave/{row:int}", collection.keys.index("red-thing.png")).status_code == 404


def test_a_file_of_a_folder_is_sent_in_pieces(model, tmp_path):
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "red.wav"
    file.write_bytes(wav(tone(300)))
    found = gather(model, str(tmp_path / "a"), tmp_path / "kept", embed.Config("m", str(tmp_path / "a"), ""))
    response = ask(found, "/media/{row:int}", 0)
    asgi = {"spec_version": "2.4"}
    scope = {"type": "http", "method": "GET", "asgi": asgi, "headers": [(b"range", b"bytes=10-19")]}
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(response(scope, None, send))
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 206
    assert b"".join(message.get("body", b"") for message in sent[1:]) == file.read_bytes()[10:20]
    assert headers[b"content-type"] == b"audio/wav"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert len(found.peaks(0, bars=10)) == 10
    file.unlink()
    assert ask(found, "/media/{row:int}", 0).status_code == 404


def test_a_wave_is_drawn_from_the_sound(collection):
    row = collection.keys.index("green-thing.wav")
    np.testing.assert_allclose(collection.peaks(row, bars=10), 0.4, atol=0.02)
    drawn = ElementTree.fromstring(ask(collection, "/wave/{row:int}", row).body)
    assert len(drawn) == 64


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None), ("bytes=0-", (0, 99)), ("bytes=0-9", (0, 9)), ("bytes=90-500", (90, 99)),
        ("bytes=-5", (95, 99)), ("bytes=-500", (0, 99)), ("bytes=9-3", None), ("bytes=1-2,4-5", None),
        ("bytes=-", None), ("pages=1-2", None), (f"bytes={'9' * 40}-", None),
    ],
)  # fmt: skip
def test_ranges_are_read(header, expected):
    assert span(header, 100) == expected


def test_every_medium_has_a_type():
    assert {e for names in MEDIA.values() for e in names} - {"tif", "tiff"} <= set(TYPES)


def test_a_question_is_encoded_once(seeker, tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(wav(tone(500)))
    assert seeker.like("audio", str(path), 3, ["video"]).seconds > 0
    again = seeker.like("audio", str(path), 1, ["video", "image"])
    assert again.seconds == 0
    assert [len(hits) for hits in again.hits.values()] == [1, 1]
    assert seeker.words("a  red \n thing", 1, ["video"]).asked == "a red thing"
    assert seeker.words("a red thing", 1, ["video"]).seconds == 0


def test_bad_questions_are_one_line(seeker, tmp_path):
    contents = {"empty.wav": b"", "no.wav": b"words", "no.mp4": b"words", "big.wav": bytes(2**20 + 1)}
    contents |= {"mute.mp4": mp4("red", sound=False), "tone.wav": wav(tone(300)), "no.png": b"words"}
    bad = tone(300)
    bad[4000] = np.nan
    contents["nan.wav"] = wav(bad, subtype="FLOAT")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for modality, name, message in (
        ("audio", "empty.wav", "the file is empty"),
        ("audio", "no.wav", "not a sound that can be read"),
        ("video", "no.mp4", "not a clip that can be read"),
        ("image", "no.png", "not a picture that can be read"),
        ("audio", "big.wav", "big.wav has 1.0 MiB, at most 1.0 MiB"),
        ("audio", "mute.mp4", "has no sound"),
        ("audio", "nan.wav", "values that are no numbers"),
        ("video", "tone.wav", "has no moving picture"),
        ("video", "gone.mp4", "cannot read gone.mp4"),
    ):
        with pytest.raises(UserError, match=message):
            seeker.like(modality, str(tmp_path / name), 3, ["video"])
    with pytest.raises(UserError, match="choose at least one kind"):
        seeker.words("a", 3, [])
    hands = SearchHandlers(seeker)
    status, html, _ = hands.find("audio", None, 4, ["Clips"])
    assert "There is no file yet" in status
    assert html == ""
    dropped = hands.drop("audio", str(tmp_path / "no.wav"), 4, ["Clips"])
    assert dropped[0] is None, "a bad file is taken off the page"
    assert hands.again("audio", "words", None, None, None, 4, ["Clips"])[1] == ""


def test_captions_cannot_break_the_page():
    evil = '<img src=x onerror="alert(1)">'
    answer = Answer(evil, {"video": [Hit(0, evil, "video", evil, 0.5)]}, 0.1, 0.1)
    html = cards.shelves(answer, {"video": 1}) + cards.summary(answer)
    assert "<img" not in html
    assert "onerror=&quot;" in html


def test_embeddings_are_kept_between_starts(model, data, tmp_path, monkeypatch):
    config = embed.Config("m", data, "")
    first = gather(model, data, tmp_path, config)
    monkeypatch.setattr(mmvit.Embedder, "encode", None)  # nothing is embedded again
    again = gather(model, data, tmp_path, config)
    assert (again.keys, again.places) == (first.keys, first.places)
    other = mmvit.load(save_model(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="another model"):
        gather(other, data, tmp_path, config)


def test_a_model_of_pictures_searches_pictures(tmp_path, data):
    pair = mmvit.load(save_pair(tmp_path / "pair"))
    pictures = gather(pair, data.split("::")[1], tmp_path / "kept", embed.Config("m", data, ""))
    assert (pictures.modalities, pictures.spaces) == (("image",), ("",))
    path = tmp_path / "x.png"
    path.write_bytes(png("yellow"))
    seeker = Seeker(pair, pictures)
    (hits,) = seeker.like("image", str(path), 2, ["image", "video"]).hits.values()
    assert (hits[0].key, hits[0].score) == ("yellow-thing", pytest.approx(1, abs=1e-3))
    with pytest.raises(UserError, match="this model does not embed audio: ask with image, text"):
        seeker.like("audio", str(path), 2, ["image"])


def test_mistakes_of_the_command_are_one_line(capsys, tmp_path, data, model, collection):
    folder = save_model(tmp_path / "vatt")
    cases = [
        (["--data", data], "--model is missing"),
        (["--model", tmp_path / "no", "--data", data], "no model folder"),
        (["--model", folder, "--data", tmp_path / "no"], "no"),
        (["--model", folder, "--data", data, "--k", 0], "--k 0 must be 1..48"),
        (["--model", folder, "--data", data, "--views", 0], "--views 0"),
        (["--model", folder, "--data", data, "--port", 70000], "no port"),
        (["--model", folder, "--data", folder, "--modality", "audio"], "neither .tar shards nor sounds"),
    ]
    for words, message in cases:
        with pytest.raises(SystemExit) as end:
            command.main(["search", *map(str, words), *([] if "--port" in words else ["--port", "0"])])
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("embedding")]
        assert (end.value.code, len(lines)) == (2, 1), (words, lines)
        assert message in lines[0]
