"""The pair with text: two towers, one space, one temperature (LiT, CLIP, SigLIP; with sounds CLAP).

The tower beside the text's is called `image` whatever it takes: pictures, clips or sounds.

Shape letters: B batch, L text length, D tower width, E width of the common space.
Source: LiT (arXiv:2111.07991) section 3; CLIP (arXiv:2103.00020); SigLIP (arXiv:2303.15343) for the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.core.precision import never_half
from mmvit.models.build import build_image_tower, build_text_tower, build_tower
from mmvit.models.config import DualEncoderConfig, ForeignImageTowerConfig, ImageTowerConfig
from mmvit.models.text import TextTower

if TYPE_CHECKING:
    from mmvit.models.foreign import ForeignImageTower
    from mmvit.models.tower import GridTower


class DualEncoder(nn.Module):
    """Pictures (or clips, or sounds) and texts -> L2-normalised embeddings (B,E) float32 in one space.

    State dict: `image.*`, `text.*`, `logit_scale` (log, scalar), `logit_bias` (scalar, sigmoid losses only);
    the two scalars stay float32 in a model cast to half.

    Args:
        config: what to build.
        image: the tower beside the text's to use, None = a new one from the config.
        text: likewise.

    Raises:
        ValueError: the towers' embeddings differ in width.
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self,
        config: DualEncoderConfig,
        image: GridTower | ForeignImageTower | None = None,
        text: TextTower | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.image: GridTower | ForeignImageTower = seeing_tower(config.image) if image is None else image
        self.text = build_text_tower(config.text) if text is None else text
        if self.image.embed_dim != self.text.embed_dim:
            raise ValueError(
                f"the {config.modality} tower embeds in {self.image.embed_dim} dimensions and the text tower "
                f"in {self.text.embed_dim}: set embed_dim of the text tower to {self.image.embed_dim}"
            )
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))
        if config.logit_bias_init is None:
            self.register_parameter("logit_bias", None)
        else:
            self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias_init)))

    @property
    def embed_dim(self) -> int:
        """E, the width of the common space."""
        return self.text.embed_dim

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DualEncoder:
        if recurse:
            for module in self.children():
                module._apply(fn)
        return super()._apply(never_half(fn), recurse=False)

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory in both towers; a peer's tower that cannot is left as it is."""
        for tower in (self.image, self.text):
            switch = getattr(tower, "set_checkpointing", None)
            if switch is not None:
                switch(on)

    def encode_image(self, pixels: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """L2-normalised embeddings (B,E) float32 of what the tower beside the text's takes.

        Args:
            pixels: (B,3,H,W) uint8 0..255, or float already normalised; clips (B,3,T,H,W), spectrograms
                (B,T,M) or waveforms (B,S) where the tower takes these.
            features: (B,D) cached outputs of `image.features`, in place of pixels.

        Raises:
            ValueError: both or none are given, or the features are not D wide.
        """
        if pixels is not None and features is None:
            features = self.image.features(pixels)
        elif features is None or pixels is not None:
            raise ValueError("encode_image takes pixels or cached features, exactly one of them")
        elif features.shape[-1] != self.image.width:
            raise ValueError(
                f"cached {self.config.modality} features are {features.shape[-1]} wide, expected "
                f"{self.image.width}: they were made by another {self.config.modality} tower"
            )
        return _normalise(self.image.project(features))

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """L2-normalised text embeddings (B,E) float32.

        Args:
            ids: (B,L) int64 token ids.
            mask: (B,L) bool, True = real token, None = all real.
        """
        return _normalise(self.text(ids, mask))

    def forward(
        self,
        pixels: Tensor | None = None,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        features: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both towers' embeddings, each (B,E) float32 L2-normalised or None when its input is not given."""
        z_image = None if pixels is None and features is None else self.encode_image(pixels, features)
        z_text = None if ids is None else self.encode_text(ids, mask)
        return z_image, z_text

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the log scale to 0..`config.logit_scale_max` in place, after each optimizer step."""
        if self.config.logit_scale_max is not None:
            self.logit_scale.clamp_(0.0, self.config.logit_scale_max)


def _normalise(x: Tensor) -> Tensor:
    """Rows of x (B,E) at length 1, float32 (float64 stays), whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def seeing_tower(config: Any) -> GridTower | ForeignImageTower:
    """The tower of pictures, clips or sounds that `config` describes; random weights."""
    if isinstance(config, ImageTowerConfig | ForeignImageTowerConfig):
        return build_image_tower(config)
    return build_tower(config)


def build_dual_encoder(config: DualEncoderConfig, **towers: Any) -> DualEncoder:
    """The pair that `config` describes; random weights unless `image=` or `text=` towers are given."""
    return DualEncoder(config, **towers)
