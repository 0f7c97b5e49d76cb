"""Video, audio and text in common spaces, on three cores or on one: VATT, assembled.

Shape letters: B batch, T frames, H/W pixels, S samples, M mel bands, L text length, E width of a space.
Source: VATT (arXiv:2104.11178).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit.heads.spaces import FineCoarse, Joint
from mmvit.models.build import build_core, build_text_tower, build_tower, build_word_tower
from mmvit.models.config import VattConfig, WordTowerConfig
from mmvit.models.video import still

Spaces = dict[str, Tensor]
TOWERS = ("video", "audio", "text")


class Vatt(nn.Module):
    """Clips, sounds and texts -> L2-normalised embeddings in S_va ("va") and S_vt ("vt").

    State dict: `video.*`, `audio.*`, `text.*`, `spaces.*`; with `config.shared` also `core.*`, the one core
    that all three towers hold. It stands there once, and the towers' own names for it are left out.

    Args:
        config: what to build; where towers are given, theirs take the place of what it says of them.
        video: the tower to use, None = a new one from the config.
        audio: likewise.
        text: likewise.

    Raises:
        ValueError: a shared core with towers whose `core` configs differ, or given towers that share none.
    """

    video: Any
    audio: Any
    text: Any

    def __init__(
        self,
        config: VattConfig,
        video: nn.Module | None = None,
        audio: nn.Module | None = None,
        text: nn.Module | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"video": video, "audio": audio, "text": text}
        told = {name: tower.config for name, tower in given.items() if tower is not None}
        self.config = config = dataclasses.replace(config, **told)
        core: Any = None
        if config.shared:
            core = self.core = _one_core(
                config, [tower.core for tower in given.values() if tower is not None]
            )
            self.register_state_dict_post_hook(_without_aliases)
            self.register_load_state_dict_pre_hook(_with_aliases)
        build_text: Any = build_word_tower if isinstance(config.text, WordTowerConfig) else build_text_tower
        self.video = given["video"] or build_tower(config.video, core)
        self.audio = given["audio"] or build_tower(config.audio, core)
        self.text = given["text"] or build_text(config.text, core)
        widths = (self.video.embed_dim, self.audio.embed_dim, self.text.embed_dim)
        self.spaces: FineCoarse | Joint = (
            FineCoarse(widths, config.va_dim, config.vt_dim)
            if config.spaces == "fac"
            else Joint(widths, config.va_dim)
        )

    @property
    def embed_dim(self) -> int:
        """E of S_vt, where all modalities are."""
        return self.config.vt_dim if self.config.spaces == "fac" else self.config.va_dim

    def set_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute each block in the backward pass."""
        for name in TOWERS:
            getattr(self, name).set_checkpointing(on)

    def encode_video(self, clips: Tensor, keep: Tensor | None = None) -> Spaces:
        """{"va": (B,E_va), "vt": (B,E_vt)} float32 of clips (B,3,T,H,W), L2-normalised.

        Args:
            clips: uint8 0..255, or float already normalised.
            keep: (B,K) int64 indices of the grid tokens that are computed, None = all.
        """
        return _normalised(self.spaces.video(self.video(clips, keep)))

    def encode_image(self, pixels: Tensor, keep: Tensor | None = None) -> Spaces:
        """As `encode_video`, of pictures (B,3,H,W): each stands still for one tubelet."""
        return self.encode_video(self.still(pixels), keep)

    def encode_audio(self, sounds: Tensor, keep: Tensor | None = None) -> Spaces:
        """{"va", "vt"} of sounds, (B,S) waveforms or (B,T,M) spectrograms, as `encode_video`."""
        return _normalised(self.spaces.audio(self.audio(sounds, keep)))

    def encode_text(self, ids: Tensor, mask: Tensor | None = None) -> Spaces:
        """{"vt": (B,E_vt)} of token ids (B,L) with mask (B,L) True = real token, as `encode_video`."""
        return _normalised(self.spaces.text(self.text(ids, mask)))

    def still(self, pixels: Tensor) -> Tensor:
        """Clips (B,3,t,H,W) in which the pictures (B,3,H,W) stand still, see `models.video.still`."""
        return still(pixels, self.config.video)


def _one_core(config: VattConfig, given: list[Any]) -> nn.Module:
    """The core that all towers share: the one of the given towers, or a new one.

    Raises:
        ValueError: it cannot be one.
    """
    if not config.video.core == config.audio.core == config.text.core:
        raise ValueError(
            "shared is True, and the towers' core configs differ: make them equal, or set shared=False for a "
            "core each"
        )
    if any(core is not given[0] for core in given):
        raise ValueError(
            "shared is True, and the given towers have a core each: build them around one, or set "
            "shared=False"
        )
    return given[0] if given else build_core(config.video.core)


def _without_aliases(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Takes the towers' names of the shared core out of a state dict, where it stands as `core.*`."""
    aliases = tuple(f"{prefix}{name}.core." for name in TOWERS)
    for name in [n for n in state if n.startswith(aliases)]:
        del state[name]


def _with_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Puts them back, for the towers to find."""
    core = f"{prefix}core."
    for name in [n for n in state if n.startswith(core)]:
        for tower in TOWERS:
            state[f"{prefix}{tower}.core.{name.removeprefix(core)}"] = state[name]


def _normalised(spaces: Spaces) -> Spaces:
    """Rows at length 1, float32 (float64 stays), whatever autocast says."""
    found = {}
    for name, z in spaces.items():
        with torch.autocast(z.device.type, enabled=False):
            found[name] = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1)
    return found
