"""transformers' BertModel against bert_* and, averaged over real tokens, against minilm_*."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import preset
from tests.parity.case import Case


def _inputs(shape: tuple[int, ...]) -> dict[str, Tensor]:
    B, L = shape
    mask = torch.arange(L) < torch.randint(2, L + 1, (B, 1))
    mask[0] = True
    return {"ids": torch.randint(0, 30_000, shape), "mask": mask}


def _pooled(tokens: Tensor, mask: Tensor, pool: str) -> Tensor:
    if pool == "cls":
        return tokens[:, 0]
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _case(name: str, depth: int, slow: bool = False) -> Case:
    config = preset(name)
    core = config.core
    theirs = transformers.BertConfig(
        hidden_size=core.width,
        num_hidden_layers=depth,
        num_attention_heads=core.num_heads,
        intermediate_size=core.mlp_dim,
    )

    def outputs(peer: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
        p: Any = peer
        tokens = p(x["ids"], attention_mask=x["mask"].long()).last_hidden_state
        return {"tokens": tokens[x["mask"]], "pooled": _pooled(tokens, x["mask"], config.pool)}

    def ours(tower: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
        t: Any = tower
        tokens = t.forward_tokens(x["ids"], x["mask"]).values
        return {"tokens": tokens[x["mask"]], "pooled": t.features(x["ids"], x["mask"])}

    return Case(
        preset=name,
        peer="transformers BertModel",
        build=lambda: transformers.BertModel(theirs),
        convert=lambda peer: hub.from_transformers(peer, pool=config.pool),
        outputs=outputs,
        ours=ours,
        inputs=_inputs,
        shape=(3, 128),
        other=(3, 37),
        overrides={"depth": depth} if depth < core.depth else {},
        blocks=f"{depth} of {core.depth}" if depth < core.depth else "all",
        slow=slow,
        note="texts of many lengths, padded and masked",
    )


CASES = [
    _case("minilm_l6", 6),
    _case("minilm_l12", 12),
    _case("bert_base", 2),
    _case("bert_large", 2),
    _case("bert_base", 12, slow=True),
]
