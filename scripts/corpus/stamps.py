"""Tux Paint stamps: pictures with alpha, captions in some 70 languages, own sounds, human speech.

Place in the path: corpus builder, parts `stamps` and `spoken`. Splits go by family: stamps that share a
caption, a name, a recording or their bytes stand together. Folders are classes ("animals", "birds").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.fetch import Fetched
from corpus.parts import Job
from corpus.raster import first_frame, fitted, is_plain, svg_fitted
from corpus.sounds import to_wav
from corpus.splits import families, split_by_family
from corpus.words import HeldOut, words_of

ROOT = "usr/share/tuxpaint/stamps"
SKIPPED_FOLDERS = ("symbols",)
LONG_SIDE = 224
LONGEST_LABEL = 5  # words
VAL, TEST_STYLE = 0.125, 0.16
_ARTICLE = re.compile(r"^(an?|the|our|this is an?|these are)\s+", re.I)
_EXPLANATION = re.compile(r",| (?:for|that|which|lets|worn|with|is|are|stands|from|carries) |—| \(")


@dataclass(frozen=True)
class Stamp:
    """One stamp on disk: name (path without ending), picture, texts by language, sound, spoken captions."""

    name: str
    picture: Path
    texts: dict[str, list[str]]
    caption: str
    sound: Path | None
    spoken: dict[str, Path]

    @property
    def folders(self) -> list[str]:
        """The class folders, from the widest."""
        return self.name.split("/")[:-1]

    def english(self) -> list[str]:
        """Every English text of the stamp: captions, file name and class folders."""
        return [self.caption, *self.texts["en"], *self.name.split("/")]


def keep(name: str) -> bool:
    """True for the package's files that the corpus reads."""
    inside = name.removeprefix(ROOT + "/")
    return inside != name and inside.split("/")[0] not in SKIPPED_FOLDERS and not name.endswith(".dat")


def label_of(caption: str) -> str:
    """The thing that a caption names: first sentence, without article, quotes and full stop."""
    first = re.split(r"(?<=[.!?])\s+", caption.strip())[0]
    return _ARTICLE.sub("", first.strip("“”\"' ")).strip(" .!“”\"'") or caption


def short_label(label: str, name: str) -> str:
    """The label without its explanation, or the file name's words where the caption is a sentence."""
    if len(words_of(label)) <= LONGEST_LABEL:
        return label
    head = _EXPLANATION.split(label)[0].strip()
    named = " ".join(word for word in words_of(name) if word.isalpha())
    return head if 0 < len(words_of(head)) < LONGEST_LABEL else named or label


def read_stamps(folder: Path) -> list[Stamp]:
    """The stamps that have a picture and an English caption, by name."""
    root = folder / ROOT
    stamps = []
    for text in sorted(root.rglob("*.txt")):
        base = text.with_suffix("")
        pictures = [base.with_suffix(end) for end in (".png", ".svg") if base.with_suffix(end).is_file()]
        lines = text.read_text(encoding="utf-8", errors="ignore").splitlines()
        if not pictures or not lines or not words_of(lines[0]):
            continue
        caption = lines[0].strip()
        texts = _texts(caption, base.name, lines[1:])
        sounds = [base.with_suffix(end) for end in (".ogg", ".wav") if base.with_suffix(end).is_file()]
        english = [path for end in (".ogg", ".wav") if (path := Path(f"{base}_desc{end}")).is_file()]
        spoken = {"en": path for path in english[:1]}  # noqa: B035
        for path in sorted(text.parent.glob(f"{base.name}_desc_*.*")):
            spoken[path.stem.removeprefix(f"{base.name}_desc_").replace("_", "-").lower()] = path
        name = str(base.relative_to(root))
        spoken = {lang: path for lang, path in spoken.items() if "." not in lang}
        stamps.append(Stamp(name, pictures[0], texts, caption, sounds[0] if sounds else None, spoken))
    return stamps


def _texts(caption: str, name: str, lines: Sequence[str]) -> dict[str, list[str]]:
    label = label_of(caption)
    english = list(dict.fromkeys([short_label(label, name), label, caption]))
    texts: dict[str, list[str]] = {"en": english}
    for line in lines:
        language, equals, said = line.partition(".utf8=")
        if not equals or not said.strip():
            continue
        if language.startswith("en"):
            english.append(said.strip())
        else:
            texts[re.sub(r"[@_]", "-", language).lower()] = [said.strip()]
    texts["en"] = list(dict.fromkeys(english))
    return texts


def assign(stamps: Sequence[Stamp], held: HeldOut) -> list[tuple[str, dict[str, Any]]]:
    """(split, split facts) of each stamp; a family with one held-out member is held out whole."""
    names = families([_traits(stamp) for stamp in stamps])
    words: dict[str, str] = {}
    for stamp, family in zip(stamps, names, strict=True):
        if (word := held.mentioned(stamp.english())) is not None:
            words.setdefault(family, word)
    assigned = []
    for family in names:
        if family in words:
            facts = {"name": "test_concept", "by": "held-out word", "word": words[family], "family": family}
        else:
            split = split_by_family(family, val=VAL, test=TEST_STYLE)
            facts = {"name": split, "by": "stamp family", "family": family}
        assigned.append((facts["name"], facts))
    return assigned


def _traits(stamp: Stamp) -> list[str]:
    stem = re.sub(r"([-_ ]?\d+[a-z]?|[-_][a-z]|_mirror)$", "", stamp.name.split("/")[-1].lower())
    traits = [
        f"stem:{stem}",
        "caption:" + " ".join(words_of(stamp.texts["en"][0])),
        "bytes:" + hashlib.sha256(stamp.picture.read_bytes()).hexdigest()[:16],
    ]
    if stamp.sound is not None:
        traits.append("sound:" + hashlib.sha256(stamp.sound.read_bytes()).hexdigest()[:16])
    return traits


def jobs(fetched: Fetched, folder: Path, held: HeldOut, *, spoken: bool = False) -> list[Job]:
    """One job per stamp (`spoken`: per stamp that a human reads aloud in some language)."""
    stamps = read_stamps(folder)
    listed = []
    for stamp, (split, facts) in zip(stamps, assign(stamps, held), strict=True):
        if spoken and not stamp.spoken:
            continue
        meta = {
            "label": stamp.texts["en"][0],
            "tags": sorted(
                {word for part in stamp.name.split("/") for word in words_of(part) if word.isalpha()}
            ),
            "group": stamp.folders[0],
            "subgroup": "/".join(stamp.folders[1:]),
            "style": "cartoon" if "cartoon" in stamp.folders else "stamp",
            "texts": stamp.texts,
            "package": fetched.title,
            "licence": fetched.package.licence,
            "split": facts,
        }
        sounds = {lang: str(path) for lang, path in sorted(stamp.spoken.items())} if spoken else {}
        own = None if spoken or stamp.sound is None else str(stamp.sound)
        key = re.sub(r"[^A-Za-z0-9_-]+", "-", stamp.name)
        listed.append(Job(key, split, stamp.caption, meta, (str(stamp.picture), own, sounds)))
    return listed


def make(work: tuple[str, str | None, dict[str, str]]) -> dict[str, Any] | str:
    """`png` (long side at most 224 px), `wav` (own sound), `LANG.wav` (spoken captions); or why not."""
    picture, own, spoken = work
    try:
        data = Path(picture).read_bytes()
        if picture.endswith(".svg"):
            image = svg_fitted(data.decode("utf-8", "replace"), LONG_SIDE)
        else:
            image = fitted(first_frame(data), LONG_SIDE)
        if is_plain(first_frame(image)):
            return "one colour only"
    except (ValueError, OSError) as error:
        return f"cannot be drawn: {error}"
    members: dict[str, Any] = {"png": image}
    wanted = ({"wav": own} if own else {}) | {f"{lang}.wav": path for lang, path in spoken.items()}
    for extension, path in wanted.items():
        wav = to_wav(Path(path).read_bytes())
        if wav is not None:
            members[extension] = wav
    return members if not spoken or len(members) > 1 else "no spoken caption can be decoded"
