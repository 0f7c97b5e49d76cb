"""One tower by name: a saved tower, a side of a saved pair; and errors for what has no such side."""

import pytest
import torch

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordPieceTokenizer
from mmvit.hub import load, load_image_tower, load_text_tower, save
from mmvit.models.config import CoreConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.foreign import ForeignImageTower
from mmvit.models.lit import DualEncoder
from mmvit.models.presets import build_model

CORE = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
IMAGE = ImageTowerConfig(core=CORE, image_size=(16, 16), patch_size=8)
TEXT = TextTowerConfig(core=CORE, vocab_size=5, context_length=8)
PICTURES = ImagePreprocess(size=(16, 16))
WORDS = WordPieceTokenizer(b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nfox", context_length=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("towers")
    pair = build_model(DualEncoderConfig(image=IMAGE, text=TEXT))
    save(pair, top / "pair", preprocess=PICTURES, tokenizer=WORDS)
    save(pair.image, top / "image", preprocess=PICTURES)
    save(pair.text, top / "text", tokenizer=WORDS)
    return top


@torch.no_grad()
def test_a_tower_alone_and_as_a_side_of_a_pair(folders) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    (alone, pictures), (side, _) = (load_image_tower(folders / name) for name in ("image", "pair"))
    assert torch.equal(alone(pixels), side(pixels))
    assert pictures == PICTURES
    (alone, words), (side, _) = (load_text_tower(folders / name) for name in ("text", "pair"))
    tokens = words(["fox fox"])
    assert torch.equal(alone(tokens.ids, tokens.mask), side(tokens.ids, tokens.mask))


@torch.no_grad()
def test_another_size_changes_preprocessing_and_the_tower_follows(folders) -> None:
    tower, pictures = load_image_tower(folders / "image", image_size=(24, 24))
    assert pictures.size == (24, 24)
    assert tower(torch.randn(1, 3, 24, 24)).shape == (1, 16)


def test_mistakes_are_named(folders) -> None:
    with pytest.raises(ValueError, match="holds a text_tower, expected one of image_tower or dual_encoder"):
        load_image_tower(folders / "text")
    with pytest.raises(ValueError, match="holds a image_tower, expected one of text_tower or dual_encoder"):
        load_text_tower(folders / "image")
    with pytest.raises(
        ValueError, match="'tim:resnet18' is neither a folder nor 'library:name': did you mean timm"
    ):
        load_image_tower("tim:resnet18")
    with pytest.raises(FileNotFoundError, match="no model folder at 'nowhere'"):
        load_image_tower("nowhere")


@torch.no_grad()
def test_a_pair_around_a_peers_tower_comes_back(tmp_path) -> None:
    image = ForeignImageTower.wrap("timm:resnet10t", image_size=(32, 32), center=True).eval()
    image.head.mean.normal_()
    text = TextTowerConfig(core=CORE, vocab_size=5, context_length=8, embed_dim=image.embed_dim)
    pair = DualEncoder(DualEncoderConfig(image=image.config, text=text), image=image)
    save(pair, tmp_path / "pair", preprocess=ImagePreprocess(size=(32, 32)), tokenizer=WORDS)
    again = load(tmp_path / "pair").model
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(again.encode_image(pixels), pair.eval().encode_image(pixels), atol=1e-6)
    assert again.config == pair.config
