"""Any image model of timm, open_clip, torchvision or transformers behind our image tower's interface.

Place in the path: pixels (B,3,H,W) -> features (B,D) -> embedding (B,E). The peer is rebuilt from plain data
in the config, never from a download. What "features" are is stated per library at the top of each file in
`peers/`: the representation that the peer's own classifier reads, or its embedding where it has one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmvit.errors import nearest
from mmvit.heads.project import Head
from mmvit.models.config import ForeignImageTowerConfig
from mmvit.models.peers import LIBRARIES, Peer
from mmvit.tokens.image import Normalise
from mmvit.types import Encoded


class ForeignImageTower(nn.Module):
    """A peer's image model as a tower.

    Attributes:
        config: what rebuilds the tower offline.
        module: the peer's own module.
        width: D of the features.
        embed_dim: E of the embedding.

    Args:
        config: library, name and arguments of the peer, its normalisation and our head.
        module: the peer's module when it exists already; None builds it from `config` with random weights.
    """

    def __init__(self, config: ForeignImageTowerConfig, module: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.module = LIBRARIES[config.library].build(config) if module is None else module
        if config.tokens:
            drop_unread(config, self.module)
        self.normalise = Normalise(config.mean, config.std)
        self.head = Head(config.width, config.embed_dim, center=config.center, bias=config.head_bias)
        self.width = config.width
        self.embed_dim = self.head.embed_dim
        # Convolutions on a CPU run up to twice as fast on this layout; the values are the same.
        self.channels_last = sum(isinstance(m, nn.Conv2d) for m in self.module.modules()) > 2
        if self.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def wrap(
        cls,
        peer: str | nn.Module | Peer,
        *,
        image_size: tuple[int, int] | None = None,
        embed_dim: int | None = None,
        center: bool = False,
        weights: bool = False,
        **arguments: Any,
    ) -> ForeignImageTower:
        """A tower around a peer's model.

        Args:
            peer: "library:name" (random weights unless `weights`), "library:folder" (with the folder's
                weights), a timm or transformers module, or what `read_peer` returned.
            image_size: (height, width) to feed it; the peer's own when None.
            embed_dim: E of a new linear head, None = no head.
            center: subtract a stored mean from the features before the head.
            weights: fetch the peer's published weights for a name; needs the network.
            arguments: passed on to the peer's constructor.

        Raises:
            ValueError: an unknown library or model, or a module whose constructor arguments cannot be read.
            FileNotFoundError: a folder that is not there or not of that library.
        """
        if isinstance(peer, str):
            peer = read_peer(peer, image_size=image_size, weights=weights, **arguments)
        elif isinstance(peer, nn.Module):
            peer = describe_peer(peer)
        plain = json.loads(json.dumps(peer.config.arguments))  # tuples become lists, as in a saved config
        config = replace(peer.config, arguments=plain, embed_dim=embed_dim, center=center)
        if image_size is not None:
            config = replace(config, image_size=image_size)
        return cls(replace(config, width=probe_width(config, peer.module)), peer.module)

    def features(self, pixels: Tensor) -> Tensor:
        """The peer's pooled features (B,D); the mean of its tokens where it serves those.

        Args:
            pixels: (B,3,H,W) uint8 RGB, or float already normalised with the peer's mean and std.
        """
        if self.config.tokens:
            return self.forward_tokens(pixels).values.mean(dim=1)
        return LIBRARIES[self.config.library].features(self.module, self._as_fed(pixels))

    def forward_tokens(self, pixels: Tensor) -> Encoded:
        """The peer's last feature map as tokens (B,N,D), N = h*w row-major; no special tokens.

        Args:
            pixels: as `features` takes them; any size that the peer takes.

        Raises:
            ValueError: a peer whose map cannot be read, see `tokens` in `peers/`.
        """
        rows = _token_map(self.config, self.module, self._as_fed(pixels))
        return Encoded(rows.flatten(1, 2), grid=(rows.shape[1], rows.shape[2]))

    def _as_fed(self, pixels: Tensor) -> Tensor:
        """Normalised pixels in the type and layout that the module computes in."""
        if pixels.dtype == torch.uint8:
            pixels = self.normalise(pixels)
        if not torch.is_autocast_enabled(pixels.device.type):
            pixels = pixels.to(next(self.module.parameters()).dtype)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels

    def project(self, features: Tensor) -> Tensor:
        """The embedding (B,E) float32 of features (B,D), not yet normalised."""
        return self.head(features)

    def forward(self, pixels: Tensor) -> Tensor:
        """The embedding (B,E) float32 of pixels (B,3,H,W), not yet normalised."""
        return self.project(self.features(pixels))


def read_peer(
    spec: str, *, image_size: tuple[int, int] | None = None, weights: bool = False, **arguments: Any
) -> Peer:
    """A peer's model by "library:name" or "library:folder", with its config and its way to resize pictures.

    Raises:
        ValueError: no known library before the colon, or a name which that library does not have.
        FileNotFoundError: a folder that is not there or not of that library.
    """
    library, _, source = spec.partition(":")
    if library not in LIBRARIES or not source:
        raise ValueError(
            f"image model '{spec}' is not 'library:name' or 'library:folder': {nearest(library, LIBRARIES)}"
        )
    return LIBRARIES[library].read(source, arguments, image_size, weights)


def describe_peer(module: nn.Module) -> Peer:
    """A peer's module that exists already, with the config that rebuilds it.

    Raises:
        ValueError: the module does not carry its own configuration.
    """
    if hasattr(module, "pretrained_cfg"):
        return LIBRARIES["timm"].describe(module)
    if hasattr(module, "config") and hasattr(module.config, "to_json_string"):
        return LIBRARIES["transformers"].describe(module)
    raise ValueError(
        f"cannot read how to rebuild a {type(module).__name__}: give 'library:name', "
        "or a timm or transformers module, which carry their own configuration"
    )


@torch.no_grad()
def probe_width(config: ForeignImageTowerConfig, module: nn.Module) -> int:
    """D, measured by passing one grey picture of `config.image_size` through the peer.

    Raises:
        ValueError: the peer's features are not one vector per picture.
    """
    training = module.training
    grey = torch.zeros(1, 3, *config.image_size, dtype=next(module.parameters()).dtype)
    out = LIBRARIES[config.library].features(module.eval(), grey)
    module.train(training)
    if out.ndim != 2:
        raise ValueError(
            f"{config.library}:{config.name} gives features {tuple(out.shape)}, expected (1, width)"
        )
    return out.shape[1]


def token_width(config: ForeignImageTowerConfig, module: nn.Module) -> int:
    """D of a peer's tokens, measured by passing one grey picture of `config.image_size` through it.

    Raises:
        ValueError: a peer whose feature map cannot be read.
    """
    training = module.training
    with torch.no_grad():
        width = _token_map(config, module.eval(), _grey(config, module)).shape[-1]
    module.train(training)
    return width


def drop_unread(config: ForeignImageTowerConfig, module: nn.Module) -> None:
    """Takes away, in place, the parameters that a peer's feature map does not depend on.

    They would stay without a gradient, which distributed training takes for a mistake.
    """
    training = module.training
    with torch.enable_grad():
        _token_map(config, module.eval(), _grey(config, module)).sum().backward()
    module.train(training)
    for part in module.modules():
        own = list(part.named_parameters(recurse=False))
        unread = [name for name, value in own if value.grad is None]
        for name in unread:
            part.register_parameter(name, None)
        if own and len(unread) == len(own):
            for name, _ in list(part.named_buffers(recurse=False)):
                part.register_buffer(name, None)
    module.zero_grad(set_to_none=True)


def _grey(config: ForeignImageTowerConfig, module: nn.Module) -> Tensor:
    first = next(module.parameters())
    return torch.zeros(1, 3, *config.image_size, dtype=first.dtype, device=first.device)


def _token_map(config: ForeignImageTowerConfig, module: nn.Module, pixels: Tensor) -> Tensor:
    """(B,h,w,D) of normalised pixels (B,3,H,W)."""
    read = getattr(LIBRARIES[config.library], "tokens", None)
    if read is None:
        raise ValueError(
            f"{config.library}:{config.name} has no feature map that we can read: take a timm model, or "
            "convert it with hub.from_* into a tower of ours"
        )
    return read(module, pixels)
