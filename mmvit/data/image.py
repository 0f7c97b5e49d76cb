"""Picture -> (3,H,W) uint8: the deterministic `ImagePreprocess` and the random `ImageAugment` of training.

Pixels stay 8-bit until the model normalises them on its own device.
Source: the resize rules of torchvision's Resize/CenterCrop and open_clip's squash/shortest modes.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmvit.boxes import Placement
from mmvit.data.pixels import Color, as_image, load_rgb
from mmvit.errors import UserError, nearest

WHITE: Color = (255, 255, 255)
_MODES = ("squash", "shortest_crop", "pad", "pad_corner")
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


def _choice(option: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise UserError(f"{option}={value!r} is not valid: {nearest(str(value), valid)}")


@dataclass(frozen=True, kw_only=True)
class ImagePreprocess:
    """What happens to a picture before a tower sees it; the same for training caches, evaluation and the API.

    Attributes:
        size: (height, width) of the result in pixels.
        resize: "squash" (both sides to size, aspect ratio lost), "shortest_crop" (shorter side to size,
            centre crop), "pad" (longer side to size, `background` around) or "pad_corner" (the whole picture
            at the top left, one scale for both axes that is not rounded, `background` right and below).
        interpolation: bicubic | bilinear | nearest; Pillow's antialiased filters.
        crop_fraction: the centre part that is kept, 0 < f <= 1: resizing aims at floor(size / f).
        background: RGB colour behind transparency and padding, 0..255.
        draft: let the JPEG decoder deliver 1/2, 1/4 or 1/8 size where that is still at least `size`; about
            twice as fast on pictures of 512 pixels and more, pixels differ slightly from an exact decode.
        max_pixels: larger pictures are refused before they are decoded.
    """

    size: tuple[int, int] = (224, 224)
    resize: Literal["squash", "shortest_crop", "pad", "pad_corner"] = "squash"
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    crop_fraction: float = 1.0
    background: Color = WHITE
    draft: bool = False
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _pair(self.size))
        object.__setattr__(self, "background", _color(self.background))
        _choice("resize", self.resize, _MODES)
        _choice("interpolation", self.interpolation, tuple(FILTERS))
        if not 0 < self.crop_fraction <= 1:
            raise UserError(f"crop_fraction={self.crop_fraction} must be above 0 and at most 1")
        if self.resize in ("pad", "pad_corner") and self.crop_fraction != 1:
            raise UserError(
                f"crop_fraction must be 1 with resize='{self.resize}', which keeps the whole picture"
            )

    def __call__(self, image: Any) -> Tensor:
        """(3,H,W) uint8 RGB of a PIL picture, bytes, path or uint8 array.

        Raises:
            BadSample: the bytes are no picture, or more than `max_pixels`.
            UserError: a path that cannot be read, an array of another type.
        """
        picture = as_image(image, self.max_pixels)
        if self.draft:
            draft_jpeg(picture, self.size, self.crop_fraction)
        return to_tensor(self.apply(load_rgb(picture, self.background)))

    def apply(self, image: Image.Image, place: float = 0.5) -> Image.Image:
        """The RGB picture resized to `size` (Pillow picture in and out).

        Args:
            image: RGB.
            place: which part resize="shortest_crop" keeps of the long side, 0..1.
        """
        height, width = self.size
        w, h = image.size
        method = FILTERS[self.interpolation]
        if self.resize == "pad_corner":
            return self._into_corner(image)
        if self.resize == "pad":
            inner = self._inner(w, h)
            canvas = Image.new("RGB", (width, height), self.background)
            canvas.paste(image.resize(inner, method), ((width - inner[0]) // 2, (height - inner[1]) // 2))
            return canvas
        goal_w, goal_h = self.resized(w, h)
        left, top = round((goal_w - width) * place), round((goal_h - height) * place)
        if goal_w * goal_h > 4 * width * height:  # a sliver of a picture: never compute what the crop drops
            fx, fy = w / goal_w, h / goal_h
            box = (left * fx, top * fy, min((left + width) * fx, w), min((top + height) * fy, h))
            return image.resize((width, height), method, box=box)
        if (w, h) != (goal_w, goal_h):
            image = image.resize((goal_w, goal_h), method)
        if (goal_w, goal_h) != (width, height):
            image = image.crop((left, top, left + width, top + height))
        return image

    def placement(self, height: int, width: int) -> Placement:
        """Where a picture of height x width pixels (upright, before any `draft`) lies in the result."""
        goal_h, goal_w = self.size
        top = left = 0
        if self.resize == "pad_corner":
            scale_x = scale_y = min(goal_h / height, goal_w / width)
            return Placement((height, width), self.size, scale_y, scale_x)
        if self.resize == "pad":
            w, h = self._inner(width, height)
            top, left = (goal_h - h) // 2, (goal_w - w) // 2
        else:
            w, h = self.resized(width, height)
            top, left = -round((h - goal_h) / 2), -round((w - goal_w) / 2)
        return Placement((height, width), self.size, h / height, w / width, top, left)

    def _inner(self, w: int, h: int) -> tuple[int, int]:
        """(width, height) in pixels of the picture inside its padding, with resize="pad"."""
        scale = min(self.size[0] / h, self.size[1] / w)
        return max(1, round(w * scale)), max(1, round(h * scale))

    def _into_corner(self, image: Image.Image) -> Image.Image:
        """The picture as if laid on a larger `background` first and resized with it.

        Only the strip of background that the filter sees is made. A picture thinner than a pixel of the
        result fills that pixel, so that it can be seen at all.
        """
        scale = min(self.size[0] / image.height, self.size[1] / image.width)
        inner, box, solid = [], [], []
        for side, goal in ((image.width, self.size[1]), (image.height, self.size[0])):
            thin = side * scale < 1
            reach = 0 if thin else math.ceil(2 * max(1.0, scale))  # of the widest filter, in result pixels
            pixels = min(goal, max(1, math.ceil(side * scale - 1e-6)) + reach)
            inner.append(pixels)
            box.append(side if thin else max(float(side), pixels / scale))
            solid.append(math.ceil(box[-1] - 1e-6))
        if solid != list(image.size):
            ground = Image.new("RGB", (solid[0], solid[1]), self.background)
            ground.paste(image)
            image = ground
        part = (0.0, 0.0, min(box[0], image.width), min(box[1], image.height))
        image = image.resize((inner[0], inner[1]), FILTERS[self.interpolation], box=part)
        if image.size == (self.size[1], self.size[0]):
            return image
        canvas = Image.new("RGB", (self.size[1], self.size[0]), self.background)
        canvas.paste(image)
        return canvas

    def resized(self, w: int, h: int) -> tuple[int, int]:
        """(width, height) in pixels that a w x h picture is resized to before the centre crop.

        Source: torchvision's Resize (the long side is truncated to an integer), timm's crop_pct (floor).
        """
        goal_h, goal_w = (math.floor(side / self.crop_fraction) for side in self.size)
        if self.resize == "shortest_crop":
            if goal_h * w <= goal_w * h:  # the width decides
                goal_h = max(goal_h, int(goal_w * h / w))
            else:
                goal_w = max(goal_w, int(goal_h * w / h))
        return goal_w, goal_h

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to preprocess.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImagePreprocess:
        """The preprocessing that `to_dict` described.

        Raises:
            UserError: an unknown or ill-typed field; the message names the nearest valid one.
        """
        known = cls.__dataclass_fields__
        for name in data:
            if name not in known:
                raise UserError(f"preprocess.json: unknown field {name!r}: {nearest(name, known)}")
        return cls(**data)

    def fingerprint(self) -> str:
        """64 hex digits that change with every field."""
        text = json.dumps({"image": self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageAugment:
    """Random crop, flip and colours of training; the result has the size and filter of an `ImagePreprocess`.

    Attributes:
        crop_scale: range of the crop's area as a fraction of the picture's.
        crop_ratio: range of the crop's width/height, drawn log-uniformly.
        flip: probability of a left-right flip; 0 where left and right mean something.
        background: "white", or "random": a new colour behind transparency for every draw, so that a white
            background does not come to mean "cut-out".
        color: strength of random brightness, contrast and saturation, each factor in 1-c..1+c; 0 = off.
        grayscale: probability that all colour is removed.
        draft: as in `ImagePreprocess`; on by default, for training pixels need not be exact.

    Source: the random resized crop of Inception training, as in torchvision's RandomResizedCrop.
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    background: Literal["white", "random"] = "random"
    color: float = 0.0
    grayscale: float = 0.0
    draft: bool = True

    def __post_init__(self) -> None:
        _choice("augment.background", self.background, ("white", "random"))
        for name, low, high in (("crop_scale", *self.crop_scale), ("crop_ratio", *self.crop_ratio)):
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                raise UserError(
                    f"augment.{name}=({low}, {high}) must be a rising range above 0 (scale: up to 1)"
                )
        for name in ("flip", "grayscale", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name}={getattr(self, name)} must be in 0..1")

    def __call__(self, image: Any, preprocess: ImagePreprocess, rng: random.Random) -> Tensor:
        """(3,H,W) uint8 RGB, a random view of the picture; all chance comes from `rng`."""
        picture = as_image(image, preprocess.max_pixels)
        color = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if self.draft:
            draft_jpeg(picture, preprocess.size, self.crop_scale[0])
        picture = load_rgb(picture, color if self.background == "random" else preprocess.background)
        box = self.draw_box(picture.width, picture.height, rng)
        height, width = preprocess.size
        picture = picture.resize((width, height), FILTERS[preprocess.interpolation], box=box)
        if rng.random() < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(recolor(picture, rng, self.color, self.grayscale))

    def draw_box(self, w: int, h: int, rng: random.Random) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of a random crop of a w x h picture."""
        low, high = (math.log(r) for r in self.crop_ratio)
        for _ in range(10):
            area = w * h * rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(low, high))
            cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < cw <= w and 0 < ch <= h:
                left, top = rng.randint(0, w - cw), rng.randint(0, h - ch)
                return left, top, left + cw, top + ch
        ratio = min(max(w / h, self.crop_ratio[0]), self.crop_ratio[1])
        cw, ch = min(w, max(1, round(h * ratio))), min(h, max(1, round(w / ratio)))
        left, top = (w - cw) // 2, (h - ch) // 2
        return left, top, left + cw, top + ch


def recolor(picture: Image.Image, rng: random.Random, color: float, grayscale: float = 0.0) -> Image.Image:
    """The RGB picture with random brightness, contrast and saturation, as `ImageAugment` describes them."""
    if grayscale and rng.random() < grayscale:
        picture = picture.convert("L").convert("RGB")
    if not color:
        return picture
    brightness, contrast, saturation = (1 + color * rng.uniform(-1, 1) for _ in range(3))
    x = np.asarray(picture, dtype=np.float32) * brightness
    x = (x - x.mean()) * contrast + x.mean()
    grey = x @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    x = (x - grey[..., None]) * saturation + grey[..., None]
    return Image.fromarray(x.clip(0, 255).astype(np.uint8))


def draft_jpeg(picture: Image.Image, size: tuple[int, int], keep: float = 1.0) -> None:
    """Nothing; a JPEG that is not decoded yet will be decoded at 1/2, 1/4 or 1/8 size, never below `size`.

    Args:
        picture: opened and not loaded; other formats are left alone.
        size: (height, width) that the result is resized to.
        keep: smallest share of either side that a crop may keep (a crop of area share a keeps at least a).
    """
    if getattr(picture, "format", None) == "JPEG":
        side = math.ceil(max(size) / keep)  # the larger one twice: EXIF may still swap the sides
        picture.draft(None, (side, side))


def to_tensor(picture: Image.Image) -> Tensor:
    """(3,H,W) uint8, contiguous, of an RGB picture."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _pair(size: Any) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
        raise UserError(f"size={size!r} must be (height, width) in pixels")
    return pair


def _color(color: Any) -> Color:
    rgb = tuple(color)
    if len(rgb) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in rgb):
        raise UserError(f"background={color!r} must be three integers 0..255")
    return rgb
