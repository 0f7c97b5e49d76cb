"""Spoken captions: labels of things read aloud by a synthesiser, with voices that differ between the splits.

Place in the path: corpus builder, optional part `speech`. The Debian packages of espeak-ng are run from where
they were unpacked, without installing; a program in the PATH serves as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.concepts import Concept
from corpus.parts import Job
from corpus.sounds import to_wav
from corpus.splits import fraction_of
from corpus.words import HeldOut

PACKAGES_NEEDED = ("espeak", "espeak-lib", "espeak-data", "sonic")
# The loudspeaker library would pull in a sound server; files are only written, so a mute one will do.
MUTE = """
void *create_audio_device_object(void) { return 0; }
int audio_object_open(void) { return -1; }
int audio_object_write(void) { return -1; }
void audio_object_close(void) {}
void audio_object_destroy(void) {}
int audio_object_drain(void) { return 0; }
int audio_object_flush(void) { return 0; }
const char *audio_object_strerror(void) { return "mute"; }
"""
LICENCE = "GPL-3.0-or-later (synthesiser)"
# Voice and speaker variant. No voice stands in two splits; the tests' accents are new, too.
VOICES = {
    "train": ("en-us+m1", "en-us+f2", "en-us+m3", "en-us+f5", "en-gb+m4", "en-gb+f1", "en-gb-scotland+m2"),
    "val": ("en-gb-x-rp+f3", "en-us+m6"),
    "test": ("en-gb-x-gbclan+f4", "en-029+m7", "en-gb-x-gbcwmd+m5"),
}
TRAIN_TAKES = 2  # voices that read each training label
VAL_SHARE, TEST_SHARE = 0.25, 0.4  # of the training labels, also read by the other voices


@dataclass(frozen=True)
class Program:
    """How to run espeak-ng: command, and the folder of unpacked packages that it needs, if any."""

    command: str
    root: Path | None = None

    def works(self) -> bool:
        """True when it can speak one word."""
        return to_wav_or_none(self.say("fox", "en-us", 160)) is not None

    def say(self, text: str, voice: str, speed: int, pitch: int = 50) -> bytes:
        """The WAV bytes of `text` at `speed` words a minute, `pitch` 0..99; empty when the program fails."""
        command = [self.command, "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", "--", text]
        environment = dict(os.environ)
        if self.root is not None:
            libraries = [str(path) for path in sorted((self.root / "usr/lib").glob("*-linux-gnu*"))]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
            data = next((self.root / "usr/lib").glob("*/espeak-ng-data"), self.root)
            command.insert(1, f"--path={data.parent}")
        return subprocess.run(command, env=environment, capture_output=True, check=False).stdout


def keep(name: str) -> bool:
    """True for the files of the packages that running the synthesiser needs."""
    return name.startswith(("usr/bin/", "usr/lib/")) and "/mbrola" not in name


def program(unpacked: Mapping[str, Path], joined: Path) -> Program | None:
    """A synthesiser that works: the unpacked packages in one folder, else the one in the PATH, else None."""
    if all(name in unpacked for name in PACKAGES_NEEDED):
        for name in PACKAGES_NEEDED:
            shutil.copytree(unpacked[name], joined, dirs_exist_ok=True)
        for library in list(joined.rglob("lib*.so.*")):
            # Packages link libx.so.1 to libx.so.1.2.3; only files were unpacked.
            short = re.match(r"(.+\.so\.\d+)\.", library.name)
            if short:
                shutil.copyfile(library, library.with_name(short.group(1)))
            _mute(library.parent)
        binary = joined / "usr/bin/espeak-ng"
        if binary.is_file():
            binary.chmod(0o755)
            unpacked_one = Program(str(binary), joined)
            if unpacked_one.works():
                return unpacked_one
    installed = shutil.which("espeak-ng")
    return Program(installed) if installed and Program(installed).works() else None


def _mute(folder: Path) -> None:
    """Compiles the mute loudspeaker library into `folder`, where a C compiler is there."""
    target = folder / "libpcaudio.so.0"
    if not target.exists() and (compiler := shutil.which("cc")) is not None:
        command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
        subprocess.run(command, input=MUTE.encode(), capture_output=True, check=False)


def to_wav_or_none(data: bytes) -> bytes | None:
    """The corpus's form of the synthesiser's output, or None when there is none."""
    return to_wav(data) if len(data) > 44 else None


def jobs(espeak: Program, title: str, concepts: Sequence[Concept], held: HeldOut) -> list[Job]:
    """Readings of every emoji label: training voices, other voices on some, test voices on held-out ones."""
    listed = []
    for concept in concepts:
        word = held.mentioned(concept.english())
        if word:
            chosen = {"test_concept": VOICES["test"][:2]}
        else:
            first = int(fraction_of(concept.code, "voice:") * len(VOICES["train"]))
            chosen = {"train": tuple(VOICES["train"][(first + 3 * k) % 7] for k in range(TRAIN_TAKES))}
            if fraction_of(concept.code, "speech-val:") < VAL_SHARE:
                chosen["val"] = VOICES["val"][first % 2 :][:1]
            if fraction_of(concept.code, "speech-test:") < TEST_SHARE:
                chosen["test_style"] = VOICES["test"][first % 3 :][:1]
        for split, voices in chosen.items():
            for voice in voices:
                facts: dict[str, Any] = {
                    "label": concept.label,
                    "tags": list(concept.tags),
                    "group": concept.group,
                    "subgroup": concept.subgroup,
                    "voice": voice,
                    "language": "en",
                    "texts": {"en": concept.texts["en"]},
                    "package": title,
                    "licence": LICENCE,
                    "split": {"name": split, "by": "held-out word and voice" if word else "voice"},
                }
                key = f"{concept.code.lower()}-{voice.replace('+', '-')}"
                speed = 140 + int(50 * fraction_of(key, "speed:"))
                listed.append(Job(key, split, concept.label, facts, (espeak, concept.label, voice, speed)))
    return listed


def make(work: tuple[Program, str, str, int]) -> dict[str, Any] | str:
    """`{"wav": bytes}`: the label, spoken; or why not."""
    espeak, text, voice, speed = work
    data = espeak.say(text, voice, speed)
    wav = to_wav_or_none(data)
    return {"wav": wav} if wav is not None else "not spoken"
