"""`VideoPreprocess` and `ClipAugment`: which frames, short videos, crops, one view for a whole clip."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mmvit.data.image import ImagePreprocess
from mmvit.data.pixels import BadSample
from mmvit.data.video import ClipAugment, VideoPreprocess, spread
from mmvit.errors import UserError

SMALL = VideoPreprocess(size=(16, 16), frames=8, fps=4)


def grey(values) -> np.ndarray:
    """(T,8,8,3) uint8, frame i of one grey."""
    return np.broadcast_to(np.asarray(values, np.uint8)[:, None, None, None], (len(values), 8, 8, 3))


def levels(clip: torch.Tensor) -> list[int]:
    return [round(v) for v in clip.float().mean(dim=(0, 2, 3)).tolist()]


def test_frames_of_an_array():
    clip = SMALL((grey(range(40)), 10.0), 0.5)
    assert clip.shape == SMALL.shape == (3, 8, 16, 16)
    assert clip.dtype == torch.uint8
    assert levels(clip) == [5, 7, 10, 12, 15, 17, 20, 22]  # at or before 0.5 + k / 4
    assert levels(SMALL((grey(range(40)), 10.0))) == levels(SMALL((grey(range(40)), 10.0), 1.0))  # the middle
    assert levels(SMALL((grey(range(4)), 2.0), 0.0)) == [0, 0, 1, 1, 2, 2, 3, 3]  # slower than asked for


def test_short_videos():
    assert levels(SMALL((grey([10, 20, 30]), 4.0))) == [10, 20, 30, 30, 30, 30, 30, 30]
    loop = VideoPreprocess(size=(16, 16), frames=8, fps=4, short="loop")
    assert levels(loop((grey([10, 20, 30]), 4.0))) == [10, 20, 30, 10, 20, 30, 10, 20]
    assert levels(SMALL((grey([7]), 1.0))) == [7] * 8  # a still
    loop = VideoPreprocess(size=(16, 16), frames=20, fps=10, short="loop")
    assert levels(loop((grey([10, 20]), 10.0))) == [10, 20] * 10  # also where k / fps is not exact


def test_every_frame_is_treated_as_a_picture(picture):
    frames = [picture(40, 24, seed) for seed in range(4)]
    for options in (
        {"resize": "shortest_crop"},
        {"resize": "squash"},
        {"resize": "pad"},
        {"crop_fraction": 0.8},
    ):
        video = VideoPreprocess(size=(16, 16), frames=4, fps=4, **options)
        clip = video((frames, 4.0), 0.0)
        image = ImagePreprocess(size=(16, 16), **{"resize": "shortest_crop", **options})
        for i, frame in enumerate(frames):
            assert torch.equal(clip[:, i], image(frame))


def test_windows_and_crops():
    wide = np.zeros((40, 8, 24, 3), np.uint8)
    wide[:, :, 16:] = 255  # the right third is white
    preprocess = VideoPreprocess(size=(8, 8), frames=2, fps=10, interpolation="nearest")
    views = preprocess.views((wide, 10.0), windows=4, crops=3)
    assert views.shape == (12, 3, 2, 8, 8)
    assert (
        views.float().mean(dim=(1, 2, 3, 4)).tolist() == [0, 0, 255] * 4
    )  # left, centre, right of each window
    ramp = VideoPreprocess(size=(8, 8), frames=2, fps=10).views((grey(range(42)), 10.0), windows=5)
    assert [levels(v)[0] for v in ramp] == [0, 10, 20, 30, 40]
    assert spread(10, 2, 1) == [4]
    assert spread(1, 2, 3) == [0, 0, 0]
    squash = VideoPreprocess(size=(8, 8), frames=2, fps=10, resize="squash")
    with pytest.raises(UserError, match="need resize='shortest_crop'"):
        squash.views((wide, 10.0), windows=1, crops=3)


def test_crops_of_a_sliver_compute_no_more_than_they_keep(picture):
    sliver = picture(16_000, 2, 0)  # resized as a whole it would have a gigabyte
    preprocess = VideoPreprocess(size=(128, 128), frames=1, fps=10)
    left, middle, right = preprocess.views(([sliver], 10.0), windows=1, crops=3)
    assert torch.equal(middle, preprocess(([sliver], 10.0)))
    assert torch.equal(left, preprocess(([sliver], 10.0), crop=0.0))
    assert not torch.equal(left, right)


def test_one_view_for_the_whole_clip():
    rng = np.random.default_rng(0)
    still = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    augment = ClipAugment()
    seen = []
    for seed in range(6):
        clip = SMALL(([still] * 8, 4.0), augment=augment, rng=random.Random(seed))
        assert clip.shape == SMALL.shape
        assert (clip == clip[:, :1]).all()  # a still stays one, whatever is drawn
        assert torch.equal(clip, SMALL(([still] * 8, 4.0), augment=augment, rng=random.Random(seed)))
        seen.append(clip)
    assert not torch.equal(seen[0], seen[1])


def test_flip_and_colours():
    half = np.zeros((8, 8, 8, 3), np.uint8)
    half[:, :, :4] = (200, 40, 40)
    plain = SMALL((half, 4.0))
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    off = ClipAugment(**whole, flip=0, brightness=0, contrast=0, saturation=0, hue=0)
    assert torch.equal(SMALL((half, 4.0), augment=off, rng=random.Random(0)), plain)
    mirrored = ClipAugment(**whole, flip=1, color=0)
    assert torch.equal(SMALL((half, 4.0), augment=mirrored, rng=random.Random(0)), plain.flip(3))
    grey_before = (plain.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None, None]).sum(0)
    for options in ({"saturation": 0.4}, {"hue": 0.2}):  # neither touches brightness where nothing is clipped
        names = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, **options}
        turned = SMALL(
            (half, 4.0), augment=ClipAugment(**whole, flip=0, **names), rng=random.Random(3)
        ).float()
        assert not torch.equal(turned, plain.float())
        grey_after = (turned * torch.tensor([0.299, 0.587, 0.114])[:, None, None, None]).sum(0)
        assert (grey_after - grey_before).abs().max() < 4
    for seed in range(5):
        brighter = ClipAugment(**whole, flip=0, contrast=0, saturation=0, hue=0)
        moved = SMALL((grey([100] * 8), 4.0), augment=brighter, rng=random.Random(seed)).float() - 100
        assert moved.std() == 0
        assert 0 < moved.abs().max() <= 32
    with pytest.raises(UserError, match="augment.hue=2"):
        ClipAugment(hue=2)


def test_members_that_are_frames(image_bytes, picture):
    names = {f"{i:04d}.png": image_bytes(Image.new("RGB", (8, 8), (i, i, i))) for i in range(12)}
    raw = {"__key__": b"k", "txt": b"x", **dict(reversed(names.items()))}
    with SMALL.open_members(raw, {"fps": 4}) as frames:
        assert frames.seconds == 3
        assert levels(SMALL.window(frames, 0.25)) == list(range(1, 9))
    for fps in (0, None, "8", float("nan"), -1):
        with pytest.raises(BadSample, match="video-fps"):
            SMALL.open_members(raw, {"fps": fps})
    with pytest.raises(BadSample, match="video-missing"):
        SMALL.open_members({"__key__": b"k", "png": b""}, {})


def test_wrong_options():
    for options, message in [
        ({"frames": 0}, "must be above 0"),
        ({"fps": 0}, "must be above 0"),
        ({"short": "stretch"}, "short='stretch'"),
        ({"resize": "squish"}, "did you mean squash"),
        ({"size": (0, 8)}, "height, width"),
    ]:
        with pytest.raises(UserError, match=message):
            VideoPreprocess(**options)
    with pytest.raises(UserError, match="bytes, a path, or"):
        SMALL(grey([1]))
