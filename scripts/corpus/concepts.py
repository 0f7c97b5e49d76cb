"""The emoji concepts: label, group, class, keywords, and names in some 30 languages.

Place in the path: corpus builder; the concepts name the pictures of every emoji style, and their labels
choose the held-out words. Source: the CLDR annotations as `emojibase-data` packs them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from corpus.splits import Named
from corpus.unpack import tgz_files
from corpus.words import words_of

SHORTCODES = ("cldr", "emojibase", "emojibase-legacy", "github", "iamcal", "joypixels")
CAPTION_SHORTCODES = ("cldr", "emojibase", "github", "iamcal")
MOST_NAMES = 5


@dataclass(frozen=True)
class Concept:
    """One emoji as a thing to draw: `texts["en"][0]` is the label, `names` are its squeezed spellings."""

    code: str
    label: str
    group: str
    subgroup: str
    class_name: str
    tags: tuple[str, ...]
    texts: dict[str, list[str]] = field(hash=False)
    names: frozenset[str] = field(hash=False)

    def named(self) -> Named:
        """The concept as the choice of held-out words sees it."""
        return Named(self.label, self.group, f"{self.subgroup} {self.class_name}", self.tags)

    def english(self) -> list[str]:
        """Every English text of the concept: names and keywords."""
        return [*self.texts["en"], *self.tags]


def bare(code: str) -> str:
    """A code point sequence in lower case, without the variation selector that packages may spell or not."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def squeezed(name: str) -> str:
    """The letters and digits of a name: `Fire_engine` and `fire-engine` are one."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def load_concepts(package: Path) -> list[Concept]:
    """The base concepts (no skin tones, no components) of the `emojibase-data` package, in Unicode order."""
    files = {
        name: json.loads(data)
        for name, data in tgz_files(
            package,
            lambda n: (
                n in ("meta/groups.json", "meta/unicode-names.json", "en/messages.json")
                or bool(re.fullmatch(r"[a-z-]+/data\.json|en/shortcodes/[a-z-]+\.json", n))
            ),
        )
    }
    languages = sorted(name.split("/")[0] for name in files if re.fullmatch(r"[a-z-]+/data\.json", name))
    labels = {
        lang: {entry["hexcode"]: entry["label"] for entry in files[f"{lang}/data.json"]} for lang in languages
    }
    codes: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for collection in SHORTCODES:
        for code, names in files[f"en/shortcodes/{collection}.json"].items():
            codes[code][collection] = [names] if isinstance(names, str) else names
    groups = files["meta/groups.json"]
    messages = {row["key"]: row["message"] for row in files["en/messages.json"]["subgroups"]}
    concepts = []
    for entry in sorted(files["en/data.json"], key=lambda e: e.get("order", 0)):
        group = groups["groups"].get(str(entry.get("group")))
        if group is None or group == "component":
            continue
        code, label = entry["hexcode"], entry["label"].replace("’", "'")
        subgroup = groups["subgroups"][str(entry["subgroup"])]
        texts = {
            lang: [labels[lang][code]]
            for lang in languages
            if not lang.startswith("en") and code in labels[lang]
        }
        alternatives = [name for c in CAPTION_SHORTCODES for name in codes[code].get(c, ())]
        texts["en"] = english_names(label, group, [labels["en-gb"].get(code, label), *alternatives])
        spellings = [label, files["meta/unicode-names.json"].get(code, "")]
        spellings += [name for names in codes[code].values() for name in names]
        concepts.append(
            Concept(
                code,
                label,
                group,
                subgroup,
                messages.get(subgroup, subgroup),
                tuple(tag.replace("’", "'") for tag in entry.get("tags", ())),
                texts,
                frozenset(squeezed(s) for s in spellings) - {""},
            )
        )
    return concepts


def english_names(label: str, group: str, alternatives: list[str]) -> list[str]:
    """Accurate English names, the label first: variants of its wording, then shortcodes made into words.

    Flags keep only their label's variants: shortcodes of flags are country codes.
    """
    names = [label]
    head, _, rest = label.partition(": ")
    if head in ("flag", "family"):
        names.append(f"{head} of {rest}")
    elif rest.endswith(("hair", "beard")):
        names.append(f"{head} with {rest}")
    elif rest.startswith("facing"):
        names.append(f"{head}, {rest}")
    if group != "flags":
        for name in alternatives:
            text = re.sub(r"[_-]+", " ", name.replace("’", "'")).strip()
            letters = re.fullmatch(r"[^\W\d_][^\d_]*", text)
            if len(text) > 2 and letters and not re.search(r" [mwbg]{1,4}$", text):  # not "family mwg"
                names.append(text)
    unique: dict[tuple[str, ...], str] = {}
    for name in names:
        unique.setdefault(tuple(words_of(name)), name)
    return list(unique.values())[:MOST_NAMES]
