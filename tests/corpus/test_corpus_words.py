"""What counts as a mention of a held-out word."""

import pytest
from corpus.words import HeldOut, forms_of, singular_of, words_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fire engine", ["fire", "engine"]),
        ("fireEngine2.svg", ["fire", "engine", "2", "svg"]),
        ("rose_window-03", ["rose", "window", "03"]),
        ("Café au lait", ["cafe", "au", "lait"]),
        ("man's shoe, woman’s boot", ["man", "shoe", "woman", "boot"]),
        ("one o'clock", ["one", "oclock"]),
    ],
)
def test_words_are_split_as_people_and_file_names_write_them(text, expected):
    assert words_of(text) == expected


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("foxes", "fox"),
        ("dolls", "doll"),
        ("berries", "berry"),
        ("mice", "mouse"),
        ("leaves", "leaf"),
        ("glasses", "glass"),
        ("glass", "glass"),
        ("bus", "bus"),
        ("axes", "axe"),
    ],
)
def test_a_word_counts_in_the_singular_and_in_the_plural(plural, singular):
    held = HeldOut([singular])
    assert held.mentioned([f"two {plural} here"]) == singular
    assert held.mentioned([f"one {singular}"]) == singular


def test_only_whole_words_count():
    held = HeldOut(["ax", "owl", "key"])
    assert held.mentioned(["taxi", "bowl of soup", "keyboard", "monkey", "growl"]) is None
    assert held.mentioned(["taxi", "An OWL."]) == "owl"
    assert held.mentioned(["icons/old_keys_01.svg"]) == "key"


def test_a_held_out_plural_covers_its_singular():
    assert HeldOut(["gloves"]).mentioned(["a glove"]) == "gloves"
    assert {"mouse", "mice"} <= forms_of("mice")
    assert singular_of("octopus") == "octopus"
