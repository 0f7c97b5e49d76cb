"""Detectors in folders: they come back whole with what feeds them, and a config that lies is refused."""

import json

import pytest
import torch

from mmvit import hub
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer
from mmvit.hub.plain import from_plain, kind_of, to_plain
from mmvit.models.config import DetectorConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.foreign import ForeignImageTower
from mmvit.models.owl import OwlDetector
from mmvit.models.presets import build_model, create_model, preset
from mmvit.models.surgery import to_detector
from mmvit.models.towers import join

CORE = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
CONFIG = DetectorConfig(
    image=ImageTowerConfig(core=CORE, image_size=(32, 32), patch_size=8),
    text=TextTowerConfig(core=CORE, vocab_size=49_408, context_length=8, embed_dim=12),
    objectness=True,
)
PICTURES = ImagePreprocess(size=(32, 32), resize="pad_corner", background=(0, 0, 0))
WORDS = ClipTokenizer().with_context(8)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    hub.save(build_model(CONFIG), tmp_path / "model", preprocess=PICTURES, tokenizer=WORDS)
    return tmp_path / "model"


@torch.no_grad()
def test_a_detector_comes_back_whole(folder):
    loaded = hub.load(folder)
    assert isinstance(loaded.model, OwlDetector)
    assert loaded.config["kind"] == "detector"
    assert (loaded.model.config, loaded.preprocess) == (CONFIG, PICTURES)
    torch.manual_seed(0)
    first = build_model(CONFIG).eval()
    text = loaded.tokenizer(["a fox", "a violin"])
    pixels = torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(1)).byte()
    wanted, found = (model(pixels, text.ids, text.mask) for model in (first, loaded.model))
    assert torch.equal(wanted.logits, found.logits)
    assert torch.equal(wanted.boxes, found.boxes)
    assert torch.equal(wanted.objectness, found.objectness)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: zero-shot-object-detection" in card
    assert "An open-vocabulary detector of 0.8" in card
    assert 'mmvit.Detector(mmvit.load("model"))' in card


def test_the_text_side_alone(folder):
    tower, words = hub.load_text_tower(folder)
    assert tower.embed_dim == 12
    assert words.fingerprint() == WORDS.fingerprint()
    with pytest.raises(ValueError, match="holds a detector, expected one of image_tower or dual_encoder"):
        hub.load_image_tower(folder)


def test_what_feeds_a_detector_is_asked_for(tmp_path):
    model = build_model(CONFIG)
    with pytest.raises(ValueError, match="a detector needs its preprocessing"):
        hub.save(model, tmp_path / "m", tokenizer=WORDS)
    with pytest.raises(ValueError, match="a detector needs its tokenizer"):
        hub.save(model, tmp_path / "m", preprocess=PICTURES)
    with pytest.raises(ValueError, match="the tokenizer gives 77 tokens, the text tower takes 8"):
        hub.save(model, tmp_path / "m", preprocess=PICTURES, tokenizer=ClipTokenizer())
    with pytest.raises(ValueError, match="expected multiples of patch_size=8"):
        hub.save(model, tmp_path / "m", preprocess=ImagePreprocess(size=(30, 30)), tokenizer=WORDS)


@torch.no_grad()
def test_a_peers_tower_comes_back_without_what_it_does_not_read(tmp_path):
    tower = ForeignImageTower.wrap("timm:mobilenetv3_small_050", image_size=(64, 64))
    text = create_model("text_mu", vocab_size=49_408, context_length=8)
    detector = to_detector(join(tower, text, embed_dim=8), merge="norm").eval()
    assert not any("conv_head" in name for name in detector.state_dict())
    pictures = ImagePreprocess(size=(64, 64))
    hub.save(detector, tmp_path / "m", preprocess=pictures, tokenizer=WORDS)
    loaded = hub.load(tmp_path / "m").model
    pixels, ids = torch.randn(1, 3, 64, 64), torch.randint(1, 900, (3, 8))
    assert torch.equal(loaded(pixels, ids).logits, detector(pixels, ids).logits)


def test_presets_are_detectors():
    config = preset("owlv2_base_patch16", image_size=96, **{"image.depth": 1, "text.depth": 1})
    assert kind_of(config) == "detector"
    assert from_plain("detector", json.loads(json.dumps(to_plain(config))), "here") == config
    with torch.device("meta"):
        model = build_model(config)
    assert isinstance(model, OwlDetector)
    assert (model.config.objectness, model.image.grid) == (True, (6, 6))
    narrow = preset("owlvit_base_patch32", embed_dim=64)
    assert (narrow.image.embed_dim, narrow.text.embed_dim) == (None, 64)
    with pytest.raises(ValueError, match="unknown option 'objectnes': did you mean objectness"):
        preset("owlvit_base_patch32", objectnes=True)


GREEDY = {
    "width": (("image", "core", "width", 10**6), "tensors of another shape"),
    "embed_dim": (("text", "embed_dim", 10**9), "tensors of another shape"),
    "depth": (("text", "core", "depth", 10**9), "depth is 1000000000, but there are"),
    "a head": (("image", "embed_dim", 12), "no head and no pooling"),
    "objectness": (("objectness", False), "tensors unexpected: objectness_head"),
    "a merge": (("merge", "add"), "'model.merge' is 'add', expected one of mul_ln, norm, drop"),
    "words for numbers": (("merge_eps", "small"), "'model.merge_eps' is 'small', expected float"),
    "an unknown key": (("mask_head", True), "unknown key 'model.mask_head'"),
}


@pytest.mark.parametrize("case", GREEDY)
def test_a_config_that_lies(case, folder):
    (*path, value), message = GREEDY[case]
    config = json.loads((folder / "config.json").read_text())
    where = config["model"]
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as caught:
        hub.load(folder)
    assert "\n" not in str(caught.value)
