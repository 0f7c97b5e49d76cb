"""Emoji: one concept drawn by many artists, so that a test on an unseen artist is honest.

Place in the path: corpus builder, part `emoji`. Six drawn styles train, two validate, the Fluent design (flat
and 3D are one design) tests; a concept that mentions a held-out word goes to `test_concept` in every style.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from corpus.concepts import Concept, bare, squeezed
from corpus.fetch import PACKAGES, Fetched
from corpus.parts import Job
from corpus.raster import first_frame, png, svg_to_png
from corpus.splits import fraction_of
from corpus.unpack import tgz_files
from corpus.words import HeldOut

STYLES = {
    "twemoji": "train",
    "noto": "train",
    "noto-v1": "train",
    "openmoji": "train",
    "emojione": "train",
    "emojione-v1": "train",
    "fxemoji": "val",
    "streamline": "val",
    "fluent-flat": "test_style",
    "fluent-3d": "test_style",
}
SMALL_STYLES = ("twemoji", "streamline", "fluent-flat")
SMALL_SHARE = 0.11  # of the concepts, in the small form
SIZE = 128


def jobs(
    packages: Mapping[str, Fetched], concepts: Sequence[Concept], held: HeldOut, *, small: bool
) -> list[Job]:
    """One job per (style, concept) that the packages draw, with its split decided."""
    listed = []
    for style in SMALL_STYLES if small else STYLES:
        fetched = packages.get(PACKAGES[style].name)
        if fetched is None:
            continue
        pictures = dict(_drawn(fetched.path, style, concepts))
        for concept in concepts:
            if concept.code not in pictures or (small and fraction_of(concept.code, "small:") >= SMALL_SHARE):
                continue
            listed.append(_job(style, concept, pictures[concept.code], fetched, held))
    return listed


def _job(style: str, concept: Concept, work: Any, fetched: Fetched, held: HeldOut) -> Job:
    word = held.mentioned(concept.english())
    split = "test_concept" if word else STYLES[style]
    facts: dict[str, Any] = {
        "label": concept.label,
        "tags": list(concept.tags),
        "group": concept.group,
        "subgroup": concept.subgroup,
        "class_name": concept.class_name,
        "concept": concept.code,
        "style": style,
        "texts": concept.texts,
        "package": fetched.title,
        "licence": fetched.package.licence,
        "split": {"name": split, "by": "held-out word" if word else "style"},
    }
    if word:
        facts["split"]["word"] = word
        facts["split"]["in"] = "names" if held.mentioned(concept.texts["en"]) else "keywords"
    return Job(f"{style}-{bare(concept.code)}", split, concept.label, facts, work)


def _drawn(path: Path, style: str, concepts: Sequence[Concept]) -> Iterator[tuple[str, Any]]:
    """(code, what `make` needs to draw it) for every concept that the package draws."""
    if style == "fluent-3d":
        by_bare = {bare(concept.code): concept.code for concept in concepts}
        for name, data in tgz_files(path, lambda n: n.startswith("assets/") and n.endswith(".webp")):
            code = by_bare.get(bare(Path(name).stem))
            if code:
                yield code, data
        return
    files = dict(tgz_files(path, lambda n: n in ("icons.json", "chars.json")))
    icons = json.loads(files["icons.json"])
    for code, name in match_icons(icons, json.loads(files.get("chars.json", b"{}")), concepts).items():
        yield code, icon_svg(icons, name)


def match_icons(
    icons: Mapping[str, Any], chars: Mapping[str, str], concepts: Sequence[Concept]
) -> dict[str, str]:
    """Icon name by concept code: by code point where the package states them, else by name.

    A name matches a label first, then any other spelling that belongs to one concept only.
    """
    if chars:
        by_bare = {bare(concept.code): concept.code for concept in concepts}
        found: dict[str, str] = {}
        for code, name in chars.items():
            if bare(code) in by_bare:
                found.setdefault(by_bare[bare(code)], name)
        return found
    labels = {squeezed(concept.label): concept.code for concept in concepts}
    spelled: dict[str, set[str]] = {}
    for concept in concepts:
        for name in concept.names:
            spelled.setdefault(name, set()).add(concept.code)
    matched: dict[str, tuple[int, str]] = {}
    for name in [*icons["icons"], *icons.get("aliases", {})]:
        key = squeezed(name)
        owners = {labels[key]} if key in labels else spelled.get(key, set())
        if len(owners) == 1:
            rank = (0 if key in labels else 1, name)
            code = next(iter(owners))
            matched[code] = min(matched.get(code, rank), rank)
    return {code: name for code, (_, name) in matched.items()}


def icon_svg(icons: Mapping[str, Any], name: str) -> str:
    """An SVG document, square when drawn, of one icon of an Iconify set; aliases and flips are followed."""
    flips = {"hFlip": False, "vFlip": False}
    rotation = 0
    entry: Mapping[str, Any] = icons["icons"].get(name) or icons["aliases"][name]
    while True:
        for flip in flips:
            flips[flip] ^= bool(entry.get(flip))
        rotation += int(entry.get("rotate", 0))
        if "body" in entry:
            break
        parent = entry["parent"]
        entry = icons["icons"].get(parent) or icons["aliases"][parent]
    left, top = (entry.get(k, icons.get(k, 0)) for k in ("left", "top"))
    width, height = (entry.get(k, icons.get(k, 16)) for k in ("width", "height"))
    centre = f"{left + width / 2:g} {top + height / 2:g}"
    moves = f"rotate({90 * (rotation % 4)} {centre})"
    x, y = -1 if flips["hFlip"] else 1, -1 if flips["vFlip"] else 1
    moves += f" translate({centre}) scale({x} {y}) translate({-left - width / 2:g} {-top - height / 2:g})"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}" width="{SIZE}" height="{SIZE}">'
        f'<g transform="{moves}">{entry["body"]}</g></svg>'
    )


def make(work: str | bytes) -> dict[str, Any] | str:
    """`{"png": bytes}`: a square RGBA picture of 128 px from an SVG document or a WebP file; or why not."""
    if isinstance(work, str):
        try:
            data = svg_to_png(work, SIZE, SIZE)
        except ValueError as error:
            return f"cannot be drawn: {error}"
        return {"png": data}
    image = first_frame(work).convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS).convert("RGBA")
    return {"png": png(image)}
