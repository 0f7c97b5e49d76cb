"""transformers' Audio Spectrogram Transformer against the ast_* presets."""

from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor, cat, nn

from mmvit import hub
from tests.parity.case import Case


def _model(depth: int, frames: int = 1024, bands: int = 128) -> nn.Module:
    config = transformers.ASTConfig(
        max_length=frames, num_mel_bins=bands, num_hidden_layers=depth, layer_norm_eps=1e-6, num_labels=7
    )
    return transformers.ASTForAudioClassification(config)


def _outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    p: Any = peer
    out = p.audio_spectrogram_transformer(x)
    pooled = p.classifier.layernorm(out.pooler_output)
    return {"tokens": out.last_hidden_state, "pooled": pooled, "logits": p(x).logits}


def _resized(peer: Any, shape: tuple[int, ...]) -> nn.Module:
    """The peer for another spectrogram, positions by the rule of AST's own code: time before frequency."""
    depth = peer.config.num_hidden_layers
    other, state = _model(depth, *shape[1:]), peer.state_dict()
    name = "audio_spectrogram_transformer.embeddings.position_embeddings"
    f, t = (shape[2] - 16) // 10 + 1, (shape[1] - 16) // 10 + 1
    grid = state[name][:, 2:].transpose(1, 2).reshape(1, 768, 12, 101)
    if t <= 101:
        grid = grid[:, :, :, 50 - int(t / 2) : 50 - int(t / 2) + t]
    else:
        grid = F.interpolate(grid, size=(12, t), mode="bilinear")
    if f <= 12:
        grid = grid[:, :, 6 - int(f / 2) : 6 - int(f / 2) + f, :]
    else:
        grid = F.interpolate(grid, size=(f, t), mode="bilinear")
    state[name] = cat([state[name][:, :2], grid.reshape(1, 768, f * t).transpose(1, 2)], 1)
    other.load_state_dict(state)
    return other


def _case(depth: int, other: tuple[int, ...], how: str) -> Case:
    return Case(
        preset="ast_base_patch16",
        peer="transformers ASTForAudioClassification",
        build=lambda: _model(depth),
        convert=lambda peer: hub.from_transformers(peer, head=True),
        outputs=_outputs,
        shape=(1, 1024, 128),
        other=other,
        resize=_resized,
        overrides={"depth": depth} if depth < 12 else {},
        blocks=f"{depth} of 12" if depth < 12 else "all",
        differs=("pool_eps",),
        note=f"the peer at the epsilon of AST's own code but for its last norm; {how}",
    )


CASES = [
    _case(2, (2, 400, 160), "time cut, frequency stretched"),
    _case(12, (1, 1100, 96), "time stretched, frequency cut"),
]
