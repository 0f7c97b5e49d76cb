"""Sounds as 16 kHz mono waveforms of at most 4 s, and the part `sounds`: recordings without a picture.

Place in the path: corpus builder, part `sounds` (Scratch, FreePats, Minetest) and the sounds of stamps and
clips. Source of the patch layout: the Gravis UltraSound GF1 patch format, version 1.10.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from corpus.fetch import Fetched
from corpus.parts import Job
from corpus.splits import split_by_family
from corpus.words import HeldOut, words_of
from mmvit.errors import need

RATE = 16_000
LONGEST = 4.0  # seconds
SHORTEST = 0.1
VAL = 0.15
SCRATCH_ROOT = "usr/share/scratch/Media/Sounds"
SCRATCH_SKIPPED = ("Music Loops",)


def to_wav(data: bytes) -> bytes | None:
    """16-bit WAV bytes, 16 kHz mono, cut to 4 s, of an OGG, WAV or MP3 file; None when it holds no sound."""
    try:
        samples, rate = need("soundfile").read(io.BytesIO(data), dtype="float32", always_2d=True)
    except RuntimeError:
        return None
    return wav_bytes(samples.mean(axis=1), rate)


def wav_bytes(mono: np.ndarray, rate: int) -> bytes | None:
    """WAV bytes of a float waveform (n,) at `rate` Hz: resampled, trimmed, cut, faded; None when silent."""
    if mono.size == 0 or float(np.abs(mono).max()) < 1e-3:
        return None
    from scipy.signal import resample_poly

    mono = mono[: int((LONGEST + 4) * rate)].astype(np.float64)
    if rate != RATE:
        # Odd rates of old patches: 0.2 % of pitch is worth a filter of bearable length.
        ratio = Fraction(RATE, rate).limit_denominator(500)
        up, down = ratio.numerator, ratio.denominator
        mono = resample_poly(mono, up, down, window=_low_pass(max(up, down)))
    loud = np.flatnonzero(np.abs(mono) > 0.01 * np.abs(mono).max())
    mono = mono[max(0, loud[0] - 160) : loud[-1] + 800]
    if len(mono) < SHORTEST * RATE:
        return None
    longest = int(LONGEST * RATE)
    if len(mono) > longest:
        mono = mono[:longest]
        mono[-800:] *= np.linspace(1, 0, 800)
    pcm = np.round(np.clip(mono, -1, 1) * 32767).astype("<i2")
    size, form = pcm.nbytes, struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    header = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)
    return header + pcm.tobytes()


@lru_cache(maxsize=64)
def _low_pass(rate: int) -> np.ndarray:
    """The filter that `resample_poly` would design anew for every sound."""
    from scipy.signal import firwin

    return np.asarray(firwin(20 * rate + 1, 1 / rate, window=("kaiser", 5.0)))


def patch_samples(data: bytes) -> Iterator[tuple[np.ndarray, int]]:
    """(mono float waveform, Hz) of every sample of a GF1 patch; looped samples are played on for two seconds.

    Raises:
        ValueError: the file is not a GF1 patch.
    """
    if data[:8] != b"GF1PATCH":
        raise ValueError("not a GF1 patch")
    count = data[129 + 63 + 6]
    at = 129 + 63 + 47
    for _ in range(count):
        header = data[at : at + 96]
        if len(header) < 96:
            return
        size, start, end, rate = struct.unpack_from("<IIIH", header, 8)
        modes = header[55]
        raw = data[at + 96 : at + 96 + size]
        at += 96 + size
        wide, unsigned = modes & 1, modes & 2
        kind = ("<u2" if unsigned else "<i2") if wide else ("u1" if unsigned else "i1")
        values = np.frombuffer(raw[: len(raw) // 2 * 2] if wide else raw, dtype=kind).astype(np.float32)
        full = 32768.0 if wide else 128.0
        wave = (values - full if unsigned else values) / full
        if modes & 4:
            step = 2 if wide else 1
            wave = _played_on(wave, start // step, end // step, rate)
        yield wave, rate


def _played_on(wave: np.ndarray, start: int, end: int, rate: int, seconds: float = 2.0) -> np.ndarray:
    missing = int(seconds * rate) - end
    if not 0 <= start < end <= len(wave) or missing <= 0:
        return wave
    loop = wave[start:end]
    held = np.concatenate([wave[:end], np.tile(loop, missing // len(loop) + 1)])[: int(seconds * rate)]
    fade = min(len(held), int(0.8 * rate))
    held[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return held


def _name(text: str) -> str:
    """Words of a file name as a label: `DoorClose`, `door_close.2` and `042_Door-Close` are "door close"."""
    return " ".join(word for word in words_of(text) if word.isalpha())


def _job(
    key: str, label: str, tags: list[str], source: str, fetched: Fetched, held: HeldOut, work: Any
) -> Job:
    key = f"{source}-{re.sub(r'[^A-Za-z0-9_-]+', '-', key)}"
    word = held.mentioned([label, key, *tags])
    split = "test_concept" if word else split_by_family(label, val=VAL)
    facts = {
        "label": label,
        "tags": tags,
        "group": "sound",
        "subgroup": source,
        "texts": {"en": [label]},
        "package": fetched.title,
        "licence": fetched.package.licence,
        "split": {
            "name": split,
            "by": "held-out word" if word else "label",
            **({"word": word} if word else {}),
        },
    }
    return Job(key, split, label, facts, work)


def scratch_jobs(fetched: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """Labelled sounds of Scratch, without music loops."""
    listed = []
    root = folder / SCRATCH_ROOT
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".wav", ".mp3")):
        kind = path.relative_to(root).parts[0]
        if kind not in SCRATCH_SKIPPED:
            label = _name(re.sub(r"-?(fe)?male", "", path.stem))
            listed.append(
                _job(f"{kind}-{path.stem}", label, [kind.lower()], "scratch", fetched, held, str(path))
            )
    return listed


def freepats_jobs(fetched: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """Every sample of every FreePats instrument and drum; inside one they differ in pitch or velocity."""
    listed = []
    for path in sorted(folder.rglob("*.pat")):
        kind = "drum" if path.parent.name.startswith("Drum") else "instrument"
        label = _name(path.stem)
        count = path.read_bytes()[129 + 63 + 6]
        for index in range(count):
            key = f"{path.parent.name}-{path.stem}-{index}"
            listed.append(_job(key, label, [kind], "freepats", fetched, held, (str(path), index)))
    return listed


def minetest_jobs(fetched: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """Labelled sound effects of the game: footsteps, water, digging, doors, fire."""
    listed = []
    for path in sorted(folder.rglob("*.ogg")):
        module = path.parent.parent.name
        words = words_of(path.stem.removeprefix(module))
        label = " ".join(w for w in words if w.isalpha() and w not in ("default", "node", "env", "sounds"))
        if label:
            listed.append(_job(path.stem, label, [], "minetest", fetched, held, str(path)))
    return listed


def make(work: str | tuple[str, int]) -> dict[str, Any] | str:
    """`{"wav": bytes}` from a sound file, or from one sample of a patch; or why not."""
    if isinstance(work, str):
        wav = to_wav(Path(work).read_bytes())
    else:
        path, index = work
        try:
            wave, rate = next(islice(patch_samples(Path(path).read_bytes()), index, None))
        except (ValueError, StopIteration) as error:
            return f"cannot be decoded: {error}"
        wav = wav_bytes(wave, rate)
    return {"wav": wav} if wav is not None else "silent or too short"


def keep_patches(name: str) -> bool:
    """True for the instrument patches of the FreePats package."""
    return name.endswith(".pat")


def keep_effects(name: str) -> bool:
    """True for the sound effects of the Minetest package."""
    return name.endswith(".ogg")


def jobs(fetched: dict[str, Fetched], folders: dict[str, Path], held: HeldOut) -> list[Job]:
    """All sounds of the sources that are there."""
    sources = {"scratch": scratch_jobs, "freepats": freepats_jobs, "minetest": minetest_jobs}
    return [
        job
        for name, plan in sources.items()
        if name in folders
        for job in plan(fetched[name], folders[name], held)
    ]
