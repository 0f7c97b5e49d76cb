"""What people hand in: files, names, boxes. Whatever cannot be used is refused in one line that says why."""

import io

import pytest
from PIL import Image

from mmvit.cli.demo.uploads import Limits, box_in, names_in, read_bytes, read_picture
from mmvit.errors import UserError

LIMITS = Limits(max_bytes=2000, max_pixels=10_000, max_names=5, max_letters=20)


def encoded(picture, kind="PNG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def test_names_are_split_cleaned_and_each_kept_once():
    assert names_in(" red  fox,cup\n\ncup , Fox,\r\n", LIMITS) == ["red fox", "cup", "Fox"]
    assert names_in("木、狐, 🦊", LIMITS) == ["木、狐", "🦊"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "at least one name"), (" ,\n, ", "at least one name"), (None, "at least one name"),
     ("a,b,c,d,e,f", "6 names were written, at most 5"), ("x" * 21, "has 21 letters, at most 20")],
)  # fmt: skip
def test_names_that_cannot_be_used(text, words):
    with pytest.raises(UserError, match=words):
        names_in(text, LIMITS)


def test_boxes_are_sorted_and_cut():
    assert box_in((None,) * 4, (100, 50)) is None
    assert box_in((30, 40, 10, 5), (100, 50)) == (10, 5, 30, 40)
    assert box_in((-5, -5, 500, 500), (100, 50)) == (0, 0, 100, 50)


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        ((200, 5, 300, 20), "less than a pixel"),
        ((5, 5, 5, 20), "less than a pixel"),
        ((1, None, 3, 4), "four numbers"),
        ((1, 2, float("nan"), 4), "not finite"),
        ((0, 0, 1e400, 4), "not finite"),
    ],
)
def test_boxes_that_cannot_be_used(corners, words):
    with pytest.raises(UserError, match=words):
        box_in(corners, (100, 50))


def test_a_picture_is_upright_and_turned_only_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif), LIMITS)
    assert picture.pixels.size == (20, 40)
    assert picture.pixels.getexif().get(0x0112) is None


def test_files_that_cannot_be_used(tmp_path):
    whole = encoded(Image.effect_noise((90, 90), 80), "JPEG")
    cases = [
        (b"", "empty"),
        (b"words, not pixels", "not a picture that can be read"),
        (whole[: len(whole) // 2], "its end is missing"),
        (encoded(Image.new("L", (101, 100))), "101 x 100 pixels, at most 10000"),
    ]
    for data, words in cases:
        with pytest.raises(UserError, match=words):
            read_picture(data, LIMITS)
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(2001))
    with pytest.raises(UserError, match="heavy.png has 2,001 bytes, at most 2,000 bytes"):
        read_bytes(heavy, LIMITS)
    with pytest.raises(UserError, match="cannot read no.png: No such file"):
        read_bytes(tmp_path / "no.png", LIMITS)
