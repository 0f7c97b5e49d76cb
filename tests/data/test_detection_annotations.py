import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvit.data.annotations import canonical, check_box, read_annotations, usable_objects
from mmvit.data.pixels import BadSample

INF, NAN = float("inf"), float("nan")


def read(meta, size=(20, 30)):
    noted = []
    return read_annotations(meta, size, noted.append), [bad.reason for bad in noted]


def thing(box, label="fox", **more):
    return {"label": label, "box": box, **more}


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("Red  Fox", "red fox"),
        ("alarm_clock", "alarm clock"),
        ("bow_(weapon)", "bow weapon"),
        ("T-shirt", "t-shirt"),
        (" crème brûlée ", "creme brulee"),
        ("Лиса  рыжая", "лиса рыжая"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_labels_are_compared_in_one_form(name, want):
    assert canonical(name) == want
    assert canonical(canonical(name)) == want


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([40, 2, 50, 5], "box-outside"),
        ([-9, -9, -1, -1], "box-outside"),
        ([30, 0, 40, 10], "box-outside"),
        ([3, 3, 3, 9], "box-empty"),
        ([9, 3, 3, 9], "box-empty"),
        ([NAN, 0, 4, 4], "box-not-finite"),
        ([0, 0, INF, 4], "box-not-finite"),
        ([0, 0, 10**400, 4], "box-not-finite"),
        ([0, 0, 4], "box-unreadable"),
        ([0, 0, 4, "4"], "box-unreadable"),
        ([0, 0, 4, True], "box-unreadable"),
        ("0 0 4 4", "box-unreadable"),
        (None, "box-unreadable"),
    ],
)
def test_a_bad_box_is_left_out_and_the_rest_stays(box, reason):
    found, noted = read({"objects": [thing(box, "dog"), thing([1, 2, 3, 4])]})
    assert noted == [reason]
    assert found.boxes.tolist() == [[1, 2, 3, 4]]
    assert found.labels == ["fox"]
    assert found.unsure == ["dog"], "the object is there all the same: it cannot be a negative"


def test_boxes_are_cut_at_the_border_and_crowds_left_out():
    meta = {
        "objects": [thing([-5, 4, 99, 99]), thing([1, 1, 2, 2], "Herd", crowd=True), thing([0, 0, 1, 1], 7)]
    }
    found, noted = read(meta)
    assert found.boxes.tolist() == [[0, 4, 30, 20]]
    assert noted == ["box-crowd", "box-unreadable"]
    assert found.unsure == ["herd"]


def test_what_the_annotators_looked_for():
    meta = {
        "objects": [thing([0, 0, 1, 1], "the left_hand", promptable=False)],
        "negatives": ["Cat"],
        "not_exhaustive": ["Dog"],
        "exhaustive": True,
    }
    found, _ = read(meta)
    assert (found.negatives, found.unsure, found.fixed) == (["cat"], ["dog"], ["the left hand"])
    assert found.exhaustive
    empty, noted = read({"objects": []})
    assert empty.boxes.shape == (0, 4)
    assert not noted
    assert not empty.exhaustive


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({}, "boxes-missing"),
        ({"objects": "fox"}, "boxes-unreadable"),
        ({"objects": ["fox"]}, "boxes-unreadable"),
        ({"objects": [], "negatives": "cat"}, "boxes-unreadable"),
        ({"objects": [], "width": 20, "height": 30}, "boxes-frame"),
        ({"objects": [], "width": 30}, "boxes-frame"),
        ({"objects": [], "width": "30", "height": 20}, "boxes-frame"),
        ({"objects": [], "width": NAN, "height": 20}, "boxes-frame"),
    ],
)
def test_json_that_says_nothing_usable_is_a_bad_sample(meta, reason):
    with pytest.raises(BadSample) as bad:
        read(meta)
    assert bad.value.reason == reason
    if "negatives" not in meta:
        with pytest.raises(BadSample):
            usable_objects(meta, (20, 30), list().append)


def test_boxes_follow_a_picture_that_was_resized_since():
    meta = {"width": 60, "height": 41, "objects": [thing([6, 4.1, 60, 41], area=100, id=5)]}
    found, noted = read(meta)
    assert not noted
    assert torch.allclose(found.boxes, torch.tensor([[3, 2, 30, 20]], dtype=torch.float64))
    again = usable_objects(meta, (20, 30), noted.append)
    assert (again["width"], again["height"]) == (30, 20)
    (kept,) = again["objects"]
    assert kept["box"] == pytest.approx([3, 2, 30, 20])
    assert kept["area"] == pytest.approx(100 * 0.5 * 20 / 41)
    assert kept["id"] == 5


def test_evaluation_keeps_boxes_as_they_were_written():
    objects = [thing([-3, 0, 10, 10]), thing([NAN, 0, 1, 1]), thing([0, 0, 9, 9], crowd=True)]
    noted = []
    again = usable_objects({"objects": objects, "extra": 1}, (20, 30), noted.append)
    assert again["objects"] == [objects[0], objects[2]], "protocols know crowds, and do not cut boxes"
    assert [bad.reason for bad in noted] == ["box-not-finite"]
    assert (again["width"], again["height"], again["extra"]) == (30, 20, 1)


numbers = st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=3), st.booleans())


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.one_of(st.lists(numbers, max_size=6), numbers), st.integers(1, 5000), st.integers(1, 5000))
def test_no_box_is_ever_half_checked(values, width, height):
    """Whatever the JSON holds: a box inside the picture with an area, or one of four reasons."""
    reason, box = "", []
    try:
        box = check_box(values, (height, width), "here")
    except BadSample as bad:
        reason = bad.reason
    if not box:
        assert reason in ("box-unreadable", "box-not-finite", "box-empty", "box-outside")
        return
    x0, y0, x1, y1 = box
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert json.dumps([x0, y0, x1, y1]).isascii()
