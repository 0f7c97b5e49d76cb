"""VATT's common spaces: a fine one for video and audio, a coarse one that text joins; or one for all.

Shape letters: B rows, D width of a modality's features.
Source: VATT (arXiv:2104.11178) section 3.3 and its repository (`modeling/heads/bridge.py`); fine and coarse:
MMV (arXiv:2006.16228). Differs from the paper as the repository does: a ReLU stands before the map from S_va
to S_vt, and audio and text have a bias in place of a norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.heads.batch_norm import GlobalBatchNorm

HALF = (torch.float16, torch.bfloat16)


class FineCoarse(nn.Module):
    """Features -> vectors in S_va and S_vt, not normalised.

    Audio has no map of its own to S_vt: as video's, its vector in S_va is mapped on by `va_vt`. Only its
    direction has a meaning there, so it is first brought to the length that video's vectors have, and behind
    the map it is normed by audio's own mean and deviation, which are measured while training, with video's
    gain and bias. The repository leaves audio in S_va.

    Args:
        widths: (video, audio, text) D.
        va_dim: of S_va.
        vt_dim: of S_vt.
    """

    def __init__(self, widths: tuple[int, int, int], va_dim: int, vt_dim: int) -> None:
        super().__init__()
        video, audio, text = widths
        self.video_hidden = nn.Linear(video, va_dim, bias=False)
        self.video_hidden_norm = GlobalBatchNorm(va_dim)
        self.video_va = nn.Linear(va_dim, va_dim, bias=False)
        self.video_va_norm = GlobalBatchNorm(va_dim)
        self.audio_va = nn.Linear(audio, va_dim)
        self.va_vt = nn.Linear(va_dim, vt_dim, bias=False)
        self.va_vt_norm = GlobalBatchNorm(vt_dim)
        self.audio_vt_norm = GlobalBatchNorm(vt_dim, affine=False)
        self.text_vt = nn.Linear(text, vt_dim)

    def video(self, features: Tensor) -> dict[str, Tensor]:
        """{"va": (B,va_dim), "vt": (B,vt_dim)} of video features (B,D)."""
        hidden = self.video_hidden_norm(self.video_hidden(features))
        va = self.video_va_norm(self.video_va(F.relu(hidden)))
        return {"va": va, "vt": self.va_vt_norm(self.va_vt(F.relu(va)))}

    def audio(self, features: Tensor) -> dict[str, Tensor]:
        """{"va", "vt"} of audio features (B,D), as `video`."""
        va = self.audio_va(features)
        fine = F.normalize(va.float() if va.dtype in HALF else va, dim=-1) * self.video_va_norm.mean_length()
        return {"va": va, "vt": self.va_vt_norm.affine(self.audio_vt_norm(self.va_vt(F.relu(fine))))}

    def text(self, features: Tensor) -> dict[str, Tensor]:
        """{"vt": (B,vt_dim)} of text features (B,D)."""
        return {"vt": self.text_vt(features)}


class Joint(nn.Module):
    """Features -> vectors in one space: ReLU, a linear map and a norm for each modality.

    Args:
        widths: (video, audio, text) D.
        dim: of the space.
    """

    def __init__(self, widths: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        names = ("video", "audio", "text")
        self.maps = nn.ModuleDict(
            {n: nn.Linear(w, dim, bias=False) for n, w in zip(names, widths, strict=True)}
        )
        self.norms = nn.ModuleDict({n: GlobalBatchNorm(dim) for n in names})

    def video(self, features: Tensor) -> dict[str, Tensor]:
        """{"va", "vt"}, one and the same (B,dim), of features (B,D)."""
        z = self._one("video", features)
        return {"va": z, "vt": z}

    def audio(self, features: Tensor) -> dict[str, Tensor]:
        """As `video`."""
        z = self._one("audio", features)
        return {"va": z, "vt": z}

    def text(self, features: Tensor) -> dict[str, Tensor]:
        """{"vt": (B,dim)}."""
        return {"vt": self._one("text", features)}

    def _one(self, name: str, features: Tensor) -> Tensor:
        return self.norms[name](self.maps[name](F.relu(features)))
