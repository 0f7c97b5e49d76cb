"""Words of English texts, and the set of held-out words that no training text may mention.

Place in the path: corpus builder, before any picture is drawn. A text "mentions" a word when the word stands
in it as a whole word, singular or plural, whatever the case, the accents or the way file names glue words
together.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "ox": "oxen",
    "person": "people",
    "die": "dice",
    "penny": "pence",
    "cactus": "cacti",
    "octopus": "octopi",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "shelf": "shelves",
    "loaf": "loaves",
    "calf": "calves",
    "scarf": "scarves",
    "thief": "thieves",
    "hoof": "hooves",
    "life": "lives",
    "wife": "wives",
    "half": "halves",
    "dwarf": "dwarves",
    "elf": "elves",
}
SINGULAR = {plural: singular for singular, plural in IRREGULAR.items()}

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[a-z]+|[0-9]+")


def words_of(text: str) -> list[str]:
    """The lower-case words and numbers of `text`: accents dropped, `fireEngine2` split as fire, engine, 2."""
    folded = unicodedata.normalize("NFKD", _CAMEL.sub(" ", text))
    plain = "".join(c for c in folded if not unicodedata.combining(c)).lower()
    return _WORD.findall(re.sub(r"['’]s\b", " ", plain).replace("'", "").replace("’", ""))


def singular_of(word: str) -> str:
    """The likely singular of an English noun; a word that does not look plural comes back unchanged."""
    if word in SINGULAR:
        return SINGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def forms_of(word: str) -> set[str]:
    """Every spelling that counts as a mention of `word`: itself, its singular, and the plurals of both.

    The set is generous on purpose ("crocodilees" costs nothing, a missed "mice" would leak a concept).
    """
    forms = set()
    for base in {word, singular_of(word)}:
        forms |= {base, base + "s", base + "es", IRREGULAR.get(base, base)}
        if base.endswith("y"):
            forms.add(base[:-1] + "ies")
        if base.endswith("f"):
            forms.add(base[:-1] + "ves")
        if base.endswith("fe"):
            forms.add(base[:-2] + "ves")
    return forms


class HeldOut:
    """The held-out words: `mentioned(texts)` names the first one that a text mentions."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = sorted(set(words))
        self._word_of = {form: word for word in self.words for form in forms_of(word)}

    def mentioned(self, texts: Iterable[str]) -> str | None:
        """The held-out word that stands in one of `texts` as a whole word, singular or plural, or None."""
        for text in texts:
            for word in words_of(text):
                if word in self._word_of:
                    return self._word_of[word]
        return None
