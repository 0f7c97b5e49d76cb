"""Narrated clips: any cut-out makes one of the twelve motions while a synthesised voice says what happens.

Place in the path: corpus builder, optional part `narrated`; pictures as in `clips` (16 frames, 112 px, 8 Hz).
The object's own recording, where it has one, plays softly below the voice. Voices differ between the splits,
and no word is cut off: a text that does not fit is read faster. Source of the idea: Miech et al. 2019,
HowTo100M, section 3 (narration as the only label). Differs: the voice says what is seen at that moment.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corpus.clips import FPS, FRAMES, MOTIONS, RATE, SIZE, encode, frames, soundtrack
from corpus.cutouts import PARTS, CutOut, cut_outs
from corpus.fetch import Fetched
from corpus.parts import Job
from corpus.scenes import backdrop
from corpus.scratch import backgrounds, label_of
from corpus.speech import LICENCE, VOICES, Program, to_wav_or_none
from corpus.words import HeldOut, singular_of, words_of

COUNTS = {"train": 3000, "val": 204, "test_style": 300, "test_concept": 300}  # multiples of twelve
SHARES = {"emoji": 0.55, "stamps": 0.35, "scratch": 0.1}
SECONDS = FRAMES / FPS
# Who speaks. Training hears many: with a handful of voices, a model of sounds learns them and not the words.
VARIANTS = (
    "m1", "m2", "m3", "m4", "m8", "f1", "f2", "f5", "adam", "belinda", "caleb", "david", "ed", "grandma",
    "grandpa", "linda", "michael", "rob", "steph", "victor",
)  # fmt: skip
ACCENTS = ("en", "en-us", "en-us-nyc", "en-gb-scotland")  # "en-gb" takes no variant
NARRATORS = {
    **dict.fromkeys(("test_style", "test_concept"), VOICES["test"]),
    "val": VOICES["val"],
    "train": tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS),
}
MARGIN = 0.04  # s of quiet before and after the voice, at least
FASTEST = 400  # words a minute; beyond it the synthesiser can hardly be understood
LONGEST_LABEL = 24  # characters
VOICE_PEAK, OWN_PEAK = (0.5, 0.9), (0.08, 0.16)  # of full scale
# Labels that themselves speak of a place or a way to move would contradict the motion.
MISLEADING = {
    "left", "right", "up", "down", "rising", "falling", "spinning", "clockwise", "moving", "still", "rolling",
    "flying",
}  # fmt: skip
# The motion's name, and another way to say it.
SAID = {
    "moving left to right": "going from left to right",
    "moving right to left": "going from right to left",
    "rising": "going up",
    "falling": "going down",
    "growing": "getting bigger",
    "shrinking": "getting smaller",
    "spinning clockwise": "turning clockwise",
    "spinning counterclockwise": "turning counterclockwise",
    "bouncing": "jumping up and down",
    "shaking": "trembling",
    "swinging": "swaying",
    "standing still": "not moving",
}


def jobs(out: Path, espeak: Program, title: str, scratch: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """The narrated clips of every split: motions in equal numbers, objects and backgrounds of the split."""
    listed = []
    for split, places in backgrounds(folder, held).items():
        objects = [cut for cut in cut_outs(out, split) if usable(cut.label, held, split)]
        order = chosen(objects, random.Random(f"narrated {split}"))
        for index in range(COUNTS[split] if objects and places else 0):
            cut, motion = next(order), list(MOTIONS)[index % len(MOTIONS)]
            key = f"{split}-{index:05d}"
            draw = random.Random(f"narrate {key}")
            place, voice = draw.choice(places), draw.choice(NARRATORS[split])
            texts = wordings(cut.label, motion, draw)
            shown, form = {"motion": motion}, {"fps": FPS, "frames": FRAMES}
            facts = facts_of(cut, split, (scratch, title), place, voice, texts, shown, form)
            work = (key, motion, str(place), cut, espeak, texts[0], voice, manner_of(split, draw))
            listed.append(Job(key, split, texts[0], facts, work))
    return listed


def facts_of(
    cut: CutOut,
    split: str,
    packages: tuple[Fetched, str],
    place: Path,
    voice: str,
    texts: list[str],
    shown: dict[str, Any],
    form: dict[str, Any],
) -> dict[str, Any]:
    """The JSON of a cut-out before a background of which a voice speaks.

    Args:
        cut: the object.
        split: whose objects, backgrounds and voices they are.
        packages: of the background, and the synthesiser's title.
        place: the background's file.
        voice: who speaks.
        texts: English wordings, the spoken one first.
        shown: what is said beside the label.
        form: what there is to say of the file beside width and height.
    """
    ground, title = packages
    return {
        "label": cut.label,
        **shown,
        "voice": voice,
        "language": "en",
        "texts": {"en": texts},
        "background": label_of(place.stem),
        **form,
        "width": SIZE,
        "height": SIZE,
        "source": f"{cut.part}/{cut.key}",
        "package": " + ".join(sorted({cut.package, ground.title, title})),
        "licence": " + ".join(sorted({cut.licence, ground.package.licence, LICENCE})),
        "split": {"name": split, "by": "objects, background and voice"},
    }


def manner_of(split: str, draw: random.Random) -> tuple[int, int]:
    """Words a minute and pitch of a voice; the pitch changes in training alone."""
    return draw.randint(150, 190), draw.randint(25, 75) if split == "train" else 50


def usable(label: str, held: HeldOut, split: str) -> bool:
    """True for a short label that says nothing about motion; in `test_concept` it names a held-out thing."""
    named = held.mentioned([label]) is not None
    short = len(label) <= LONGEST_LABEL and label.isascii() and "(" not in label
    return short and not MISLEADING & set(words_of(label)) and named == (split == "test_concept")


def chosen(objects: Sequence[CutOut], draw: random.Random) -> Iterator[CutOut]:
    """Objects without end: a part by its share, then its labels in rounds: many styles weigh no more."""
    rounds = {part: _rounds(cuts, draw) for part in PARTS if (cuts := [c for c in objects if c.part == part])}
    while rounds:
        yield next(rounds[draw.choices(list(rounds), [SHARES[part] for part in rounds])[0]])


def _rounds(cuts: Sequence[CutOut], draw: random.Random) -> Iterator[CutOut]:
    by_label: dict[str, list[CutOut]] = {}
    for cut in cuts:
        by_label.setdefault(cut.label, []).append(cut)
    while True:
        labels = list(by_label)
        draw.shuffle(labels)
        for label in labels:
            yield draw.choice(by_label[label])


def wordings(label: str, motion: str, draw: random.Random) -> list[str]:
    """Five ways to say it, the spoken one first; "LABEL MOTION", as in `clips`, is among them."""
    noun, be = noun_of(label)
    ways = [
        pattern.format(label=label, noun=noun, be=be, said=said)
        for said in (motion, SAID[motion])
        for pattern in (
            "{label} {said}",
            "{noun} {be} {said}",
            "the {label} {be} {said}",
            "here {be} {noun} {said}",
        )
    ]
    plain, *others = list(dict.fromkeys(ways))
    five = [plain, *draw.sample(others, 4)]
    draw.shuffle(five)
    return five


def noun_of(label: str) -> tuple[str, str]:
    """A label with its article and the verb that follows: ("a fox", "is"), ("the scissors", "are")."""
    last = words_of(label)[-1]
    if singular_of(last) != last:
        return f"the {label}", "are"
    return f"{'an' if label[0].lower() in 'aeiou' else 'a'} {label}", "is"


def narration(espeak: Program, text: str, voice: str, manner: tuple[int, int]) -> np.ndarray | str:
    """The spoken text (n,) float32 at 16 kHz, read as fast as two seconds ask for; or why not.

    Args:
        espeak: what speaks.
        text: what is said.
        voice: who says it.
        manner: words a minute at first, and pitch 0..99.
    """
    speed, pitch = manner
    longest = int((SECONDS - 2 * MARGIN) * RATE)
    while True:
        wav = to_wav_or_none(espeak.say(text, voice, speed, pitch))
        if wav is None:
            return "not spoken"
        spoken = np.frombuffer(wav[44:], "<i2").astype(np.float32) / 32768
        if len(spoken) <= longest:
            return spoken
        if speed >= FASTEST:
            return "does not fit into the clip"
        speed = min(FASTEST, max(speed + 10, int(speed * len(spoken) / longest)))


def mixed(spoken: np.ndarray, own: np.ndarray | None, draw: random.Random) -> tuple[np.ndarray, float]:
    """The clip's sound (32000,) float32 and the second at which the voice begins."""
    track = np.zeros(int(SECONDS * RATE), np.float32)
    if own is not None:
        track += own / max(float(np.abs(own).max()), 1e-6) * draw.uniform(*OWN_PEAK)
    margin = int(MARGIN * RATE)
    start = draw.randint(margin, len(track) - margin - len(spoken))
    track[start : start + len(spoken)] += spoken / float(np.abs(spoken).max()) * draw.uniform(*VOICE_PEAK)
    return np.clip(track, -1, 1), start / RATE


def make(work: tuple[str, str, str, CutOut, Program, str, str, tuple[int, int]]) -> dict[str, Any] | str:
    """`mp4` and the JSON's boxes per frame and seconds of the narration; or why not."""
    key, motion, path, cut, espeak, text, voice, manner = work
    spoken = narration(espeak, text, voice, manner)
    if isinstance(spoken, str):
        return spoken
    draw = random.Random(f"move narrated {key}")
    image = Image.open(io.BytesIO(cut.png)).convert("RGBA")
    ground = backdrop(path, SIZE, draw)
    pictures, boxes = frames(image, motion, ground, draw)
    track, start = mixed(spoken, None if cut.wav is None else soundtrack(cut.wav), draw)
    said = [round(start, 3), round(start + len(spoken) / RATE, 3)]
    facts = {"boxes": boxes, "narration": said, "own_sound": cut.wav is not None}
    return {"mp4": encode(pictures, track, coder="fast"), "json": facts}
