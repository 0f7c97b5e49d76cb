"""transformers' OwlViT and Owlv2 against the owl* presets: both towers, the detection heads left out."""

from functools import partial

import transformers

from mmvit import hub
from mmvit.models.presets import list_models, preset
from tests.parity import pairs
from tests.parity.case import Case


def config_of(name: str, depth: int | None):
    """transformers' config of a preset, with `depth` blocks in each tower, None = all."""
    pair = preset(name)
    kind = "OwlViT" if name.startswith("owlvit") else "Owlv2"
    cores = {"vision": pair.image.core, "text": pair.text.core}
    sides = {
        side: {
            "hidden_size": core.width,
            "num_hidden_layers": depth or core.depth,
            "num_attention_heads": core.num_heads,
            "intermediate_size": core.mlp_dim,
        }
        for side, core in cores.items()
    }
    sides["vision"] |= {"image_size": pair.image.image_size[0], "patch_size": pair.image.patch_size}
    return getattr(transformers, f"{kind}Config")(
        text_config=sides["text"], vision_config=sides["vision"], projection_dim=pair.image.embed_dim
    )


def _case(name: str, depth: int | None = 2) -> Case:
    pair = preset(name)
    side, p, full = pair.image.image_size[0], pair.image.patch_size, pair.image.core.depth
    kind = "OwlViTModel" if name.startswith("owlvit") else "Owlv2Model"
    return Case(
        preset=name,
        peer=f"transformers {kind}",
        build=lambda: getattr(transformers, kind)(config_of(name, depth)),
        convert=hub.from_transformers,
        outputs=pairs.transformers_pair,
        ours=pairs.ours,
        inputs=pairs.pair_inputs,
        shape=(2, 3, side, side, 16),
        other=(2, 3, 10 * p, 13 * p, 9),
        overrides={"image.depth": depth, "text.depth": depth} if depth else {},
        blocks=f"{depth} of {full}" if depth else "all",
        slow=depth is None,
        note=pairs.PAIR_NOTE,
    )


CASES = [*map(partial(_case), list_models("owl*")), _case("owlvit_base_patch32", depth=None)]
