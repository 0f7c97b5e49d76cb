"""Boxes and masks of scenes are exactly what can be seen."""

import numpy as np
from corpus.cutouts import box_of, is_cut_out
from corpus.raster import png
from corpus.scenes import Placed, compose
from PIL import Image

GROUND = np.full((64, 64, 3), 200, np.uint8)


def square(side, x, y, colour=(255, 0, 0)):
    rgba = np.zeros((side, side, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = colour, 255
    return Placed(rgba, x, y)


def test_a_box_ends_one_past_the_last_pixel():
    mask = np.zeros((8, 8), bool)
    assert box_of(mask) is None
    mask[2:5, 1:7] = True
    assert box_of(mask) == [1, 2, 7, 5]


def test_the_later_object_covers_the_earlier_in_picture_and_mask():
    picture, mask, kept, share = compose(GROUND, [square(20, 10, 10), square(20, 20, 10, (0, 0, 255))])
    assert kept == [0, 1]
    assert box_of(mask == 1) == [10, 10, 20, 30]
    assert box_of(mask == 2) == [20, 10, 40, 30]
    assert share == [0.5, 1.0]
    assert tuple(picture[20, 30]) == (0, 0, 255)
    assert tuple(picture[20, 15]) == (255, 0, 0)
    assert np.array_equal(picture[mask == 0], GROUND[mask == 0])


def test_an_object_that_is_mostly_hidden_is_drawn_nowhere():
    picture, mask, kept, share = compose(GROUND, [square(20, 10, 10), square(20, 13, 12, (0, 0, 255))])
    assert kept == [1]
    assert share == [1.0]
    assert set(np.unique(mask)) == {0, 1}
    assert np.array_equal(picture[10:12], GROUND[10:12])


def test_hiding_is_judged_without_the_objects_that_were_dropped():
    # The middle one is hidden by the last; without it the first is free again.
    _, mask, kept, share = compose(GROUND, [square(20, 0, 0), square(20, 6, 0), square(20, 8, 0)])
    assert kept == [0, 2]
    assert share == [0.4, 1.0]
    assert [int((mask == k).sum()) for k in (1, 2)] == [160, 400]


def test_pixels_outside_the_frame_count_as_hidden():
    _, mask, kept, share = compose(GROUND, [square(20, -10, 30), square(20, 60, 60), square(6, 30, 30)])
    assert kept == [0]  # the second shows 16 of 400 pixels, the third only 36
    assert share == [0.5]
    assert box_of(mask == 1) == [0, 30, 10, 50]


def test_edges_are_softened_inside_the_object():
    picture, mask, _, _ = compose(GROUND, [square(20, 10, 10, (0, 0, 0))])
    edge, middle = picture[20, 10, 0], picture[20, 20, 0]
    assert middle == 0
    assert 0 < edge < 200
    assert np.array_equal(picture[mask == 0], GROUND[mask == 0])


def test_only_shapes_are_cut_outs():
    full = Image.new("RGBA", (64, 64), (9, 9, 9, 255))
    assert not is_cut_out(png(full))
    disc = np.zeros((64, 64, 4), np.uint8)
    rows, columns = np.ogrid[:64, :64]
    disc[(rows - 32) ** 2 + (columns - 32) ** 2 < 900] = 255
    assert is_cut_out(png(Image.fromarray(disc)))
    assert not is_cut_out(png(Image.fromarray(disc).resize((20, 20))))
