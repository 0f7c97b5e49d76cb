"""Tables of names read backwards: what they write, they read again, bit for bit."""

from dataclasses import replace

import pytest
import torch

from mmvit.hub.convert import keymap
from mmvit.hub.convert.keymap import translate
from mmvit.hub.convert.transformers import tables
from mmvit.hub.export.untranslate import untranslate
from mmvit.models.config import CoreConfig, ImageTowerConfig
from mmvit.models.presets import build_model


@pytest.mark.parametrize("name", ["VIT", "DINOV2", "SIGLIP_VISION", "CLIP_VISION"])
def test_the_inverse_of_a_table_is_its_inverse(name) -> None:
    """Whatever a table reads, untranslate writes under the same names, bit for bit."""
    table = getattr(tables, name)
    core = CoreConfig(width=32, depth=2, num_heads=4, mlp_dim=64)
    plain = ImageTowerConfig(core=core, image_size=(32, 32), patch_size=8)
    configs = {
        "VIT": plain,
        "DINOV2": replace(plain, core=replace(core, layer_scale=1.0), registers=2),
        "SIGLIP_VISION": replace(plain, class_token=False, pool="map"),
        "CLIP_VISION": replace(plain, core=replace(core, norm_first=True), patch_bias=False),
    }
    state = {n: torch.randn_like(v) for n, v in build_model(configs[name]).state_dict().items()}
    theirs = untranslate(state, table, target="a peer")
    ours, report = translate(theirs, table, source="a peer")
    assert not report.left_out
    assert {n: tuple(v.shape) for n, v in ours.items()} == {n: tuple(v.shape) for n, v in state.items()}
    assert all(torch.equal(ours[n], state[n]) for n in state)


def test_tables_that_cannot_be_read_backwards_say_so() -> None:
    x = {"a.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="no place for our tensor 'a.weight'"):
        untranslate(x, [("b.*", "c.*")], target="P")
    with pytest.raises(ValueError, match="what makes 'a.weight' of 'b.weight' cannot be undone"):
        untranslate(x, [("b.weight", "a.weight", torch.neg)], target="P")
    with pytest.raises(ValueError, match="two of our tensors claim 'b'"):
        untranslate(x | {"c": torch.ones(2)}, [("b", "a.weight"), ("b", "c")], target="P")
    stacked = untranslate(
        {"qkv": torch.arange(6.0)}, [(n, f"qkv#{k}") for k, n in enumerate("qkv")], target="P"
    )
    assert {n: v.tolist() for n, v in stacked.items()} == {"q": [0, 1], "k": [2, 3], "v": [4, 5]}
    lines = [("z", keymap.LEFT_OUT + "gone"), ("b.*", "a.*")]
    assert untranslate(x, lines, target="P").keys() == {"b.weight"}
