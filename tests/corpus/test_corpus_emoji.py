"""Icons matched to concepts and drawn; English names of concepts."""

import io

import numpy as np
import pytest
from corpus.concepts import Concept, bare, english_names, squeezed
from corpus.emoji import SIZE, icon_svg, make, match_icons
from PIL import Image


def concept(code, label, *spellings):
    names = frozenset(squeezed(s) for s in (label, *spellings))
    return Concept(code, label, "objects", "tool", "tools", (), {"en": [label]}, names)


FOX = concept("1F98A", "fox", "fox_face")
CAT = concept("1F431", "cat face", "cat", "feline")
CAT2 = concept("1F408", "cat", "feline")


def test_icons_match_by_code_point_where_the_package_states_them():
    icons = {"icons": {"renard": {}, "chat": {}}}
    chars = {"1f98a": "renard", "1f408-fe0f": "chat", "1f98a-1f3fb": "tinted"}
    assert match_icons(icons, chars, [FOX, CAT, CAT2]) == {"1F98A": "renard", "1F408": "chat"}


def test_icons_match_by_label_first_and_never_by_an_ambiguous_name():
    icons = {"icons": {"fox-face": {}, "cat": {}, "feline": {}}, "aliases": {"Cat_Face": {"parent": "cat"}}}
    assert match_icons(icons, {}, [FOX, CAT, CAT2]) == {
        "1F98A": "fox-face",
        "1F408": "cat",
        "1F431": "Cat_Face",
    }


ICONS = {
    "width": 10,
    "height": 10,
    "icons": {
        "left": {"body": '<path fill="#f00" d="M0 0h5v10H0z"/>'},
        "wide": {"body": '<path d="M0 0h20v10H0z"/>', "width": 20},
    },
    "aliases": {
        "right": {"parent": "left", "hFlip": True},
        "top": {"parent": "left", "rotate": 1},
        "again": {"parent": "right", "hFlip": True},
    },
}


def alpha(name):
    data = make(icon_svg(ICONS, name))["png"]
    return np.asarray(Image.open(io.BytesIO(data)))[..., 3]


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("left", slice(0, SIZE), slice(0, SIZE // 2)),
        ("right", slice(0, SIZE), slice(SIZE // 2, SIZE)),
        ("top", slice(0, SIZE // 2), slice(0, SIZE)),
        ("again", slice(0, SIZE), slice(0, SIZE // 2)),
        ("wide", slice(SIZE // 4, 3 * SIZE // 4), slice(0, SIZE)),
    ],
)
def test_aliases_flips_and_turns_are_drawn_where_they_belong(name, rows, columns):
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[rows, columns] = 255
    assert np.array_equal(alpha(name), expected)


def test_a_broken_drawing_is_a_reason_not_an_exception():
    assert make("<svg").startswith("cannot be drawn")


def test_english_names_start_with_the_label_and_say_nothing_twice():
    names = english_names("fox", "animals-nature", ["fox", "fox_face", "FOX", "+1", "a2"])
    assert names == ["fox", "fox face"]


def test_flags_take_no_country_codes():
    assert english_names("flag: France", "flags", ["fr", "flag-fr"]) == ["flag: France", "flag of France"]
    assert english_names("man: beard", "people-body", []) == ["man: beard", "man with beard"]


def test_code_points_are_compared_without_the_variation_selector():
    assert bare("2764-FE0F-200D-1F525") == "2764-200d-1f525"
