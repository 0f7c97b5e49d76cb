"""transformers' Whisper encoder against the whisper_* presets."""

from typing import Any

import transformers
from torch import Tensor, nn

from mmvit import hub
from tests.parity.case import Case

# preset: (width, blocks, heads, mel bands, blocks that are compared)
SIZES = {
    "whisper_tiny": (384, 4, 6, 80, 4),
    "whisper_base": (512, 6, 8, 80, 6),
    "whisper_small": (768, 12, 12, 80, 2),
    "whisper_medium": (1024, 24, 16, 80, 2),
    "whisper_large": (1280, 32, 20, 80, 1),
    "whisper_large_v3": (1280, 32, 20, 128, 1),
}
NO_TEXT = {
    "vocab_size": 8,
    "decoder_layers": 1,
    "decoder_ffn_dim": 8,
    "max_target_positions": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _model(preset: str, rows: int = 1500) -> nn.Module:
    width, _, heads, bands, depth = SIZES[preset]
    config = transformers.WhisperConfig(
        d_model=width,
        encoder_layers=depth,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_attention_heads=heads,
        num_mel_bins=bands,
        max_source_positions=rows,
        **NO_TEXT,
    )
    return transformers.WhisperModel(config)


def _outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    p: Any = peer
    tokens = p.encoder(x.transpose(1, 2)).last_hidden_state
    return {"tokens": tokens, "pooled": tokens.mean(1)}


def _shorter(preset: str, peer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The peer for sounds of half as many tokens as frames, with the first rows of its positions."""
    state, rows = peer.state_dict(), shape[1] // 2
    name = "encoder.embed_positions.weight"
    other = _model(preset, rows)
    other.load_state_dict({**state, name: state[name][:rows]})
    return other


def _case(preset: str) -> Case:
    _, blocks, _, bands, depth = SIZES[preset]
    return Case(
        preset=preset,
        peer="transformers WhisperModel",
        build=lambda: _model(preset),
        convert=hub.from_transformers,
        outputs=_outputs,
        shape=(1, 3000, bands),
        other=(2, 200, bands),
        resize=lambda peer, shape: _shorter(preset, peer, shape),
        overrides={"depth": depth} if depth < blocks else {},
        blocks=f"{depth} of {blocks}" if depth < blocks else "all",
        note="the encoder; pooled is its mean; the peer told to take 2 s",
    )


CASES = [_case(preset) for preset in SIZES]
