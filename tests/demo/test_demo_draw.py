"""Boxes on pictures: at their places, in colours that differ, with labels that can be read."""

import itertools

import pytest
import torch
from PIL import Image, ImageChops

from mmvit.cli.demo import draw as module
from mmvit.cli.demo.draw import color_of, draw, ink_on, label_names
from mmvit.types import Detections


def found(*boxes, names=None):
    """Detections with falling scores; box i is of query i, modulo the names."""
    n = len(boxes)
    query = names or [f"thing {i}" for i in range(n)]
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(n, 4)
    return Detections(rows, torch.linspace(0.9, 0.1, n), torch.arange(n) % max(1, len(query)), query)


def contrast(a, b):
    low, high = sorted((module._luminance(a), module._luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture
def placed(monkeypatch):
    """The rectangles of the labels of every picture that is drawn."""
    spots = []
    original = module._label
    monkeypatch.setattr(
        module, "_label", lambda pen, spot, *rest: (spots.append(spot), original(pen, spot, *rest))
    )
    return spots


@pytest.mark.parametrize("background", ["white", "black", (230, 25, 75), (60, 180, 75)])
def test_a_box_is_drawn_at_its_place_on_any_background(background):
    picture = Image.new("RGB", (640, 480), background)
    before = picture.copy()
    out = draw(picture, found([100, 200, 300, 400]))
    assert picture.tobytes() == before.tobytes()
    left, top, right, bottom = ImageChops.difference(
        out.crop((0, 200, 640, 480)), before.crop((0, 200, 640, 480))
    ).getbbox()
    assert (left, right, bottom + 200) == pytest.approx((100, 300, 400), abs=1)
    colors = {out.getpixel((x, 300)) for x in range(97, 110)} - {before.getpixel((0, 0))}
    assert max(contrast(color, before.getpixel((0, 0))) for color in colors) > 3
    assert out.getpixel((200, 350)) == before.getpixel((0, 0))  # the inside stays as it was


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (64, 300), (640, 480), (4000, 3000), (5000, 1), (1, 5000)])
@pytest.mark.parametrize("name", ["a", "fox", "a name that is very long " * 20, "fuchs\nund\tHase"])
def test_labels_stay_inside_whatever_the_size(size, name, placed):
    w, h = size
    out = draw(
        Image.new("RGB", size, "gray"),
        found([0, 0, w, h], [-9, -9, 5, 5], [w - 1, h - 1, w + 50, h + 50], names=[name]),
        at_most=1200,
    )
    assert placed
    for x0, y0, x1, y1 in placed:
        assert 0 <= x0 < x1 <= out.width
        assert 0 <= y0 < y1 <= out.height
    assert max(out.size) <= 1200
    assert max(out.size) >= 512


def test_boxes_are_scaled_with_the_picture():
    out = draw(
        Image.new("RGB", (32, 32), "white"), found([8, 8, 24, 24], names=["x"]), at_least=512, scores=False
    )
    assert out.size == (512, 512)
    lower = out.crop((0, 200, 512, 512))
    left, _, right, bottom = ImageChops.difference(lower, Image.new("RGB", lower.size, "white")).getbbox()
    assert (left, right, bottom + 200) == pytest.approx((128, 384, 384), abs=1)


def test_labels_keep_clear_of_each_other(placed):
    draw(Image.new("RGB", (640, 480)), found(*[[200, 150, 420, 330]] * 4))
    for a, b in itertools.combinations(placed, 2):
        assert module._overlap(a, b) == 0


def test_boxes_that_are_no_boxes_do_no_harm(placed):
    nan, inf = float("nan"), float("inf")
    picture = Image.new("RGB", (600, 600), "white")
    draw(
        picture,
        found([nan, 0, 10, 10], [0, 0, inf, 10], [5, 5, 5, 5], [90, 90, 20, 20], [900, 900, 990, 990]),
    )
    assert len(placed) == 3
    nothing = draw(picture, found())
    assert nothing.tobytes() == picture.tobytes()


def test_three_hundred_boxes(placed):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 4, generator=generator) * 500
    boxes = torch.cat(
        [torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])], 1
    )
    draw(Image.new("RGB", (600, 500)), found(*boxes.tolist()))
    assert len(placed) == 300


def test_rotated_and_transparent_pictures_are_drawn_as_they_are_searched():
    picture = Image.new("RGBA", (600, 520), (0, 0, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.info["exif"] = exif.tobytes()
    out = draw(picture, found())
    assert out.size == (520, 600)
    assert out.getpixel((5, 5)) == (255, 255, 255)


def test_colours_differ_and_ink_reads_on_them():
    first = [color_of(i) for i in range(16)]
    apart = [
        sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5
        for x, y in itertools.combinations(first, 2)
    ]
    assert min(apart) > 40
    assert len({color_of(i) for i in range(300)}) > 250
    assert min(contrast(color_of(i), ink_on(color_of(i))) for i in range(300)) >= 4.5


def test_equal_names_have_one_colour_and_pictures_get_numbers():
    assert label_names(["fox ", " red\n fox", "", Image.new("L", (1, 1))]) == [
        "fox",
        "red fox",
        "query 3",
        "query 4",
    ]
    with pytest.raises(ValueError, match="2 names for 1 queries"):
        label_names(["fox"], ["a", "b"])
    twice = draw(
        Image.new("RGB", (600, 600)), found([50, 50, 250, 250], [300, 300, 500, 500], names=["fox", "fox"])
    )
    one = draw(Image.new("RGB", (600, 600)), found([50, 50, 250, 250], [300, 300, 500, 500], names=["fox"]))
    assert twice.tobytes() == one.tobytes()
