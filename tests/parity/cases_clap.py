"""transformers' CLAP against the htsat_* and clap_* presets."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import preset
from tests.parity.case import Case
from tests.parity.pairs import joined, real


def _audio(name: str) -> transformers.ClapAudioConfig:
    core = preset(name).core
    return transformers.ClapAudioConfig(
        patch_embeds_hidden_size=core.width, depths=core.depths, hidden_size=core.out_width
    )


def _unfolded(tokens: Tensor) -> Tensor:
    """Our tokens (B,64,D) as transformers returns them, (B,D,2,32): the four pieces of time in one line."""
    return tokens.unflatten(1, (4, 2, 8)).permute(0, 4, 2, 1, 3).flatten(3)


def _outputs(peer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    p: Any = peer
    out = p(x[:, None])
    return {"tokens": out.last_hidden_state, "pooled": out.audio_embeds}


def _ours(tower: nn.Module, x: Tensor) -> dict[str, Tensor]:
    t: Any = tower
    return {"tokens": _unfolded(t.forward_tokens(x).values), "pooled": t(x)}


def _sounds(shape: tuple[int, ...]) -> Tensor:
    """Decibels, as CLAP's spectrograms are."""
    return 15 * torch.randn(shape) - 30


def _tower(size: str) -> Case:
    return Case(
        preset=f"htsat_{size}",
        peer="transformers ClapAudioModelWithProjection",
        build=lambda: transformers.ClapAudioModelWithProjection(_audio(f"htsat_{size}")),
        convert=hub.from_transformers,
        outputs=_outputs,
        ours=_ours,
        shape=(1, 1001, 64),
        other=(2, 300, 64),
        inputs=_sounds,
        note="tokens, embeddings before they are normalised; stored statistics of the bands random too",
    )


def _pair_inputs(shape: tuple[int, ...]) -> dict[str, Tensor]:
    B, L = shape[0], shape[-1]
    mask = torch.arange(L) < torch.randint(2, L + 1, (B, 1))
    ids = torch.where(mask, torch.randint(3, 50_000, (B, L)), 1)
    return {"sounds": _sounds(shape[:3]), "ids": ids, "mask": mask}


def _pair_outputs(peer: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
    p: Any = peer
    sound = p.audio_model(x["sounds"][:, None])
    text = p.text_model(x["ids"], attention_mask=x["mask"].long())
    embedded = p.audio_projection(sound.pooler_output), p.text_projection(text.pooler_output)
    return {
        "tokens": joined(sound.last_hidden_state, real(text.last_hidden_state, x["mask"])),
        "pooled": joined(*embedded),
    }


def _pair_ours(pair: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
    p: Any = pair
    sound, text = p.image.forward_tokens(x["sounds"]), p.text.forward_tokens(x["ids"], x["mask"])
    return {
        "tokens": joined(_unfolded(sound.values), real(text.values, x["mask"])),
        "pooled": joined(p.image(x["sounds"]), p.text(x["ids"], x["mask"])),
    }


def _pair(size: str, depth: int) -> Case:
    config = transformers.ClapConfig(
        audio_config=_audio(f"htsat_{size}").to_dict(), text_config={"num_hidden_layers": depth}
    )
    return Case(
        preset=f"clap_{size}",
        peer="transformers ClapModel",
        build=lambda: transformers.ClapModel(config),
        convert=hub.from_transformers,
        outputs=_pair_outputs,
        ours=_pair_ours,
        shape=(1, 1001, 64, 77),
        other=(2, 500, 64, 20),
        inputs=_pair_inputs,
        overrides={"text.depth": depth} if depth < 12 else {},
        blocks=f"{depth} of 12 of the text tower" if depth < 12 else "all",
        slow=depth == 12,
        note="tokens and embeddings of both towers; the last number of a size is the text's length",
    )


CASES = [
    _tower("tiny"),
    _tower("base"),
    _tower("large"),
    _pair("tiny", 2),
    _pair("base", 2),
    _pair("tiny", 12),
]
