"""One small file per peer library, all with the same three functions: read, build, features."""

from __future__ import annotations

from mmvit.models.peers import open_clip, timm, torchvision, transformers
from mmvit.models.peers.peer import Peer

LIBRARIES = {"timm": timm, "open_clip": open_clip, "torchvision": torchvision, "transformers": transformers}

__all__ = ["LIBRARIES", "Peer"]
