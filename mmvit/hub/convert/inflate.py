"""A tower of pictures as the start of a tower of clips: MViT's second version with one more axis.

Source: inflated kernels: Quo Vadis (arXiv:1705.07750); MViTv2 (arXiv:2112.01526) and its repository.
Differs: SlowFast repeats kernels without dividing them, which scales the outputs by the kernel's extent.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.hub.convert.keymap import fill
from mmvit.models.config import VideoTowerConfig
from mmvit.models.image import ImageTower
from mmvit.models.video import VideoTower


def inflate(
    image: ImageTower, config: VideoTowerConfig, *, stem: Literal["spread", "middle"] = "spread"
) -> VideoTower:
    """A video tower with the weights of an image tower; relative positions in time start at zero.

    Poolings read their own time only. A clip of one picture repeated then gives at every time the picture's
    tokens: with stem="middle" exactly, with "spread" where the stem's kernel does not reach over the ends. A
    class token sees the same once for every time, which lessens its own share of the attention.

    Args:
        image: of the same widths, depths and heads, without absolute positions.
        config: of the video tower; tables of relative positions of another length are resized linearly.
        stem: "spread" divides the stem's kernel over the times it reads, "middle" puts all of it in the one
            in the middle.

    Raises:
        ValueError: tensors that do not fit.
    """
    video = VideoTower(config)
    own, state = video.state_dict(), {}
    for name, value in image.state_dict().items():
        goal = own.get(name, value)
        if value.ndim == 4 and goal.ndim == 5:
            spread = stem == "spread" and name.startswith("patch_embed.")
            value = inflate_kernel(value, goal.shape[2], spread=spread)
        elif ".rel_pos." in name and len(value) != len(goal):
            value = F.interpolate(value.T[None], size=len(goal), mode="linear")[0].T
        state[name] = value
    state |= {name: torch.zeros_like(value) for name, value in own.items() if name.endswith(".rel_pos.t")}
    fill(video, state, source="inflated image tower")
    return video


def inflate_kernel(kernel: Tensor, times: int, *, spread: bool) -> Tensor:
    """The kernel (O,I,t,k,k) of a convolution over clips out of one over pictures (O,I,k,k).

    Args:
        kernel: (O,I,k,k).
        times: t.
        spread: the same at every time, divided by t; otherwise zeros around the middle time.
    """
    if spread:
        return (kernel / times)[:, :, None].repeat(1, 1, times, 1, 1)
    out = kernel.new_zeros(*kernel.shape[:2], times, *kernel.shape[2:])
    out[:, :, times // 2] = kernel
    return out
