import contextlib
import dataclasses
import io
import random
import struct
import zlib

import numpy as np
import open_clip.transform
import pytest
import torch
import torchvision.transforms as tv
from PIL import Image

from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError

SIZES = [(512, 512), (500, 375), (333, 512), (128, 128), (129, 700), (224, 224), (31, 57)]


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_squash_equals_pillow(picture, size):
    image = picture(*size)
    want = pixels(image.resize((64, 48), Image.Resampling.BICUBIC))
    assert torch.equal(ImagePreprocess(size=(48, 64))(image), want)


@pytest.mark.parametrize("size", SIZES)
def test_shortest_crop_equals_torchvision_and_open_clip(picture, size):
    image = picture(*size)
    got = ImagePreprocess(size=(96, 96), resize="shortest_crop")(image)
    sliver = max(size) > 4 * min(size)  # there the crop is resampled straight out of the picture
    reference = tv.Compose([tv.Resize(96, tv.InterpolationMode.BICUBIC), tv.CenterCrop(96)])(image)
    difference = (got.int() - pixels(reference).int()).abs()
    assert difference.max() <= (2 if sliver else 0)
    peer = open_clip.transform.image_transform(96, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    assert (got / 255 - peer(image)).abs().max() <= (2.01 / 255 if sliver else 1e-6)


def test_a_sliver_does_not_cost_a_giant(picture):
    image = Image.new("RGB", (2, 30_000), (9, 8, 7))
    got = ImagePreprocess(resize="shortest_crop")(image)  # resizing first would need 224 x 3,360,000 pixels
    assert got.unique().tolist() == [7, 8, 9]


def test_crop_fraction_keeps_the_centre():
    image = Image.new("RGB", (100, 100), (255, 0, 0))
    image.paste((0, 0, 255), (10, 10, 90, 90))
    got = ImagePreprocess(size=(40, 40), crop_fraction=0.75, interpolation="nearest")(image)
    assert (got[2] == 255).all()
    peer = tv.Compose([tv.Resize(53, tv.InterpolationMode.BICUBIC), tv.CenterCrop(40)])
    mine = ImagePreprocess(size=(40, 40), crop_fraction=0.75, resize="shortest_crop")(image)
    assert torch.equal(mine, pixels(peer(image)))


def test_pad_centres_the_whole_picture():
    got = ImagePreprocess(size=(10, 20), resize="pad", background=(1, 2, 3))(
        Image.new("RGB", (8, 8), (9, 9, 9))
    )
    assert (got[:, :, 5:15] == 9).all()
    for channel in range(3):
        assert (got[channel, :, :5] == channel + 1).all()
        assert (got[channel, :, 15:] == channel + 1).all()


def gray16(values: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """A 16-bit grey PNG, written by hand, that may claim another size."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", *(size or values.shape[::-1]), 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bits_are_scaled_not_clipped():
    got = ImagePreprocess(size=(1, 3))(gray16(np.array([[0, 32896, 65535]])))
    assert got[:, 0].tolist() == [[0, 128, 255]] * 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (4, 4), 255)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    elif mode == "I":
        image = Image.fromarray(np.full((4, 4), 65535, np.int32))
    else:
        image = (
            image.convert("RGB").convert(mode)
            if mode in ("CMYK", "YCbCr", "HSV", "LAB")
            else image.convert(mode)
        )
    got = ImagePreprocess(size=(2, 2))(image)
    assert got.shape == (3, 2, 2)
    assert got.min() >= 253


def test_jpeg_in_cmyk(image_bytes):
    data = image_bytes(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    got = ImagePreprocess(size=(4, 4))(data).float().mean((1, 2))
    assert got[0] > 240
    assert got[1:].max() < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background(image_bytes, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 4, 8))
    data = image_bytes(image.quantize(4) if mode == "P" else image.convert(mode))
    got = ImagePreprocess(size=(8, 8), background=(10, 20, 30))(data)
    assert got[:, 0, 7].tolist() == [10, 20, 30]
    assert (got[:, 0, 0].int() - 200).abs().max() <= 2


def test_transparent_colour_key(image_bytes):
    data = image_bytes(Image.new("RGB", (4, 4), (255, 0, 0)), transparency=(255, 0, 0))
    assert ImagePreprocess(size=(2, 2), background=(1, 2, 3))(data)[:, 0, 0].tolist() == [1, 2, 3]


def test_exif_orientation_is_applied(image_bytes):
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to be upright
    got = ImagePreprocess(size=(8, 8), interpolation="nearest")(image_bytes(image, "PNG", exif=exif))
    assert (got[0, :4] == 255).all()
    assert (got[2, 4:] == 255).all()


def test_first_frame_of_an_animation(image_bytes):
    frames = [Image.new("RGB", (6, 6), c) for c in ((255, 0, 0), (0, 255, 0))]
    data = image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert ImagePreprocess(size=(2, 2))(data)[:, 0, 0].tolist() == [255, 0, 0]


def test_one_pixel_and_wrong_extension(image_bytes, tmp_path):
    data = image_bytes(Image.new("RGB", (1, 1), (5, 6, 7)))
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(data)
    for source in (data, path, str(path), np.array([[[5, 6, 7]]], np.uint8)):
        assert ImagePreprocess(size=(3, 3))(source)[:, 1, 1].tolist() == [5, 6, 7]


def bomb() -> bytes:
    return gray16(np.zeros((1, 1)), size=(60_000, 60_000))


def damaged(picture, image_bytes) -> dict[str, bytes]:
    png, jpg = image_bytes(picture(64, 64)), image_bytes(picture(64, 64), "JPEG")
    return {
        "image-empty": b"",
        "image-unreadable": b"not a picture",
        "image-truncated": jpg[: len(jpg) // 2],
        "image-too-large": bomb(),
        "png-cut": png[: len(png) // 2],
    }


@pytest.mark.parametrize(
    "reason", ["image-empty", "image-unreadable", "image-truncated", "image-too-large", "png-cut"]
)
@pytest.mark.parametrize("train", [False, True])
def test_damaged_pictures_have_reasons(picture, image_bytes, reason, train):
    data = damaged(picture, image_bytes)[reason]
    preprocess = ImagePreprocess(size=(8, 8))
    with pytest.raises(BadSample) as bad:
        ImageAugment()(data, preprocess, random.Random(0)) if train else preprocess(data)
    assert bad.value.reason == ("image-truncated" if reason == "png-cut" else reason)


def test_max_pixels_is_checked_before_decoding(picture):
    with pytest.raises(BadSample, match="image-too-large"):
        ImagePreprocess(max_pixels=99)(picture(10, 10))
    ImagePreprocess(max_pixels=100)(picture(10, 10))


def test_any_bytes_give_a_picture_or_a_reason(picture, image_bytes):
    rng = random.Random(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        good = image_bytes(picture(24, 24), kind)
        for _ in range(40):
            data = bytearray(good)
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with contextlib.suppress(BadSample):
                assert ImagePreprocess(size=(4, 4))(bytes(data)).shape == (3, 4, 4)


def test_draft_changes_little_and_never_goes_below_the_size(picture, image_bytes):
    data = image_bytes(picture(512, 512), "JPEG", quality=95)
    exact, draft = ImagePreprocess(), ImagePreprocess(draft=True)
    assert (exact(data).float() - draft(data).float()).abs().mean() < 1.5
    small = image_bytes(picture(300, 300), "JPEG")
    assert torch.equal(exact(small), draft(small))


CHANGES = {
    "size": (224, 225), "resize": "pad", "interpolation": "bilinear", "crop_fraction": 0.9,
    "background": (0, 0, 0), "draft": True, "max_pixels": 5,
}  # fmt: skip


def test_fingerprint_changes_with_each_field():
    base = ImagePreprocess()
    assert set(CHANGES) == {f.name for f in dataclasses.fields(base)}
    prints = {dataclasses.replace(base, **{name: value}).fingerprint() for name, value in CHANGES.items()}
    assert len(prints | {base.fingerprint()}) == len(CHANGES) + 1
    assert ImagePreprocess.from_dict(base.to_dict()).fingerprint() == base.fingerprint()


def test_options_are_checked():
    for options in ({"resize": "sqash"}, {"interpolation": "cubic"}, {"crop_fraction": 0}, {"size": (3,)},
                    {"background": (0, 0, 256)}, {"resize": "pad", "crop_fraction": 0.5}):  # fmt: skip
        with pytest.raises(UserError):
            ImagePreprocess(**options)
    with pytest.raises(UserError, match="did you mean"):
        ImagePreprocess.from_dict({"interpolaton": "bicubic"})
    for options in ({"flip": 2}, {"background": "pink"}, {"crop_scale": (0.5, 2.0)}, {"crop_ratio": (2, 1)}):
        with pytest.raises(UserError):
            ImageAugment(**options)
    with pytest.raises(UserError, match="uint8"):
        ImagePreprocess()(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(UserError, match="cannot read"):
        ImagePreprocess()("missing.png")


def test_augment_is_a_function_of_its_generator(picture, image_bytes):
    image, preprocess = Image.new("RGBA", (64, 64), (0, 0, 0, 0)), ImagePreprocess(size=(16, 16))
    augment = ImageAugment(color=0.4, grayscale=0.2)
    views = [augment(image, preprocess, random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2]), "the background is a new colour for every draw"
    white = ImageAugment(background="white")(image, preprocess, random.Random(1))
    assert (white == 255).all()
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    flips = [ImageAugment(flip=p)(ramp, preprocess, random.Random(0)) for p in (0, 1)]
    assert torch.equal(flips[0], flips[1].flip(-1))


@pytest.mark.parametrize("size", [(100, 100), (300, 40), (7, 500)])
def test_crops_stay_in_range(size):
    augment, rng = ImageAugment(crop_scale=(0.2, 0.8)), random.Random(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = augment.draw_box(*size, rng)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        areas.append((right - left) * (bottom - top) / size[0] / size[1])
    if size == (100, 100):
        assert 0.18 < min(areas) < 0.25
        assert 0.75 < max(areas) < 0.82


def test_crop_distribution_equals_torchvision(picture):
    image, rng = picture(97, 61), random.Random(0)
    torch.manual_seed(0)
    ours = [ImageAugment(crop_scale=(0.3, 1.0)).draw_box(97, 61, rng) for _ in range(3000)]
    theirs = [tv.RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    mine = np.array([(t, left, b - t, r - left) for left, t, r, b in ours], float)
    peer = np.array([(t, left, h, w) for t, left, h, w in theirs], float)
    assert np.abs(mine.mean(0) - peer.mean(0)).max() < 1.0
    assert np.abs(mine.std(0) - peer.std(0)).max() < 1.0


def test_a_path_or_a_picture_or_bytes_are_the_same(picture, image_bytes, tmp_path):
    image = picture(50, 40)
    data = image_bytes(image)
    (tmp_path / "a.png").write_bytes(data)
    preprocess = ImagePreprocess(size=(16, 16))
    results = [
        preprocess(x)
        for x in (image, data, tmp_path / "a.png", np.asarray(image), io.BytesIO(data).getvalue())
    ]
    assert all(torch.equal(results[0], r) for r in results)
