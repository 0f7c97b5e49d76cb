"""Described pictures: the colour is seen and said; labels, colours and voices keep to their places."""

import io
import itertools
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from corpus import described
from corpus.cutouts import CutOut
from corpus.narrated import NARRATORS
from corpus.sounds import wav_bytes
from corpus.words import HeldOut
from PIL import Image

from mmvit.data.write import ShardWriter

HELD = HeldOut(["violin"])


def tone(seconds):
    wave = 0.5 * np.sin(np.arange(int(seconds * 16_000)) * 2 * np.pi * 440 / 16_000)
    return wav_bytes(wave.astype(np.float32), 16_000) or b""


class Voice:
    """Speaks every text as a tone of so many seconds at 100 words a minute."""

    def __init__(self, seconds):
        self.seconds = seconds

    def say(self, text, voice, speed, pitch=50):
        return tone(self.seconds * 100 / speed)


def fox():
    rgba = np.zeros((50, 60, 4), np.uint8)
    rgba[10:40, 10:50] = (10, 200, 240, 255)
    rgba[12:17, 15:45, 3] = 0
    data = io.BytesIO()
    Image.fromarray(rgba).save(data, "PNG")
    return CutOut("fox", "small fox", data.getvalue(), "stamps@1", "GPL", "stamps", None)


def test_three_wordings_all_name_the_colour():
    seen = set()
    for seed in range(30):
        texts = described.wordings("apple", "red", random.Random(seed))
        assert len(set(texts)) == 3
        seen.add(texts[0])
    assert seen == {"apple on red", "an apple on red", "here is an apple on red"}
    assert "here are the scissors on blue" in described.wordings("scissors", "blue", random.Random(0))


@pytest.mark.parametrize(
    ("label", "split", "wanted"),
    [
        ("small fox", "train", True),
        ("black cat", "train", False),
        ("violin", "train", False),
        ("small violin", "test_concept", True),
        ("red violin", "test_concept", False),
        ("mouse pointing left", "train", False),
    ],
)
def test_labels_that_speak_of_a_colour_are_left_out(label, split, wanted):
    assert described.colorless(label, HELD, split) is wanted


def test_a_tinted_ground_keeps_its_shapes_and_no_two_colours_look_alike():
    ground = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    light = ground @ np.float32([0.299, 0.587, 0.114])
    grounds = {color: described.tinted(ground, color) for color in described.COLORS}
    for color, pixels in grounds.items():
        assert pixels.shape == ground.shape
        assert pixels.dtype == np.uint8
        dark, bright = described.COLORS[color]
        assert tuple(pixels[np.unravel_index(light.argmin(), light.shape)]) == dark
        assert tuple(pixels[np.unravel_index(light.argmax(), light.shape)]) == bright
        assert np.corrcoef(pixels.sum(-1).ravel(), light.ravel())[0, 1] > 0.98
    means = [pixels.mean((0, 1)) for pixels in grounds.values()]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(means, 2)) > 40, "of 255"
    flat = np.full((4, 4, 3), 77, np.uint8)
    assert (described.tinted(flat, "white") == 205).all(), "a ground without shapes is no division by zero"


def test_a_picture_shows_what_is_said_and_is_reproducible(tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 200, 3), dtype=np.uint8)).save(
        tmp_path / "meadow.png"
    )
    work = (
        "train-00000",
        "red",
        str(tmp_path / "meadow.png"),
        fox(),
        Voice(1.4),
        "fox on red",
        "en",
        (160, 50),
    )
    made = described.make(work)
    assert made == described.make(work)
    pixels = np.asarray(Image.open(io.BytesIO(made["png"])))
    assert pixels.shape == (112, 112, 3)
    x0, y0, x1, y1 = made["json"]["box"]
    assert tuple(pixels[(y0 + y1) // 2, (x0 + x1) // 2]) == (10, 200, 240)
    corner = pixels[:12].reshape(-1, 3).mean(0)
    assert corner[0] > 100 > corner[1:].max(), "the ground is red"
    assert len(made["wav"]) > 16_000
    assert described.make((*work[:4], Voice(9.0), *work[5:])) == "does not fit into the clip"
    assert described.make((*work[:4], Voice(0), *work[5:])) == "not spoken"


def test_splits_keep_objects_and_voices_apart_and_colours_are_even(tmp_path, monkeypatch):
    monkeypatch.setattr(described, "COUNTS", dict.fromkeys(described.COUNTS, 16))
    labels = {"train": ["small fox", "red fox"], "test_style": ["grey cat"], "test_concept": ["violin"]}
    for split, names in labels.items():
        (tmp_path / split / "stamps").mkdir(parents=True)
        with ShardWriter(str(tmp_path / split / "stamps" / "a")) as writer:
            for name in names:
                facts = {"label": name, "group": "x", "subgroup": "", "package": "p", "licence": "l"}
                writer.write(name.replace(" ", "-"), {"png": fox().png, "txt": name, "json": facts})
    places = tmp_path / "scratch" / "usr/share/scratch/Media/Backgrounds/Nature"
    places.mkdir(parents=True)
    words = "woods lake hill beach moon road farm cave snow pond field harbour violin"
    for word in words.split():
        Image.new("RGB", (200, 150)).save(places / f"{word}.png")
    fetched = SimpleNamespace(title="scratch@1", package=SimpleNamespace(licence="CC"))
    planned = described.jobs(tmp_path, Voice(1), "espeak@1", fetched, tmp_path / "scratch", HELD)
    assert {job.split for job in planned} == set(labels)
    for split, (label, *_) in labels.items():
        jobs = [job for job in planned if job.split == split]
        assert {job.facts["label"] for job in jobs} == {label}, "no label of a colour"
        assert Counter(job.facts["color"] for job in jobs) == dict.fromkeys(described.COLORS, 2)
        assert {job.facts["voice"] for job in jobs} <= set(NARRATORS[split])
        assert all(job.caption == job.facts["texts"]["en"][0] == job.work[5] for job in jobs)
        assert all(f"on {job.facts['color']}" in job.caption for job in jobs)
