"""Open clip art: pictures with titles and keywords that people typed: noisy text, as on the web.

Place in the path: corpus builder, part `clipart`. Text is taken as it is after dropping what says nothing
about the picture: collection names, icon themes, shapes, cards, Italian titles, blank drawings.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path
from typing import Any

from corpus.fetch import Fetched
from corpus.parts import Job
from corpus.raster import first_frame, is_plain, svg_fitted
from corpus.splits import split_by_family
from corpus.words import HeldOut, words_of

ROOT = "usr/share/openclipart/svg"
LONG_SIDE = 192
VAL = 0.075
MOST_TITLES = 6
LARGEST_FILE = 1_500_000
DROPPED = re.compile(
    r"/(icons|shapes|cards|buttons|special|flowchart|led|folders|logos|mimetypes|flags/semaphore|map_symbols)/"
)
COLLECTION = re.compile(
    r"\b(collection|clip ?art|theme|icon ?set|submission|sibmission|symbol_signs|untitled)\b", re.I
)
EMPTY_TAGS = {
    "hash",
    "unsorted",
    "special",
    "icon",
    "icons",
    "theme",
    "shape",
    "shapes",
    "sign",
    "symbol",
    "clip_art",
}
_ITALIAN = re.compile(r"\b(di|della|delle|con|il|lo|gli|rosso|verde|cavallo|albero)\b", re.I)


def keep(name: str) -> bool:
    """True for the package's drawings that may be used."""
    return (
        name.startswith(ROOT)
        and name.endswith(".svg")
        and not DROPPED.search("/" + name.removeprefix(ROOT + "/"))
    )


def title_and_tags(svg: str) -> tuple[str, list[str]]:
    """The drawing's own title and keywords, cleaned; an empty title when it says nothing."""
    found = re.search(r"<(?:rdf:RDF|metadata)\b.*?</(?:rdf:RDF|metadata)>", svg, re.S)
    block = found.group(0) if found else ""
    if re.search(r"archit+et+o|rollandin", block, re.I):
        return "", []  # one Italian contributor: some hundred good drawings with Italian titles
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", block, re.S)
    subject = re.search(r"<dc:subject[^>]*>(.*?)</dc:subject>", block, re.S)
    tags = (
        [_plain(tag) for tag in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", subject.group(1), re.S)]
        if subject
        else []
    )
    kept = [tag.replace("_", " ").lower() for tag in tags if tag and tag.lower() not in EMPTY_TAGS]
    return clean_title(_plain(title.group(1)) if title else ""), sorted(
        {tag for tag in kept if re.fullmatch(r"[a-z][a-z' -]{1,30}", tag)}
    )


def clean_title(title: str) -> str:
    """The title without numbering, colour notes and collection suffixes; '' when nothing telling remains."""
    title = re.sub(r"\s+-\s+(RPG map elements|body part).*$", "", title)
    title = re.sub(r"\s*\((b ?and ?w|b ?& ?w|b/w|bw|colou?r|black and white)\)", "", title, flags=re.I)
    title = re.sub(r"\.svg$", "", title, flags=re.I)
    title = re.sub(r"[\s_#-]*\(?\d+\)?$", "", title.replace("_", " ")).strip(" -.,:;")
    telling = len(title) > 2 and len(title) < 80 and re.search(r"[A-Za-z]{3}", title)
    if not telling or COLLECTION.search(title) or _ITALIAN.search(title):
        return ""
    return title


def _plain(markup: str) -> str:
    text = html.unescape(html.unescape(re.sub(r"<[^>]+>", "", markup)))  # some files escape twice
    return " ".join(text.split())


def jobs(fetched: Fetched, folder: Path, held: HeldOut) -> list[Job]:
    """One job per drawing whose title is its own: what more than six drawings share names a collection."""
    root = folder / ROOT
    read = []
    for path in sorted(root.rglob("*.svg")):
        if path.stat().st_size <= LARGEST_FILE:
            title, tags = title_and_tags(path.read_text(encoding="utf-8", errors="replace"))
            if title:
                read.append((path, title, tags))
    count = Counter(" ".join(words_of(title)) for _, title, _ in read)
    listed = []
    for path, title, tags in read:
        words = " ".join(words_of(title))
        if count[words] > MOST_TITLES:
            continue
        inside = path.relative_to(root)
        if "flags" in inside.parts and "flag" not in words:
            title = f"flag of {title}"
        texts = [title, *tags, path.stem, *inside.parts[:-1]]
        word = held.mentioned(texts)
        split = "test_concept" if word else split_by_family(words, val=VAL)
        facts = {
            "label": title,
            "tags": tags,
            "group": inside.parts[0],
            "subgroup": "/".join(inside.parts[1:-1]),
            "style": "clip art",
            "texts": {"en": [title]},
            "package": fetched.title,
            "licence": fetched.package.licence,
            "split": {
                "name": split,
                "by": "held-out word" if word else "title",
                **({"word": word} if word else {}),
            },
        }
        key = re.sub(r"[^A-Za-z0-9_-]+", "-", str(inside.with_suffix("")))
        listed.append(Job(key, split, title, facts, str(path)))
    return listed


def make(work: str) -> dict[str, Any] | str:
    """`{"png": bytes}`: the drawing, long side 192 px, empty page cut away; or why not."""
    try:
        data = svg_fitted(Path(work).read_text(encoding="utf-8", errors="replace"), LONG_SIDE)
    except (ValueError, OSError) as error:
        return f"cannot be drawn: {error}"
    return "one colour only" if is_plain(first_frame(data)) else {"png": data}
