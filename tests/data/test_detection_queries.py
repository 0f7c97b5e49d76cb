"""What a picture is asked: positives, verified negatives, pseudo-negatives, prompts, united boxes."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvit.boxes import iou
from mmvit.data.labels import LabelCounts
from mmvit.data.prompts import resolve_templates
from mmvit.data.query_sets import QuerySets
from mmvit.data.tiles import BoxAugment, flip, into_grid, merge

names = st.lists(st.sampled_from([f"n{i}" for i in range(30)]), max_size=12)
quick = settings(max_examples=150, deadline=None, database=None, derandomize=True)


def source(counts: dict[str, int]) -> LabelCounts:
    return LabelCounts(sorted(counts), np.array([counts[n] for n in sorted(counts)], float), frozenset())


@quick
@given(names, names, names, st.booleans(), st.integers(1, 40), st.integers(0, 30), st.integers(0, 99))
def test_query_sets(positives, negatives, unsure, exhaustive, most, least, seed):
    """Different labels; positives first; nothing doubtful as a negative; as many negatives as can be."""
    counts = source({f"n{i}": i + 1 for i in range(0, 30, 2)})
    sets = QuerySets(num_queries=most, min_negatives=least, templates="plain", forbid=["N4", "n9"])
    positives = [p for p in positives if p not in ("n4", "n9")]
    asked = sets.choose(positives, negatives, unsure, exhaustive, counts, random.Random(seed))
    unique = list(dict.fromkeys(positives))
    assert asked[: len(unique)] == unique[:most]
    assert len(set(asked)) == len(asked) <= most
    added = asked[len(unique) :]
    assert not set(added) & {*positives, *unsure, "n4", "n9"}
    verified = [n for n in dict.fromkeys(negatives) if n not in {*positives, *unsure, "n4", "n9"}]
    assert added[: len(verified)] == verified[: max(0, most - len(unique))]
    could = set(counts.names) - {*positives, *unsure, *verified, "n4", "n9"}
    goal = most - len(unique) if exhaustive else min(most - len(unique), max(least, len(verified)))
    assert len(added) == max(0, min(goal, len(verified) + len(could)))
    assert asked == sets.choose(positives, negatives, unsure, exhaustive, counts, random.Random(seed))


def test_pseudo_negatives_follow_the_frequency_of_labels():
    counts = source({"rare": 1, "common": 3, "frequent": 12})
    drawn = Counter(counts.draw(1, (), random.Random(i))[0] for i in range(4000))
    for name, share in (("rare", 1 / 16), ("common", 3 / 16), ("frequent", 12 / 16)):
        assert abs(drawn[name] / 4000 - share) < 0.03
    assert sorted(counts.draw(9, {"rare"}, random.Random(0))) == ["common", "frequent"]
    assert counts.draw(0, (), random.Random(0)) == []
    assert source({}).draw(5, (), random.Random(0)) == []


def test_prompts_are_the_bare_name_or_one_of_eighty():
    sets = QuerySets()
    assert len(set(sets.templates)) >= 80
    assert sets.templates[0] == "{}"
    assert sets.templates[1:] == resolve_templates("clip80")
    labels, rng = ["fox"] * 3000, random.Random(0)
    texts = Counter(sets.prompts(labels, frozenset(), rng))
    assert set(texts) == {t.replace("{}", "fox") for t in sets.templates}
    assert texts["fox"] < 100
    assert sets.prompts(["his left hand", "fox"], frozenset(["his left hand"]), rng)[0] == "his left hand"


def test_boxes_on_the_same_place_become_one_with_both_labels():
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 9.5], [50, 50, 60, 60], [0, 0, 10, 9.8], [20, 20, 30, 30]],
        dtype=torch.float64,
    )
    kept = Counter()
    for seed in range(40):
        merged, labels = merge(boxes, ["fox", "animal", "tree", "fox", "cat"], 0.9, random.Random(seed))
        assert sorted(map(sorted, labels)) == [["animal", "fox"], ["cat"], ["tree"]]
        assert all(any(torch.equal(row, b) for b in boxes) for row in merged)
        kept[merged[[set(names) == {"fox", "animal"} for names in labels].index(True)][3].item()] += 1
    assert set(kept) == {10.0, 9.5, 9.8}, "which one stays is drawn"
    merged, labels = merge(boxes, ["a"] * 5, 1.01, random.Random(0))
    assert len(merged) == 5
    empty, none = merge(torch.zeros(0, 4).double(), [], 0.9, random.Random(0))
    assert empty.shape == (0, 4)
    assert none == []


@quick
@given(st.lists(st.lists(st.floats(0, 50), min_size=4, max_size=4), max_size=12), st.integers(0, 9))
def test_no_two_boxes_overlap_after_merging(values, seed):
    boxes = torch.tensor([[x, y, x + w + 1, y + h + 1] for x, y, w, h in values]).double().reshape(-1, 4)
    labels = [f"l{i}" for i in range(len(boxes))]
    merged, names = merge(boxes, labels, 0.9, random.Random(seed))
    assert sorted(n for group in names for n in group) == sorted(labels)
    assert not (iou(merged, merged).fill_diagonal_(0) >= 0.9).any()


@quick
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 6), st.integers(0, 35))
def test_flip_and_mosaic_and_back(box, grid, place):
    box = torch.tensor(box, dtype=torch.float64)
    assert torch.allclose(flip(flip(box, 7.0), 7.0), box)
    row, column = divmod(place % (grid * grid), grid)
    inside = into_grid(box, grid, row, column)
    assert torch.allclose(inside * grid - torch.tensor([column, row, column, row]), box)
    assert inside.min() >= 0
    assert inside.max() <= 1


def test_mosaics_come_as_often_as_asked():
    augment = BoxAugment(mosaics=((1, 2.0), (2, 1.0), (5, 1.0)))
    drawn = Counter(augment.draw_grid(random.Random(i)) for i in range(4000))
    for grid, share in ((1, 0.5), (2, 0.25), (5, 0.25)):
        assert drawn[grid] / 4000 == pytest.approx(share, abs=0.03)


def test_drawing_sorts_only_what_it_needs_and_draws_the_same():
    names = [f"label {i:04d}" for i in range(500)]
    source = LabelCounts(names, np.arange(1.0, 501.0), frozenset())
    without = set(names[400::2]) | {"unknown"}
    for seed in range(20):
        uniform = np.random.default_rng(random.Random(seed).getrandbits(64)).random(500)
        order = np.argsort(-np.log1p(-uniform) / source.counts, kind="stable")
        expected = [names[i] for i in order if names[i] not in without]
        for number in (1, 50, 450, 600):
            assert source.draw(number, without, random.Random(seed)) == expected[:number]
    assert source.draw(0, (), random.Random(0)) == []
