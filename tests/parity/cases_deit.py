"""timm's DeiT models against the deit_* and deit3_* presets, transformers' DeiT with teacher beside them."""

from functools import partial

import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import list_models, preset
from tests.parity.case import Case
from tests.parity.cases_vit import timm_case


def _deit(name: str) -> Case:
    width, depth = preset(name).core.width, preset(name).core.depth
    return timm_case(name, depth if width <= 384 or name.endswith("base_patch16_224") else 2)


class _TwoHeads(nn.Module):
    """transformers' DeiT, told to resample its positions as pictures come."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        config = transformers.DeiTConfig(
            hidden_size=192,
            num_hidden_layers=depth,
            num_attention_heads=3,
            intermediate_size=768,
            num_labels=10,
        )
        self.model = transformers.DeiTForImageClassificationWithTeacher(config)

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        deit = self.model.deit(x, interpolate_pos_encoding=True)
        tokens = deit.last_hidden_state
        logits = self.model(x, interpolate_pos_encoding=True).logits
        return {"tokens": tokens, "pooled": (tokens[:, 0] + tokens[:, 1]) / 2, "logits": logits}


_TRANSFORMERS = Case(
    preset="deit_tiny_distilled_patch16_224",
    peer="transformers DeiTForImageClassificationWithTeacher",
    build=partial(_TwoHeads, 12),
    convert=lambda peer: hub.from_transformers(peer.model, head=True),
    outputs=lambda peer, x: peer.outputs(x),
    other=(1, 3, 160, 224),
    differs=("norm_eps", "position_resample"),
    note="epsilon 1e-12 and bicubic positions as transformers has them",
)

CASES = [
    *map(_deit, [*list_models("deit_*"), *list_models("deit3_*")]),
    timm_case("deit3_large_patch16_224", 24, slow=True),
    _TRANSFORMERS,
]
