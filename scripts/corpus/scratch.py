"""Scratch: labelled cut-outs and backgrounds of the children's programming language.

Place in the path: corpus builder, part `scratch`, and the backgrounds of scenes and clips. The folder
`People` is left out (its pictures show real pupils), and so are letters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from corpus.fetch import Fetched
from corpus.parts import Job
from corpus.raster import first_frame, fitted
from corpus.splits import fraction_of, split_by_family
from corpus.words import HeldOut, words_of

ROOT = "usr/share/scratch/Media"
FOLDERS = ("Animals", "Fantasy", "Things", "Transportation")
PICTURES = (".gif", ".png", ".jpg")
LONG_SIDE = 224
VAL = 0.13
NAMELESS = (
    "fantasy",
    "gobo",
    "wild",
    "monster",
    "insect",
)  # "fantasy7" says nothing: folder words are the label
SPELLED = {"cub": "bear cub", "sunglass f": "sunglasses", "mic": "microphone", "soccer": "soccer ball"}
SPELLED |= {
    "partyhat": "party hat",
    "beachball": "beach ball",
    "tennisball": "tennis ball",
    "palmtree": "palm tree",
}
SPELLED |= {
    "wizardhat": "wizard hat",
    "magiccarpet": "magic carpet",
    "monkeyking": "monkey king",
    "car bug": "car",
}
SPELLED |= {
    "car cow": "car",
    "street cleaner mit": "street cleaner",
    "button pressed": "button",
    "hippo": "hippopotamus",
}
SPELLED |= {
    "sail boat": "sailboat",
    "tug boat": "tugboat",
    "bike": "bicycle",
    "lego": "toy brick",
    "car blue": "blue car",
}
SPELLED |= {"wild": "wild creature", "gobo": "alien creature", "fantasy": "fantasy creature", "rock": "rock"}


def keep(name: str) -> bool:
    """True for the package's pictures and sounds that the corpus reads."""
    inside = name.removeprefix(ROOT + "/")
    kind = inside.split("/")[0]
    wanted = kind in ("Backgrounds", "Sounds") or inside.startswith(tuple(f"Costumes/{f}/" for f in FOLDERS))
    return wanted and name.lower().endswith((*PICTURES, ".wav", ".mp3"))


def label_of(stem: str) -> str:
    """The thing that a file name like `butterfly1-a` names: "butterfly"."""
    words = [word for word in words_of(stem) if word.isalpha()]
    while len(words) > 1 and len(words[-1]) == 1 and words[-1] in "abcd":
        words.pop()
    name = " ".join(words)
    return SPELLED.get(name, name)


def jobs(fetched: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """One job per cut-out; variants of one name share a split."""
    listed = []
    for path in sorted((folder / ROOT / "Costumes").rglob("*")):
        if path.suffix not in PICTURES or path.parent.name not in FOLDERS:
            continue
        label = label_of(path.stem)
        group = path.parent.name.lower()
        word = held.mentioned([label, path.stem, group])
        split = "test_concept" if word else split_by_family(label, val=VAL)
        facts = {
            "label": label,
            "tags": [group],
            "group": group,
            "subgroup": "",
            "style": "scratch",
            "texts": {"en": [label]},
            "package": fetched.title,
            "licence": fetched.package.licence,
            "split": {
                "name": split,
                "by": "held-out word" if word else "label",
                **({"word": word} if word else {}),
            },
        }
        key = f"{group}-{re.sub(r'[^A-Za-z0-9_-]+', '-', path.stem)}"
        listed.append(Job(key, split, label, facts, str(path)))
    return listed


def make(work: str) -> dict[str, Any] | str:
    """`{"png": bytes}`: the first frame, margins cut away, long side at most 224 px; or why not."""
    try:
        return {"png": fitted(first_frame(Path(work).read_bytes()), LONG_SIDE)}
    except (ValueError, OSError) as error:
        return f"cannot be drawn: {error}"


def backgrounds(folder: Path, held: HeldOut) -> dict[str, list[Path]]:
    """Background pictures by split: families (`room1`, `room2`) together, held-out words in test_concept."""
    by_split: dict[str, list[Path]] = {"train": [], "val": [], "test_style": [], "test_concept": []}
    for path in sorted((folder / ROOT / "Backgrounds").rglob("*")):
        if path.suffix not in PICTURES or path.parent.name == "Backgrounds":
            continue
        position = fraction_of(label_of(path.stem), "background:")
        if held.mentioned([path.stem]):
            split = "test_concept"
        else:
            split = next(s for s, end in _BACKGROUND_SHARES if position < end)
        by_split[split].append(path)
    return by_split


_BACKGROUND_SHARES = (("train", 0.62), ("val", 0.74), ("test_style", 0.87), ("test_concept", 1.0))
