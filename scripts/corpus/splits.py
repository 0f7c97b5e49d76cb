"""Which split a sample belongs to: a pure function of its texts, its art style and its family.

Place in the path: corpus builder, planning. Four splits: `train`, `val`, `test_style` (unseen artists, seen
concepts) and `test_concept` (concepts that no training text mentions). Nothing here is random: hashes of
names decide. Source: the protocol of generalised zero-shot evaluation (Xian et al. 2018, section 3): classes
are split, then everything that shows or names a held-out class is kept out of training.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from corpus.words import HeldOut, singular_of, words_of

SPLITS = ("train", "val", "test_style", "test_concept")
OBJECT_GROUPS = ("animals-nature", "food-drink", "objects", "travel-places", "activities")
HELD_OUT_SHARE = 0.15
# A word that more labels and keywords than this mention names a class, not a thing ("bird", "cloud").
MOST_MENTIONS = 5

# Words that do not tell which thing is shown: colours, sizes, states, counts, people, positions.
_GENERIC = """
    face faced man woman person people boy girl baby black white red green blue orange yellow purple brown
    grey gray light dark pink button sign symbol mark small large medium big old new full half first last
    quarter high low left right up down front back side open closed with without and of in on at for to from
    the an a over under behind no not or o s clock oclock thirty one two three four five six seven eight nine
    ten eleven twelve hot cold cooked fried raw piece cut set pair box ball card stick game place public area
    shape shaped tone level silhouette hand crescent waxing waning gibbous rolled rolling flying racing spiral
    crossed broken head hole heart eye tip japanese time day night morning dusk post part flat showing asia
    australia raised lowered shooting flash department top facing increasing decreasing done index show
    playing classic decorative hatching spouting billed cover note page pick track meridian
"""
GENERIC = frozenset(_GENERIC.split())

# Other spellings of labels that a hash may hold out.
SPELLINGS = {
    "airplane": ("aeroplane", "plane"),
    "axe": ("ax", "hatchet"),
    "cockroach": ("roach",),
    "crocodile": ("alligator",),
    "violin": ("fiddle",),
    "doughnut": ("donut",),
    "tshirt": ("tee",),
}


def fraction_of(name: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the name alone: the first 52 bits of its SHA-256."""
    return int(hashlib.sha256((salt + name).encode()).hexdigest()[:13], 16) / 16**13


@dataclass(frozen=True)
class Named:
    """A concept as the choice of held-out words sees it: label, group, class name, keywords."""

    label: str
    group: str
    subgroup: str
    tags: tuple[str, ...] = ()


def choose_held_out(concepts: Sequence[Named]) -> tuple[HeldOut, list[str]]:
    """The held-out words and the labels they come from.

    15 % of the labels in the five object groups, in the order of the SHA-256 of the label; each gives its
    most telling word (the rarest in labels and keywords, the later one on a tie). Labels with no telling word
    are passed over.
    """
    mentions = Counter(
        word
        for concept in concepts
        for word in {singular_of(w) for text in (concept.label, *concept.tags) for w in words_of(text)}
    )
    class_words = {
        singular_of(w) for concept in concepts for w in words_of(concept.group) + words_of(concept.subgroup)
    }
    objects = [concept for concept in concepts if concept.group in OBJECT_GROUPS]
    wanted = round(HELD_OUT_SHARE * len(objects))
    words: list[str] = []
    labels: list[str] = []
    for concept in sorted(objects, key=lambda c: hashlib.sha256(c.label.encode()).hexdigest()):
        telling = [singular_of(word) for word in words_of(concept.label)]
        telling = [
            word
            for word in telling
            if word not in GENERIC
            and word not in class_words
            and len(word) > 1
            and mentions[word] <= MOST_MENTIONS
        ]
        if telling and len(labels) < wanted:
            labels.append(concept.label)
            joined = "".join(words_of(concept.label))
            if len(words_of(concept.label)) == 2:
                words.append(joined)  # "lightbulb" mentions "light bulb"
            words.extend(SPELLINGS.get(joined, ()))
            words.append(min(reversed(telling), key=lambda word: mentions[word]))
    return HeldOut(words), sorted(labels)


def split_by_family(family: str, *, val: float, test: float = 0.0) -> str:
    """`test_style`, `val` or `train` by the hash of the family's name; the shares are expectations."""
    position = fraction_of(family, "family:")
    if position < test:
        return "test_style"
    return "val" if position < test + val else "train"


def families(members: Sequence[Iterable[str]]) -> list[str]:
    """One family name per member: members that share any trait (directly or through others) share the name.

    A trait is any string: "caption:a cat", "sound:ab12…". Used so that variants of one drawing, and drawings
    with the same recording, never stand in two splits.
    """
    parent: dict[str, str] = {}

    def root(trait: str) -> str:
        while parent.setdefault(trait, trait) != trait:
            parent[trait] = parent[parent[trait]]
            trait = parent[trait]
        return trait

    listed = [sorted(set(traits)) for traits in members]
    for traits in listed:
        for other in traits[1:]:
            a, b = sorted((root(traits[0]), root(other)))
            parent[b] = a
    return [root(traits[0]) for traits in listed]
