"""One patch kernel at many patch sizes: it reads a resized patch as the stored kernel read the patch.

Shape letters: D width, p side of the stored kernel, q side of the wanted one, in pixels.
Source: FlexiViT (arXiv:2212.08013) section 3.4 ("pi"); timm `resample_patch_embed` ("timm").
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Which resize of a patch the kernel undoes. The two give kernels that differ by O(1), so the name is always
# said: "pi" is the paper's and what published FlexiViT weights were trained with.
KERNEL_RESAMPLE: dict[str, dict[str, Any]] = {
    "pi": {"mode": "bilinear", "antialias": False},
    "timm": {"mode": "bicubic", "antialias": True},
}
_MADE: dict[tuple[Any, ...], Tensor] = {}


def resample_kernel(kernel: Tensor, size: int, mode: str) -> Tensor:
    """The kernel (D,C,q,q) whose products with patches resized to q equal those of `kernel` before.

    Exact for q >= p, least squares below. A linear map of the stored kernel, computed in float32 or
    better and differentiable: always resample the stored kernel, since 16 -> 32 -> 16 does not lead back.

    Args:
        kernel: (D,C,p,p).
        size: q in pixels; q = p gives `kernel` itself.
        mode: a name in `KERNEL_RESAMPLE`.

    Raises:
        ValueError: unknown mode, or a size below 1.
    """
    if mode not in KERNEL_RESAMPLE:
        raise ValueError(f"patch_resample is '{mode}', expected one of {', '.join(KERNEL_RESAMPLE)}")
    if size < 1:
        raise ValueError(f"patch_size is {size}, expected at least 1")
    if size == kernel.shape[-1]:
        return kernel
    # In half types the rounding would be as large as what the operator corrects.
    with torch.autocast(kernel.device.type, enabled=False):
        wide = kernel if kernel.dtype == torch.float64 else kernel.float()
        inverse = _inverse(kernel.shape[-1], size, mode, wide)
        return (inverse @ wide @ inverse.t()).to(kernel.dtype)


def resize_matrix(old: int, new: int, mode: str) -> Tensor:
    """The linear map (new,old) float64 that resizes one line of pixels; a patch is resized per axis by it.

    Args:
        old: pixels before.
        new: pixels after.
        mode: a name in `KERNEL_RESAMPLE`.
    """
    # A square of one-hot rows resized along the rows only: torch has no antialiased resize of a line.
    lines = torch.eye(old, dtype=torch.float64)[None, None]
    lines = F.interpolate(lines, size=(old, new), align_corners=False, **KERNEL_RESAMPLE[mode])
    return lines[0, 0].t()


def _inverse(old: int, new: int, mode: str, like: Tensor) -> Tensor:
    """The pseudo-inverse (new,old) of the transposed resize, on the device and in the type of `like`.

    That of the whole patch is its Kronecker square, so one small float64 problem a size is all there is.
    """
    key = (old, new, mode, like.device, like.dtype)
    if key in _MADE:
        return _MADE[key]
    made = torch.linalg.pinv(resize_matrix(old, new, mode).t()).to(like.device, like.dtype)
    if type(like) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
        _MADE[key] = made
    return made
