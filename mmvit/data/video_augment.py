"""Clip (3,T,H,W) uint8 -> a random view of it for training, the same for all of its frames.

Place in the path: inside `VideoPreprocess`. Shape letters: T frames, H/W pixels.
Source: VATT (arXiv:2104.11178) section 4.1 and appendix A.2.1.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mmvit.data.image import FILTERS, ImageAugment, ImagePreprocess
from mmvit.errors import UserError

_GREY = torch.tensor([0.299, 0.587, 0.114])
# The YIQ colour space: hue is a turn of its I-Q plane (the values of the NTSC standard).
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = torch.linalg.inv(_YIQ)


@dataclass(frozen=True, kw_only=True)
class ClipAugment:
    """Random views of training, the same for all frames of a clip; the defaults are VATT's.

    Attributes:
        crop_scale: range of the crop's area as a fraction of the frame's.
        crop_ratio: range of the crop's width/height, drawn log-uniformly.
        flip: probability of a left-right flip; 0 where left and right mean something.
        brightness: largest change, as a fraction of white.
        contrast, saturation: factors are drawn from 1-c..1+c.
        hue: largest turn of all hues, in whole turns.
        color: probability that colours change at all.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    brightness: float = 32 / 255
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    color: float = 1.0

    def __post_init__(self) -> None:
        ImageAugment(crop_scale=self.crop_scale, crop_ratio=self.crop_ratio, flip=self.flip)
        for name in ("brightness", "contrast", "saturation", "hue", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name}={getattr(self, name)} must be in 0..1")

    def draw(self, rng: random.Random) -> ClipView:
        """One random view; equal states of `rng` give equal views."""
        seed, flip = rng.getrandbits(32), rng.random() < self.flip
        factors = [rng.uniform(-1, 1) for _ in range(4)]
        if rng.random() >= self.color:
            factors = [0.0] * 4
        sizes = (self.brightness, self.contrast, self.saturation, self.hue)
        boxes = ImageAugment(crop_scale=self.crop_scale, crop_ratio=self.crop_ratio)
        return ClipView(boxes, seed, flip, [f * s for f, s in zip(factors, sizes, strict=True)])


@dataclass(slots=True)
class ClipView:
    """One drawn view of a clip: a box, a flip, and what happens to colours."""

    boxes: ImageAugment
    seed: int
    flip: bool
    colors: list[float]

    def cut(self, picture: Image.Image, preprocess: ImagePreprocess) -> Image.Image:
        """The frame's part inside the box at the size of `preprocess`; frames of equal size share the box."""
        box = self.boxes.draw_box(picture.width, picture.height, random.Random(self.seed))
        height, width = preprocess.size
        picture = picture.resize((width, height), FILTERS[preprocess.interpolation], box=box)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else picture

    def recolor(self, clip: Tensor) -> Tensor:
        """The clip (3,T,H,W) uint8 with its colours changed, all frames alike."""
        if not any(self.colors):
            return clip
        brightness, contrast, saturation, hue = self.colors
        keep = torch.eye(3) * (1 + saturation) - torch.outer(torch.ones(3), _GREY) * saturation
        angle = 2 * math.pi * hue
        turn = torch.eye(3)
        turn[1:, 1:] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = _RGB @ turn @ _YIQ
        x = clip.flatten(1).float()
        shift = keep @ torch.full((3, 1), 255 * brightness)
        mean = keep @ x.mean(dim=1, keepdim=True) + shift
        # Brightness, saturation, contrast around the clip's mean, hue: all linear, so one product does them.
        moved = matrix @ ((1 + contrast) * shift - contrast * mean)
        x = torch.addmm(moved, (1 + contrast) * matrix @ keep, x)
        return x.round_().clamp_(0, 255).to(torch.uint8).reshape(clip.shape)
