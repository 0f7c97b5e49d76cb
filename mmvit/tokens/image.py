"""Pictures -> grid tokens: normalise, cut into patches, project each patch.

Shape letters: B batch, C=3 channels, H/W pixels, p patch side, h=H/p, w=W/p, N=h*w tokens, D width.
Source: ViT (arXiv:2010.11929) eq. 1. Init: big_vision (LeCun normal kernel, zero bias).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.tokens.flexi import KERNEL_RESAMPLE, resample_kernel
from mmvit.tokens.projection import computed_in, lecun_normal_
from mmvit.types import Tokens


class PatchEmbed(nn.Module):
    """Pixels (B,3,H,W) -> Tokens (B,N,D) on the grid (H/p, W/p), without positions or special tokens.

    Args:
        width: D.
        patch_size: p in pixels.
        bias: whether the projection has a bias (CLIP's has none).
        resample: how the kernel follows another patch size, a name in `KERNEL_RESAMPLE`; None = it has one.
        mean: per channel, of pixels scaled to 0..1; only uint8 pixels are normalised.
        std: likewise.

    Raises:
        ValueError: an unknown way of resampling.
    """

    def __init__(
        self,
        width: int,
        patch_size: int,
        *,
        bias: bool = True,
        resample: str | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        if resample is not None and resample not in KERNEL_RESAMPLE:
            expected = ", ".join(KERNEL_RESAMPLE)
            raise ValueError(f"patch_resample is '{resample}', expected None or one of {expected}")
        self.patch_size, self.resample = patch_size, resample
        # Stored as the usual convolution kernel (D,3,p,p), computed as one matrix product on cut patches: 1.4
        # to 4 times as fast in bfloat16 on a CPU, and the tokens come out contiguous.
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.normalise = Normalise(mean, std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun normal: variance 1/(3*p*p), zero bias."""
        lecun_normal_(self.proj)

    def forward(self, pixels: Tensor, patch_size: int | None = None) -> Tokens:
        """Grid tokens (B,N,D), row-major.

        Args:
            pixels: (B,3,H,W) uint8 0..255 (normalised here), or floating point and already normalised.
            patch_size: p in pixels for this call, None = the stored one.

        Raises:
            ValueError: not (B,3,H,W), H or W is no multiple of the patch size, or a patch size that this
                kernel was not made for.
        """
        p = self.patch_size if patch_size is None else patch_size
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels are {tuple(pixels.shape)}, expected (B,3,H,W)")
        weight = self._kernel(p)
        B, C, H, W = pixels.shape
        if H % p or W % p:
            raise ValueError(
                f"picture is {H}x{W} pixels, expected multiples of patch_size={p}: resize it first"
            )
        if pixels.dtype == torch.uint8:
            pixels = self.normalise(pixels)
        h, w = H // p, W // p
        patches = pixels.to(computed_in(weight)).view(B, C, h, p, w, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, C * p * p)
        return Tokens(F.linear(patches, weight.flatten(1), self.proj.bias), (h, w))

    def _kernel(self, p: int) -> Tensor:
        """The kernel (D,3,p,p): the stored one, or made from it for this call."""
        if p == self.patch_size:
            return self.proj.weight
        if self.resample is None:
            raise ValueError(
                f"patch_size={p} was asked for, and this model has patch_size={self.patch_size} only: "
                "leave it out, or take a model trained at many sizes (flexivit_*)"
            )
        return resample_kernel(self.proj.weight, p, self.resample)


class Normalise:
    """uint8 pixels (B,3,H,W) -> float32 (x/255 - mean) / std, in one multiply and one add.

    Args:
        mean: per channel, of pixels scaled to 0..1.
        std: likewise, above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = [1.0 / (255.0 * s) for s in std]
        self.shift = [-m / s for m, s in zip(mean, std, strict=True)]
        # Not buffers: a model cast to bfloat16 must not round them, and a model built on the meta device
        # must not lose them.
        self._made: dict[torch.device, Tensor] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised float32 pixels, same shape and device."""
        scale, shift = self._constants(pixels).unbind(0)
        return pixels.float().mul_(scale).add_(shift)

    def _constants(self, pixels: Tensor) -> Tensor:
        """Scale and shift (2,3,1,1) on the device of `pixels`, made once; anew under a tracer."""
        if pixels.device in self._made:
            return self._made[pixels.device]
        values = torch.tensor([self.scale, self.shift], device=pixels.device).view(2, 3, 1, 1)
        if type(pixels) is Tensor and not torch.compiler.is_compiling():
            self._made[pixels.device] = values
        return values
