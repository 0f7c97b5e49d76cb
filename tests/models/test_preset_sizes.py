"""Parameters of the pairs, video, audio and BERT presets: published counts, or those of the peers in full."""

import pytest
import torch

import mmvit
from mmvit.models.presets import build_model, preset

# open_clip's own tables of its models, in millions
OPEN_CLIP = {
    "clip_base_patch32_224": 151.28,
    "clip_base_patch16_224": 149.62,
    "clip_large_patch14_224": 427.62,
    "clip_large_patch14_336": 427.94,
    "clip_huge_patch14_224": 986.11,
    "clip_giant_patch14_224": 1366.68,
    "clip_gigantic_patch14_224": 2539.57,
    "siglip_base_patch16_224": 203.16,
    "siglip_base_patch16_256": 203.2,
    "siglip_base_patch16_384": 203.45,
    "siglip_base_patch16_512": 203.79,
    "siglip_large_patch16_256": 652.15,
    "siglip_large_patch16_384": 652.48,
    "siglip_so400m_patch14_224": 877.36,
    "siglip_base_patch16_256_i18n": 370.63,
    "siglip2_base_patch32_256": 376.86,
    "siglip2_base_patch16_224": 375.19,
    "siglip2_large_patch16_256": 881.53,
    "siglip2_so400m_patch14_224": 1135.46,
    "siglip2_so400m_patch16_256": 1135.67,
    "siglip2_giantopt_patch16_256": 1871.39,
}


def count(name: str, **overrides) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(preset(name, **overrides)).parameters())


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_pairs(name):
    assert round(count(name) / 1e6, 2) == OPEN_CLIP[name]


def test_quickgelu_changes_no_weight():
    for name in mmvit.list_models("clip_*_quickgelu"):
        assert count(name) == count(name.removesuffix("_quickgelu"))


def test_clips_and_sounds():
    assert count("videomae_base_patch16_224", num_classes=400) == 86_534_800
    assert count("ast_base_patch16", num_classes=527) == 86_594_063


@pytest.mark.parametrize(("name", "pooler"), [("minilm_l6", 22_713_216), ("bert_base", 109_482_240)])
def test_bert_less_its_pooler_and_with_token_types_in_the_positions(name, pooler):
    width = preset(name).core.width
    assert count(name) == pooler - (width * width + width) - 2 * width


def peers():
    """Preset -> the peer in full, on the meta device, and how many of its parameters ours does without."""
    transformers = pytest.importorskip("transformers")
    open_clip = pytest.importorskip("open_clip")
    from tests.parity.cases_clip import open_clip_model
    from tests.parity.cases_owl import config_of

    for name in mmvit.list_models("owl*"):
        kind = "OwlViT" if name.startswith("owlvit") else "Owlv2"
        peer = getattr(transformers, f"{kind}ForObjectDetection")(config_of(name, None))
        unread = getattr(peer, kind.lower()).visual_projection.weight.numel() + 1  # and the temperature
        yield name, peer, unread
    for name, theirs in (("coca_base_patch32", "coca_ViT-B-32"), ("coca_large_patch14", "coca_ViT-L-14")):
        peer = open_clip_model(theirs, None, kind=open_clip.CoCa)
        yield name, peer, sum(p.numel() for p in peer.text_decoder.parameters())
    for name in mmvit.list_models("mae_*"):
        core, p = preset(name).core, preset(name).patch_size
        config = transformers.ViTMAEConfig(
            hidden_size=core.width,
            num_hidden_layers=core.depth,
            num_attention_heads=core.num_heads,
            intermediate_size=core.mlp_dim,
            patch_size=p,
        )
        yield name, transformers.ViTMAEModel(config), ((224 // p) ** 2 + 1) * core.width  # the fixed table


def test_the_peers_have_as_many():
    with torch.device("meta"):
        found = {
            name: (sum(p.numel() for p in peer.parameters()) - without) for name, peer, without in peers()
        }
    assert len(found) == 10
    assert found == {name: count(name) for name in found}
