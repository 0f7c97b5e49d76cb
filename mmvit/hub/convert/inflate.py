"""A tower of pictures as the start of a tower of clips or of sounds.

Source: inflated kernels: Quo Vadis (arXiv:1705.07750); MViTv2 (arXiv:2112.01526) and its repository; sounds:
AST (arXiv:2104.01778) section 2.2.
Differs: SlowFast repeats kernels without dividing them, which scales the outputs by the kernel's extent.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.hub.convert.keymap import fill
from mmvit.models.audio import AudioTower
from mmvit.models.config import AudioTowerConfig, TowerConfig, VideoTowerConfig
from mmvit.models.image import ImageTower
from mmvit.models.video import VideoTower
from mmvit.tokens.positions import RESAMPLE, resample_grid


def inflate(
    image: ImageTower, config: VideoTowerConfig, *, stem: Literal["spread", "middle"] = "spread"
) -> VideoTower:
    """A video tower with the weights of an image tower; what it knows of time starts at zero.

    Positions are those of the picture at every time (position "learned"), or at its places beside times at
    zero ("separable"); others start as the config says. Poolings of MViT read their own time only, its
    relative positions in time are zero. A clip of one picture repeated then gives at every time the picture's
    tokens: with stem="middle" exactly, with "spread" where the stem's kernel does not reach over the ends. A
    class token sees the same once for every time, which lessens its own share of the attention.

    Args:
        image: of the same widths, depths and heads.
        config: of the video tower; tables of positions of another size are resampled.
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
    state.pop("pos_embed", None)
    if _on_a_grid(image) and config.position in ("learned", "separable"):
        special, places = _positions(image, config, video.grid[1:])
        if config.position == "learned":
            state["pos_embed"] = torch.cat([special, places.repeat(1, video.grid[0], 1)], 1)
        else:
            times = places.new_zeros(1, video.grid[0], places.shape[2])
            state["pos_embed"] = torch.cat([special, times, places], 1)
    fill(video, state, source="inflated image tower", allow_missing=_NEW)
    return video


def to_sound(image: ImageTower, config: AudioTowerConfig) -> AudioTower:
    """An audio tower with the weights of an image tower: rows become frequencies, columns times.

    Kernels are summed over the three colours, as if the spectrogram were given three times. Positions follow
    as AST's do: the middle of an axis that shrinks, an axis that grows is stretched. A distillation token
    that the image tower lacks starts as its class token.

    Args:
        image: with plain patches, of the same width, depth, heads and patch size.
        config: of the audio tower.

    Raises:
        ValueError: tensors that do not fit.
    """
    audio = AudioTower(config)
    own, state = audio.state_dict(), dict(image.state_dict())
    kernel = "patch_embed.proj.weight"
    state[kernel] = state[kernel].sum(1, keepdim=True)
    if "dist_token" in own and "cls_token" in state:
        state.setdefault("dist_token", state["cls_token"])
    state.pop("pos_embed", None)
    if _on_a_grid(image) and config.position == "learned":
        state["pos_embed"] = torch.cat(_positions(image, config, audio.grid, "cut_or_stretch"), 1)
    fill(audio, state, source="image tower for sounds", allow_missing=_NEW)
    return audio


# What a tower of pictures may lack and a tower of clips or sounds has: it starts as it always does.
_NEW = (r"pos_embed", r"pos_norm\..*", r"pre\..*", r"post\..*")


def _on_a_grid(image: ImageTower) -> bool:
    return image.pos_embed is not None and image.config.position not in ("separable", "axes")


def _positions(
    image: ImageTower, config: TowerConfig, grid: tuple[int, ...], mode: str | None = None
) -> tuple[Tensor, Tensor]:
    """Rows (1,P,D) of the special tokens that `config` has, and (1,n,D) of a grid; a missing row is zero."""
    assert image.pos_embed is not None
    rows = image.position_rows
    special, places = image.pos_embed[:, :rows], image.pos_embed[:, rows:]
    wanted = (config.class_token + config.distill_token) * config.class_position
    if rows and wanted > rows:
        special = torch.cat([special, special[:, :1].expand(-1, wanted - rows, -1)], 1)
    elif wanted > rows:
        special = places.new_zeros(1, wanted, places.shape[2])
    mode = mode or (config.position_resample if config.position_resample in RESAMPLE else "bicubic")
    return special[:, :wanted], resample_grid(places, image.grid, grid, mode)


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
