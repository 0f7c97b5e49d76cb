"""The choice of held-out words and the families of samples."""

import hashlib

import pytest
from corpus.splits import HELD_OUT_SHARE, Named, choose_held_out, families, fraction_of, split_by_family


def concepts():
    animals = [Named(f"animal{c}{d}", "animals-nature", "animal-mammal") for c in "abcdefgh" for d in "uvwxy"]
    faces = [Named(f"smile{c}", "smileys-emotion", "face-smiling") for c in "abcdefgh"]
    return animals + faces


def test_a_fixed_share_of_object_labels_is_held_out_by_the_hash_of_the_label():
    held, labels = choose_held_out(concepts())
    expected = sorted(
        (c.label for c in concepts()[:40]), key=lambda label: hashlib.sha256(label.encode()).hexdigest()
    )[: round(HELD_OUT_SHARE * 40)]
    assert labels == sorted(expected)
    assert held.words == sorted(expected)


def test_the_order_of_the_concepts_does_not_matter():
    assert choose_held_out(concepts())[1] == choose_held_out(concepts()[::-1])[1]


@pytest.mark.parametrize(
    ("label", "word"),
    [("black teapot", "teapot"), ("hot teapot with lid", "lid"), ("teapots", "teapot")],
)
def test_the_rarest_telling_word_stands_for_a_label(label, word):
    others = [Named("iron teapot stand", "symbols", "other"), Named("iron", "symbols", "other", ("stand",))]
    monkey = pytest.MonkeyPatch()
    monkey.setattr("corpus.splits.HELD_OUT_SHARE", 1.0)
    held, labels = choose_held_out([Named(label, "objects", "household"), *others])
    monkey.undo()
    assert labels == [label]
    assert word in held.words


def test_words_that_name_a_class_are_not_telling(monkeypatch):
    monkeypatch.setattr("corpus.splits.HELD_OUT_SHARE", 1.0)
    rows = [
        Named("blue bird", "animals-nature", "animal-bird"),
        Named("dodo", "animals-nature", "animal-bird"),
    ]
    assert choose_held_out(rows)[1] == ["dodo"]


def test_two_words_written_as_one_are_a_mention(monkeypatch):
    monkeypatch.setattr("corpus.splits.HELD_OUT_SHARE", 1.0)
    held, _ = choose_held_out([Named("light bulb", "objects", "light-video")])
    assert held.mentioned(["a Lightbulb"])
    assert held.mentioned(["a light"]) is None


def test_members_that_share_a_trait_through_others_are_one_family():
    names = families([["a"], ["a", "b"], ["b"], ["c"], ["d", "c"]])
    assert names[0] == names[1] == names[2]
    assert names[3] == names[4]
    assert names[0] != names[3]


def test_family_names_do_not_depend_on_the_order_of_members():
    members = [["s:1", "t:x"], ["t:x", "u:9"], ["v:4"], ["u:9", "w:2"]]
    assert sorted(families(members)) == sorted(families(members[::-1]))


def test_hash_fractions_are_spread_evenly_and_decide_the_split():
    values = [fraction_of(f"name {i}") for i in range(4000)]
    assert min(values) >= 0
    assert max(values) < 1
    assert sum(values) / 4000 == pytest.approx(0.5, abs=0.02)
    splits = [split_by_family(f"f{i}", val=0.1, test=0.2) for i in range(4000)]
    assert splits.count("test_style") / 4000 == pytest.approx(0.2, abs=0.025)
    assert splits.count("val") / 4000 == pytest.approx(0.1, abs=0.02)
