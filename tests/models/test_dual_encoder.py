"""The pair: norms, cached features, temperature, precision."""

import math

import pytest
import torch

from mmvit.models.lit import DualEncoder
from mmvit.models.presets import create_model, preset

IDS = torch.randint(0, 50, (3, 5), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)


def pair(**overrides) -> DualEncoder:
    torch.manual_seed(0)
    return create_model("lit_mu", image_size=32, vocab_size=50, **overrides)


@pytest.mark.parametrize("mode", ["float32", "autocast", "bfloat16"])
def test_embeddings_are_float32_on_the_unit_sphere(mode):
    model = pair(embed_dim=24)
    if mode == "bfloat16":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        image, text = model(PIXELS, IDS)
    for z in (image, text):
        assert (z.shape, z.dtype) == ((3, 24), torch.float32)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(3), rtol=0, atol=1e-6)


def test_scalars_stay_float32_in_a_model_cast_to_half():
    model = pair(logit_bias_init=-10.0).bfloat16()
    assert model.text.pos_embed.dtype == torch.bfloat16
    assert model.logit_scale.dtype == model.logit_bias.dtype == torch.float32
    assert model.logit_scale.shape == ()
    assert model.logit_scale.item() == pytest.approx(math.log(10), abs=1e-6)
    assert model.logit_bias.item() == -10.0
    assert pair().logit_bias is None
    assert "logit_bias" not in pair().state_dict()


@pytest.mark.parametrize("center", [False, True])
def test_cached_features_give_the_same_embeddings(center):
    model = pair(embed_dim=24, center=center)
    if center:
        model.image.head.mean.normal_()
    features = model.image.features(PIXELS)
    assert features.shape == (3, 32)
    assert torch.equal(model.encode_image(features=features), model.encode_image(PIXELS))
    assert torch.equal(model(features=features)[0], model(PIXELS)[0])
    assert model(ids=IDS)[0] is None
    assert model(PIXELS)[1] is None


def test_mistakes_name_what_is_wrong():
    model = pair()
    with pytest.raises(ValueError, match="exactly one of them"):
        model.encode_image()
    with pytest.raises(ValueError, match="exactly one of them"):
        model.encode_image(PIXELS, torch.zeros(3, 32))
    with pytest.raises(ValueError, match="16 wide, expected 32: they were made by another image tower"):
        model.encode_image(features=torch.zeros(3, 16))


def test_temperature_starts_and_is_clamped_as_the_family_does():
    clip = preset("clip_base_patch32_224")
    assert clip.logit_scale_init == pytest.approx(math.log(1 / 0.07), abs=1e-4)
    model = pair(logit_scale_max=math.log(100))
    for value, wanted in ((7.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        model.logit_scale.data.fill_(value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(wanted, abs=1e-6)
    free = pair()
    free.logit_scale.data.fill_(7.0)
    free.clamp_logit_scale()
    assert free.logit_scale.item() == 7.0


def test_towers_can_be_given():
    donor = pair()
    model = DualEncoder(donor.config, image=donor.image)
    assert model.image is donor.image
    assert model.text is not donor.text


def test_state_dict_goes_through_the_meta_device():
    model = pair(logit_bias_init=-10.0, registers=2).eval()
    with torch.device("meta"):
        empty = DualEncoder(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.encode_image(PIXELS), model.encode_image(PIXELS))


def test_every_parameter_gets_a_gradient_when_both_sides_are_compared():
    model = pair(embed_dim=24, **{"image.depth": 2, "text.depth": 2, "image.pool": "map", "text.pool": "map"})
    image, text = model(PIXELS, IDS)
    (model.logit_scale.exp() * image @ text.T).square().sum().backward()
    # the image tower's class token is a key of the pooling, so nothing is left out
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_double_precision_stays_double():
    assert pair().double().encode_text(IDS).dtype == torch.float64


@pytest.mark.parametrize("padded", [False, True])
def test_towers_compile_as_one_graph_with_the_same_result(padded):
    model = pair(**{"image.depth": 2, "text.depth": 2}).eval()
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None] if padded else None
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(compiled(PIXELS, IDS, mask), model(PIXELS, IDS, mask), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
