"""transformers' ViTMAE against the mae_* presets: no patch hidden, positions random like everything else."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import list_models, preset
from tests.parity.case import Case


def _outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """All patches in their order: the random order of hiding is the order of the noise."""
    p: Any = peer
    count = (x.shape[2] // p.config.patch_size) * (x.shape[3] // p.config.patch_size)
    noise = torch.arange(count).expand(len(x), -1).float()
    tokens = p(x, noise=noise, interpolate_pos_encoding=True).last_hidden_state
    return {"tokens": tokens, "pooled": tokens[:, 0]}


def _case(name: str, depth: int) -> Case:
    config = preset(name)
    core, p = config.core, config.patch_size
    theirs = transformers.ViTMAEConfig(
        hidden_size=core.width,
        num_hidden_layers=depth,
        num_attention_heads=core.num_heads,
        intermediate_size=core.mlp_dim,
        patch_size=p,
        mask_ratio=0.0,
        layer_norm_eps=1e-6,
    )
    return Case(
        preset=name,
        peer="transformers ViTMAEModel",
        build=lambda: transformers.ViTMAEModel(theirs),
        convert=hub.from_transformers,
        outputs=_outputs,
        other=(2, 3, 10 * p, 13 * p),
        overrides={"depth": depth} if depth < core.depth else {},
        blocks=f"{depth} of {core.depth}" if depth < core.depth else "all",
        slow=core.width > 768 and depth == core.depth,
        note="the peer at the epsilon of MAE's own code",
    )


CASES = [
    *(_case(name, 2) for name in list_models("mae_*")),
    _case("mae_base_patch16_224", 12),
    _case("mae_large_patch16_224", 24),
]
