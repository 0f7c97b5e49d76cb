"""Where a picture lies in its tensor, for every way of resizing: a box goes there and comes back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmvit.data.image import ImagePreprocess
from mmvit.errors import UserError

MODES = ("squash", "shortest_crop", "pad", "pad_corner")
quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def found(pixels: torch.Tensor) -> list[float]:
    """xyxy of what is brighter than half, in pixels of the tensor."""
    bright = pixels[0] > 127
    rows, columns = bright.any(1).nonzero().flatten(), bright.any(0).nonzero().flatten()
    return [float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1]


@quick
@given(
    st.sampled_from(MODES), st.integers(8, 300), st.integers(8, 300), st.integers(16, 90),
    st.integers(16, 90), st.lists(st.floats(0, 1), min_size=4, max_size=4),
)  # fmt: skip
def test_a_box_is_where_the_placement_says(mode, w, h, goal_w, goal_h, at):
    """Drawn into the picture and looked for in the tensor: every edge to within half a pixel of it."""
    x0, y0 = int(at[0] * (w - 4)), int(at[1] * (h - 4))
    x1, y1 = x0 + 4 + int(at[2] * (w - 4 - x0)), y0 + 4 + int(at[3] * (h - 4 - y0))
    picture = Image.new("RGB", (w, h))
    picture.paste((255, 255, 255), (x0, y0, x1, y1))
    preprocess = ImagePreprocess(size=(goal_h, goal_w), resize=mode, background=(0, 0, 0))
    placement = preprocess.placement(h, w)
    box = torch.tensor([x0, y0, x1, y1], dtype=torch.float64)
    fractions = placement.to_fractions(box)
    assert torch.allclose(placement.to_pixels(fractions), box, atol=1e-6)
    want = fractions.clamp(0, 1) * torch.tensor([goal_w, goal_h] * 2)
    if (want[2:] - want[:2]).min() < 5:
        return  # too thin to be seen at half brightness
    got = torch.tensor(found(preprocess(picture)), dtype=torch.float64)
    slack = 0.51 if mode != "shortest_crop" or max(w, h) <= 4 * min(w, h) else 1.0
    assert (got - want).abs().max() <= slack, (got, want)


@quick
@given(
    st.sampled_from(MODES),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.integers(1, 700),
    st.integers(1, 700),
)
def test_the_region_is_the_part_that_the_picture_covers(mode, w, h, goal_w, goal_h):
    preprocess = ImagePreprocess(size=(goal_h, goal_w), resize=mode)
    placement = preprocess.placement(h, w)
    x0, y0, x1, y1 = placement.region
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1
    if mode in ("squash", "shortest_crop"):
        assert placement.region == (0, 0, 1, 1)
    if mode == "pad_corner":
        assert placement.scale_x == placement.scale_y == min(goal_h / h, goal_w / w)
        assert max(x1, y1) == pytest.approx(1)
        assert (x0, y0) == (0, 0)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (37, 91), (5, 3), (640, 480), (64, 64), (3, 50)])
@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_pad_corner_equals_padding_first(picture, size, filter_):
    """Known answer: the picture on a square canvas, resized with it by Pillow."""
    image, side = picture(*size), max(size)
    canvas = Image.new("RGB", (side, side), (128, 20, 60))
    canvas.paste(image)
    want = np.array(canvas.resize((96, 96), Image.Resampling[filter_.upper()]), dtype=int)
    preprocess = ImagePreprocess(
        size=(96, 96), resize="pad_corner", background=(128, 20, 60), interpolation=filter_
    )
    got = preprocess(image).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize("size", [(1, 5000), (20_000, 1), (1, 1), (2, 1), (3_000_000, 1)])
def test_slivers_are_seen_and_cost_nothing(size):
    preprocess = ImagePreprocess(size=(64, 96), resize="pad_corner", background=(0, 0, 0))
    got = preprocess(Image.new("RGB", size, (255, 255, 255)))
    placement = preprocess.placement(size[1], size[0])
    x1, y1 = placement.region[2] * 96, placement.region[3] * 64
    covered = (got[0] > 127).sum()
    assert covered == pytest.approx(max(1, x1) * max(1, y1), rel=0.05), "at least one pixel of it, no more"
    box = torch.tensor([0.0, 0.0, size[0], size[1]], dtype=torch.float64)
    assert torch.isfinite(placement.to_fractions(box)).all()
    assert torch.allclose(placement.to_pixels(placement.to_fractions(box)), box)


def test_old_fingerprints_and_errors_stay():
    assert (
        ImagePreprocess().fingerprint()
        == ImagePreprocess.from_dict(ImagePreprocess().to_dict()).fingerprint()
    )
    assert ImagePreprocess().to_dict()["resize"] == "squash"
    assert len({ImagePreprocess(resize=mode).fingerprint() for mode in MODES}) == 4
    with pytest.raises(UserError, match="crop_fraction must be 1 with resize='pad_corner'"):
        ImagePreprocess(resize="pad_corner", crop_fraction=0.9)
    with pytest.raises(UserError, match="did you mean pad_corner"):
        ImagePreprocess(resize="pad_cornr")


def test_exif_and_draft_do_not_move_the_frame(image_bytes):
    """A JPEG that lies on its side and is decoded at an eighth: placement takes the upright full size."""
    picture = Image.new("RGB", (803, 402))
    picture.paste((255, 255, 255), (402, 0, 803, 402))
    exif = Image.Exif()
    exif[0x0112] = 6  # upright by a quarter turn clockwise: 402 x 803, the bright half at the bottom
    preprocess = ImagePreprocess(size=(40, 40), resize="pad_corner", background=(0, 0, 0), draft=True)
    got = found(preprocess(image_bytes(picture, "JPEG", exif=exif, quality=95)))
    placement = preprocess.placement(803, 402)
    want = placement.to_fractions(torch.tensor([0.0, 402, 402, 803])) * 40
    assert math.dist(got, want.tolist()) < 0.8
