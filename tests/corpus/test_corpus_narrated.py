"""Narrated clips: the voice fits and says what is seen; splits keep objects and voices to themselves."""

import io
import itertools
import random
from collections import Counter
from types import SimpleNamespace

import av
import numpy as np
import pytest
from corpus import narrated
from corpus.clips import FRAMES, MOTIONS, RATE
from corpus.cutouts import CutOut
from corpus.sounds import wav_bytes
from corpus.words import HeldOut
from PIL import Image

from mmvit.data.write import ShardWriter

HELD = HeldOut(["violin"])


class Voice:
    """Speaks every text as a tone of so many seconds at 100 words a minute."""

    def __init__(self, seconds):
        self.seconds, self.speeds = seconds, []

    def say(self, text, voice, speed, pitch=50):
        self.speeds.append(speed)
        return tone(self.seconds * 100 / speed)


def tone(seconds, level=0.5):
    wave = level * np.sin(np.arange(int(seconds * RATE)) * 2 * np.pi * 440 / RATE)
    return (wav_bytes(wave.astype(np.float32), RATE) or b"") if seconds else b""


def picture():
    rgba = np.zeros((50, 60, 4), np.uint8)
    rgba[10:40, 10:50] = (250, 30, 30, 255)
    rgba[15:20, 15:45, 3] = 0
    data = io.BytesIO()
    Image.fromarray(rgba).save(data, "PNG")
    return data.getvalue()


def cut(key, label, part="stamps", wav=None):
    return CutOut(key, label, picture(), "stamps@1", "GPL", part, wav)


def test_every_motion_is_said_in_two_ways():
    assert set(narrated.SAID) == set(MOTIONS)
    assert len({*narrated.SAID, *narrated.SAID.values()}) == 2 * len(MOTIONS)
    assert not any(count % len(MOTIONS) for count in narrated.COUNTS.values()), "motions in equal numbers"


def test_no_voice_stands_in_two_splits():
    names = {split: {voice.split("+")[1] for voice in voices} for split, voices in narrated.NARRATORS.items()}
    assert not names["train"] & (names["val"] | names["test_style"] | names["test_concept"])
    assert not names["val"] & names["test_style"]
    assert len(set(narrated.NARRATORS["train"])) == 80


def test_a_text_that_fits_is_read_once_and_a_long_one_faster_until_it_fits():
    short = Voice(1.5)
    assert len(narrated.narration(short, "a fox is rising", "en-us", (150, 50))) == pytest.approx(
        RATE, rel=0.06
    )
    assert short.speeds == [150]
    long = Voice(5.0)
    spoken = narrated.narration(long, "a long one", "en-us", (150, 50))
    assert len(spoken) <= (2 - 2 * narrated.MARGIN) * RATE
    assert long.speeds == sorted(set(long.speeds))
    assert len(long.speeds) > 1
    whole = np.frombuffer(long.say("", "", long.speeds[-1])[44:], "<i2")
    assert len(spoken) == len(whole), "nothing was cut off"


def test_what_cannot_be_said_in_two_seconds_or_at_all_is_left_out():
    assert narrated.narration(Voice(9.0), "much too long", "en-us", (150, 50)) == "does not fit into the clip"
    assert narrated.narration(Voice(0), "silence", "en-us", (150, 50)) == "not spoken"


def test_five_wordings_with_the_plain_one_among_them():
    seen = set()
    for seed in range(40):
        texts = narrated.wordings("apple", "rising", random.Random(seed))
        assert len(set(texts)) == 5
        assert "apple rising" in texts
        seen |= set(texts)
    assert {"an apple is rising", "here is an apple going up", "the apple is rising"} <= seen
    assert len(seen) == 8
    plural = {t for s in range(40) for t in narrated.wordings("scissors", "falling", random.Random(s))}
    assert "the scissors are going down" in plural
    assert not any(" is " in text or text.startswith("a ") for text in plural)


@pytest.mark.parametrize(
    ("label", "split", "wanted"),
    [
        ("red fox", "train", True),
        ("violin", "train", False),
        ("violins", "val", False),
        ("red fox", "test_concept", False),
        ("small violin", "test_concept", True),
        ("mouse pointing left", "train", False),
        ("a label of very many words", "train", False),
        ("piñata", "train", False),
    ],
)
def test_usable_labels(label, split, wanted):
    assert narrated.usable(label, HELD, split) is wanted


def test_labels_come_in_rounds_and_parts_by_their_share():
    cuts = [cut(f"{style}-{i}", f"thing {i}", "emoji") for i in range(5) for style in "abcdef"[: i + 1]]
    cuts += [cut(f"photo-{i}", f"photo {i}") for i in range(3)]
    drawn = list(itertools.islice(narrated.chosen(cuts, random.Random(0)), 600))
    labels = Counter(c.label for c in drawn if c.part == "emoji")
    assert max(labels.values()) - min(labels.values()) <= 1, "many styles weigh no more"
    assert {c.key for c in drawn} == {c.key for c in cuts}
    assert len(drawn) - sum(labels.values()) == pytest.approx(600 * 0.35 / 0.9, rel=0.15)
    assert list(narrated.chosen([], random.Random(0))) == []


def test_the_objects_own_sound_is_softer_than_the_voice_which_is_whole():
    spoken = np.frombuffer(tone(0.8)[44:], "<i2").astype(np.float32) / 32768
    silent, start = narrated.mixed(spoken, None, random.Random(1))
    at = round(start * RATE)
    assert len(silent) == FRAMES * RATE // 8
    assert not silent[:at].any()
    assert not silent[at + len(spoken) :].any()
    ratio = silent[at : at + len(spoken)] / np.where(spoken == 0, 1, spoken)
    assert np.ptp(ratio[spoken != 0]) < 1e-3
    own = np.sin(np.arange(len(silent)) * 0.3).astype(np.float32)
    both, _ = narrated.mixed(spoken, own, random.Random(1))
    assert 0.05 < np.abs(both[: int(0.03 * RATE)]).max() < 0.2
    assert np.abs(both).max() > 0.45


def test_a_narrated_clip_is_whole_and_reproducible(tmp_path):
    Image.new("RGB", (200, 150), (90, 120, 60)).save(tmp_path / "meadow.png")
    thing = cut("fox", "red fox", wav=tone(0.3))
    work = (
        "train-00000",
        "rising",
        str(tmp_path / "meadow.png"),
        thing,
        Voice(1.4),
        "red fox",
        "en",
        (160, 50),
    )
    made = narrated.make(work)
    assert made == narrated.make(work)
    assert len(made["json"]["boxes"]) == FRAMES
    assert made["json"]["boxes"][0][1] > made["json"]["boxes"][-1][1] + 25
    start, end = made["json"]["narration"]
    assert 0 < start < end < 2
    assert made["json"]["own_sound"]
    with av.open(io.BytesIO(made["mp4"])) as file:
        assert len(list(file.decode(video=0))) == FRAMES
    with av.open(io.BytesIO(made["mp4"])) as file:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    assert len(sound) / RATE == pytest.approx(2.0, abs=0.15)
    assert np.abs(sound).max() > 0.35
    assert narrated.make((*work[:4], Voice(9.0), *work[5:])) == "does not fit into the clip"


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """The jobs of a corpus with a fox to train, a cat to test and a held-out violin."""
    monkeypatch.setattr(narrated, "COUNTS", dict.fromkeys(narrated.COUNTS, 24))
    labels = {"train": ["red fox"], "test_style": ["grey cat"], "test_concept": ["violin", "keyword only"]}
    for split, names in labels.items():
        (tmp_path / split / "stamps").mkdir(parents=True)
        with ShardWriter(str(tmp_path / split / "stamps" / "a")) as writer:
            for name in names:
                facts = {"label": name, "group": "x", "subgroup": "", "package": "p", "licence": "l"}
                writer.write(name.replace(" ", "-"), {"png": picture(), "txt": name, "json": facts})
    places = tmp_path / "scratch" / "usr/share/scratch/Media/Backgrounds/Nature"
    places.mkdir(parents=True)
    words = "woods lake hill beach moon road farm cave snow pond field harbour violin"
    for word in words.split():
        Image.new("RGB", (200, 150)).save(places / f"{word}.png")
    fetched = SimpleNamespace(title="scratch@1", package=SimpleNamespace(licence="CC"))
    return narrated.jobs(tmp_path, Voice(1), "espeak@1", fetched, tmp_path / "scratch", HELD)


def test_splits_keep_objects_voices_and_motions_apart(planned):
    by_split = {split: [j for j in planned if j.split == split] for split in narrated.COUNTS}
    assert {split: len(jobs) for split, jobs in by_split.items()} == {
        "train": 24,
        "val": 0,
        "test_style": 24,
        "test_concept": 24,
    }
    for split, label in (("train", "red fox"), ("test_style", "grey cat"), ("test_concept", "violin")):
        jobs = by_split[split]
        assert {job.facts["label"] for job in jobs} == {label}
        assert set(Counter(job.facts["motion"] for job in jobs).values()) == {2}
        assert {job.facts["voice"] for job in jobs} <= set(narrated.NARRATORS[split])
        assert all(job.caption == job.facts["texts"]["en"][0] == job.work[5] for job in jobs)
    train = [
        text for job in by_split["train"] for text in [*job.facts["texts"]["en"], job.facts["background"]]
    ]
    assert HELD.mentioned(train) is None
    assert HELD.mentioned([by_split["test_concept"][0].caption]) == "violin"
