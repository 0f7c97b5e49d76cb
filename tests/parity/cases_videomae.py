"""transformers' VideoMAE classifiers against the videomae_* presets."""

from typing import Any

import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import preset
from tests.parity.case import Case


def _model(name: str, depth: int, clip: tuple[int, ...] = (16, 224, 224)) -> nn.Module:
    core = preset(name).core
    config = transformers.VideoMAEConfig(
        hidden_size=core.width,
        num_hidden_layers=depth,
        num_attention_heads=core.num_heads,
        intermediate_size=core.mlp_dim,
        num_frames=clip[0],
        image_size=clip[1:],
        layer_norm_eps=1e-6,
        num_labels=7,
    )
    return transformers.VideoMAEForVideoClassification(config)


def _outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    p: Any = peer
    tokens = p.videomae(x.transpose(1, 2)).last_hidden_state
    pooled = p.fc_norm(tokens.mean(1))
    return {"tokens": tokens, "pooled": pooled, "logits": p(x.transpose(1, 2)).logits}


def _case(name: str, depth: int) -> Case:
    full = preset(name).core.depth

    def resized(peer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        other = _model(name, depth, shape[2:])
        other.load_state_dict(peer.state_dict())
        return other

    return Case(
        preset=name,
        peer="transformers VideoMAEForVideoClassification",
        build=lambda: _model(name, depth),
        convert=lambda peer: hub.from_transformers(peer, head=True),
        outputs=_outputs,
        shape=(1, 3, 16, 224, 224),
        other=(2, 3, 6, 96, 128),
        resize=resized,
        overrides={"depth": depth} if depth < full else {},
        blocks=f"{depth} of {full}" if depth < full else "all",
        differs=("pool_eps",),
        slow=depth > 12,
        note="the peer at the epsilon of VideoMAE's own code but for its last norm; other tables recomputed",
    )


CASES = [
    _case("videomae_small_patch16_224", 2),
    _case("videomae_small_patch16_224", 12),
    _case("videomae_base_patch16_224", 12),
    _case("videomae_large_patch16_224", 2),
    _case("videomae_huge_patch16_224", 2),
    _case("videomae_large_patch16_224", 24),
]
