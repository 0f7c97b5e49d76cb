"""What we write, transformers reads: same tokens, embeddings, logits (limit 1e-5), pictures and token ids."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer, SentencePieceTokenizer, WordPieceTokenizer
from mmvit.data.text_sentencepiece import train_sentencepiece
from mmvit.hub import load, save, to_transformers
from mmvit.hub.convert.from_transformers import from_transformers
from mmvit.hub.convert.transformers import tables
from mmvit.hub.export.feeding import PROBES
from mmvit.hub.export.to_transformers import read_quietly
from mmvit.models.config import (
    ClassifierConfig,
    CoreConfig,
    DualEncoderConfig,
    ForeignImageTowerConfig,
    ImageTowerConfig,
    TextTowerConfig,
)
from mmvit.models.core_config import MixerConfig
from mmvit.models.presets import build_model

CORE = CoreConfig(width=32, depth=2, num_heads=4, mlp_dim=64)
TOWER = ImageTowerConfig(core=CORE, image_size=(32, 32), patch_size=8)
LENGTH = 12


def core(**fields) -> CoreConfig:
    return dataclasses.replace(CORE, **fields)


def clip(vocab_size: int, activation: str = "gelu", **fields) -> DualEncoderConfig:
    """A pair of CLIP's form, the two towers of different sizes."""
    image = dataclasses.replace(
        TOWER,
        core=core(norm_first=True, norm_eps=1e-5, activation=activation),
        patch_bias=False,
        embed_dim=24,
        head_bias=False,
    )
    text = TextTowerConfig(
        core=core(width=16, depth=1, causal=True, norm_eps=1e-5, activation=activation),
        vocab_size=vocab_size,
        context_length=LENGTH,
        pad_mask=False,
        embed_dim=24,
        head_bias=False,
    )
    return dataclasses.replace(DualEncoderConfig(image=image, text=text), **fields)


def siglip(vocab_size: int) -> DualEncoderConfig:
    eager = core(activation="gelu_tanh")
    return DualEncoderConfig(
        image=dataclasses.replace(TOWER, core=eager, class_token=False, pool="map"),
        text=TextTowerConfig(
            core=eager,
            vocab_size=vocab_size,
            context_length=LENGTH,
            pool="last",
            pad_mask=False,
            embed_dim=32,
        ),
        logit_bias_init=-10.0,
        logit_scale_max=None,
        activation="sigmoid",
    )


def random(config):
    """The model of a config with every parameter random, gains around 1, so that none can be forgotten."""
    model, generator = build_model(config), torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        value.data = 0.1 * torch.randn(value.shape, generator=generator)
        if ("norm" in name and name.endswith("weight")) or name.endswith("gamma"):
            value.data += 1
    return model.eval()


def pixels(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def read(folder, **arguments):
    """The peer in a folder, all of whose tensors were found and used."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    more = {"add_pooling_layer": False} if name == "ViTModel" else {}
    peer, info = read_quietly(
        getattr(transformers, name), folder, output_loading_info=True, **more, **arguments
    )
    assert not any(info.values()), info
    return peer.eval()


def names(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def published_names(peer, folder) -> set[str]:
    """Names in a file that transformers writes of a new model; a loaded one keeps those it was read by."""
    more = {"add_pooling_layer": False} if type(peer).__name__ == "ViTModel" else {}
    type(peer)(peer.config, **more).save_pretrained(folder)
    return names(folder)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05, "too flat to tell anything"
    assert (ours - theirs).abs().max() < 1e-5


@pytest.fixture(scope="module")
def words() -> SentencePieceTokenizer:
    captions = [f"a {c} {thing} in the {place}, number {n}" for n in range(3) for c in ("red", "blue")
                for thing in ("fox", "violin", "straße") for place in ("wood", "café")]  # fmt: skip
    model, _ = train_sentencepiece(captions, 320)
    return SentencePieceTokenizer(model, context_length=LENGTH)


TOWERS = {
    "ViT": (TOWER, "ViTModel"),
    "ViT with another epsilon and tanh": (
        dataclasses.replace(TOWER, core=core(norm_eps=1e-12, activation="gelu_tanh")),
        "ViTModel",
    ),
    "no biases": (dataclasses.replace(TOWER, patch_bias=False, core=core(qkv_bias=False)), "ViTModel"),
    "class token without position": (dataclasses.replace(TOWER, class_position=False), "ViTModel"),
    "sine positions": (dataclasses.replace(TOWER, position="sincos2d"), "ViTModel"),
    "not square": (dataclasses.replace(TOWER, image_size=(32, 48)), "ViTModel"),
    "DINOv2": (dataclasses.replace(TOWER, core=core(layer_scale=1e-5)), "Dinov2Model"),
    "DINOv2 without biases": (
        dataclasses.replace(TOWER, patch_bias=False, core=core(layer_scale=1.0, qkv_bias=False)),
        "Dinov2Model",
    ),
    "registers": (
        dataclasses.replace(TOWER, registers=3, core=core(layer_scale=1.0)),
        "Dinov2WithRegistersModel",
    ),
    "registers without LayerScale": (dataclasses.replace(TOWER, registers=3), "Dinov2WithRegistersModel"),
}


@pytest.mark.parametrize("case", TOWERS)
@torch.no_grad()
def test_towers(case, tmp_path) -> None:
    config, name = TOWERS[case]
    tower = random(config)
    assert to_transformers(tower, tmp_path / "t").architecture == name
    peer, x = read(tmp_path / "t"), torch.randn(2, 3, *config.image_size)
    close(tower.forward_tokens(x).values, peer(x).last_hidden_state)
    close(tower.features(x), peer(x).last_hidden_state[:, 0])
    close(tower.features(x), from_transformers(tmp_path / "t").features(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"], "nothing half-written stays"
    assert names(tmp_path / "t") == published_names(peer, tmp_path / "new")


@pytest.mark.parametrize("case", ["ViT", "no biases", "DINOv2", "registers"])
@torch.no_grad()
def test_classifiers(case, tmp_path) -> None:
    model = random(ClassifierConfig(tower=TOWERS[case][0], num_classes=5))
    name = TOWERS[case][1].removesuffix("Model") + "ForImageClassification"
    assert to_transformers(model, tmp_path / "c").architecture == name
    close(model(pixels()), read(tmp_path / "c")(pixels()).logits)
    close(model.features(pixels()), from_transformers(tmp_path / "c").features(pixels()))
    if name.startswith("ViT"):  # DINOv2's classifier reads the mean of the patches too
        close(model(pixels()), from_transformers(tmp_path / "c", head=True)(pixels()))


@pytest.mark.parametrize("kind", ["CLIP", "CLIP with QuickGELU", "CLIP, no biases, padding hidden", "SigLIP"])
@torch.no_grad()
def test_pairs(kind, words, tmp_path) -> None:
    config = (siglip if kind == "SigLIP" else clip)(words.vocab_size)
    if "Quick" in kind:
        config = clip(words.vocab_size, "quick_gelu")
    if "no biases" in kind:
        image = dataclasses.replace(config.image, core=dataclasses.replace(config.image.core, qkv_bias=False))
        config = dataclasses.replace(
            config, image=image, text=dataclasses.replace(config.text, pad_mask=True)
        )
    pair = random(config)
    text = words(["a red fox", "the blue violin in the wood, number two", ""])
    to_transformers(pair, tmp_path / "p", tokenizer=words)
    peer = read(tmp_path / "p")
    assert names(tmp_path / "p") == published_names(peer, tmp_path / "new")
    out = peer(input_ids=text.ids, pixel_values=pixels())
    again = from_transformers(tmp_path / "p")
    for side, ours, theirs, back in (
        ("image", pair.encode_image(pixels()), out.image_embeds, again.encode_image(pixels())),
        ("text", pair.encode_text(text.ids, text.mask), out.text_embeds, again.encode_text(*text_of(text))),
    ):
        assert ours.shape == theirs.shape, side
        close(ours, theirs)
        close(ours, back)
    logits = pair.logit_scale.exp() * pair.encode_image(pixels()) @ pair.encode_text(text.ids, text.mask).T
    logits = logits if pair.logit_bias is None else logits + pair.logit_bias
    assert (logits - out.logits_per_image).abs().max() < 1e-5
    assert torch.equal(pair.logit_scale, again.logit_scale)


def text_of(text) -> tuple[torch.Tensor, torch.Tensor]:
    return text.ids, text.mask


@torch.no_grad()
def test_a_saved_pair_goes_out_with_pictures_and_words(tmp_path) -> None:
    """From our folder to theirs: their processor, fed with a picture and strings, agrees with ours."""
    bpe = ClipTokenizer(context_length=LENGTH)
    pair = random(clip(bpe.vocab_size))
    preprocess = ImagePreprocess(size=(32, 32), resize="shortest_crop", crop_fraction=0.9)
    save(pair, tmp_path / "ours", preprocess=preprocess, tokenizer=bpe)
    done = to_transformers(tmp_path / "ours", tmp_path / "theirs")
    assert done.notes == ()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "theirs", local_files_only=True)
    texts = ["a photo of a fox", "two violins and a drum: 12.5 % off"]
    x = np.linspace(0, 255, 90 * 60 * 3).reshape(90, 60, 3)
    picture = Image.fromarray((128 + 127 * np.sin(x / 9)).astype(np.uint8))
    fed = processor(text=texts, images=[picture], padding=True, truncation=True, return_tensors="pt")
    ours = load(tmp_path / "ours")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pair.config.image.mean, pair.config.image.std))
    normal = (ours.preprocess(picture) / 255 - mean) / std
    assert fed["pixel_values"].shape == (1, 3, 32, 32)
    # Another library's filters: at most two levels of 255 apart.
    assert (fed["pixel_values"][0] - normal).abs().max() < 2.01 / 255 / 0.5
    peer = read(tmp_path / "theirs")
    words = ours.tokenizer(texts)
    theirs = peer(**fed)
    close(ours.model.encode_text(words.ids, words.mask), theirs.text_embeds)
    assert (ours.model.encode_image(normal[None]) * theirs.image_embeds).sum() > 0.999


def wordpieces(sep: bool) -> WordPieceTokenizer:
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"abcdefghijklmnopqrstuvwxyz0123456789.,-'",
        "fox",
        "##x",
        "##o",
    ]
    return WordPieceTokenizer("\n".join(pieces).encode(), context_length=LENGTH, sep=sep)


@pytest.mark.parametrize("kind", ["clip", "wordpiece", "sentencepiece"])
def test_tokenizers_give_the_same_ids(kind, words, tmp_path) -> None:
    tokenizer = {
        "clip": ClipTokenizer(context_length=LENGTH),
        "wordpiece": wordpieces(True),
        "sentencepiece": words,
    }
    tokenizer = tokenizer[kind]
    done = to_transformers(random(clip(tokenizer.vocab_size)), tmp_path / "p", tokenizer=tokenizer)
    assert done.notes == ()
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "p", local_files_only=True)
    texts = ["The red fox's 3 violins!", "x", *PROBES]
    ours = tokenizer(texts)
    theirs = peer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(theirs["input_ids"] * ours.mask, ours.ids * ours.mask)
    assert ours.truncated, "a text that is cut must be among them"


def test_siglip_wants_its_padding_equal_too(words, tmp_path) -> None:
    done = to_transformers(random(siglip(words.vocab_size)), tmp_path / "p", tokenizer=words)
    assert done.notes == ()
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "p", local_files_only=True)
    ids = peer(list(PROBES), padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, words(list(PROBES)).ids)


def test_a_tokenizer_that_would_give_other_ids_is_left_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mmvit.hub.export.feeding.PROBES", ("a fox", "fish &amp; chips"))
    bpe = ClipTokenizer(context_length=LENGTH)  # mends HTML, transformers' does not
    done = to_transformers(random(clip(bpe.vocab_size)), tmp_path / "p", tokenizer=bpe)
    assert done.notes == ("tokenizer left out: transformers gives other ids for 'fish &amp; chips'",)
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["config.json", "model.safetensors"]


REFUSED = {
    "map pooling": (dataclasses.replace(TOWER, pool="map"), "ViTModel is nearest: pool is 'map', expected"),
    "mean pooling": (dataclasses.replace(TOWER, pool="mean"), "pool is 'mean'"),
    "a head": (dataclasses.replace(TOWER, embed_dim=8), "embed_dim is 8, expected None"),
    "no final norm": (dataclasses.replace(TOWER, core=core(norm_last=False)), "core.norm_last is False"),
    "a norm first": (dataclasses.replace(TOWER, core=core(norm_first=True)), "core.norm_first is True"),
    "DINOv2's ratio": (
        dataclasses.replace(TOWER, core=core(layer_scale=1.0, mlp_dim=48)),
        "core.mlp_dim is 48, expected a multiple of width=32 for an mlp_ratio",
    ),
    "a classifier on the mean": (
        ClassifierConfig(tower=dataclasses.replace(TOWER, pool="mean"), num_classes=3),
        "tower.pool is 'mean'",
    ),
    "another core": (
        dataclasses.replace(
            TOWER,
            class_token=False,
            pool="mean",
            core=MixerConfig(width=32, depth=1, tokens=16, token_dim=8, mlp_dim=64),
        ),
        "core is a MixerConfig, expected a CoreConfig",
    ),
    "a peer's tower": (
        DualEncoderConfig(
            image=ForeignImageTowerConfig(
                library="timm", name="resnet10t", width=512, arguments={}, embed_dim=24
            ),
            text=clip(320).text,
        ),
        "image is timm's resnet10t: save it with that library",
    ),
    "a text tower": (clip(320).text, "does not write a text_tower"),
    "LiT": (
        DualEncoderConfig(
            image=dataclasses.replace(TOWER, embed_dim=32),
            text=TextTowerConfig(core=CORE, vocab_size=320, context_length=LENGTH, embed_dim=32),
        ),
        "no class for this dual_encoder.*text.core.causal is False",
    ),
    "CLIP with a bias": (clip(320, logit_bias_init=-1.0), "logit_bias_init is -1.0, expected None"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_expressed_names_its_field(case, words, tmp_path) -> None:
    config, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        to_transformers(build_model(config), tmp_path / "m", tokenizer=words)
    assert not list(tmp_path.iterdir())


def test_parts_that_do_not_fit_are_refused(words, tmp_path) -> None:
    pair = build_model(clip(words.vocab_size))
    with pytest.raises(ValueError, match="needs the id of the end token: pass tokenizer="):
        to_transformers(pair, tmp_path / "m")
    with pytest.raises(ValueError, match="tokenizer.sep is False"):
        to_transformers(pair, tmp_path / "m", tokenizer=wordpieces(False))
    pad = ImagePreprocess(size=(32, 32), resize="pad")
    with pytest.raises(ValueError, match="preprocess.resize is 'pad'"):
        to_transformers(pair, tmp_path / "m", tokenizer=words, preprocess=pad)
    with pytest.raises(ValueError, match="expected a folder, a loaded model or a module, got dict"):
        to_transformers({}, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_our_own_folder_is_not_overwritten(tmp_path) -> None:
    preprocess = ImagePreprocess(size=(32, 32))
    tower = build_model(TOWER)
    save(tower, tmp_path / "ours", preprocess=preprocess)
    with pytest.raises(FileExistsError, match="was not written by transformers"):
        to_transformers(tmp_path / "ours", tmp_path / "ours")
    assert load(tmp_path / "ours").preprocess == preprocess
    to_transformers(tower, tmp_path / "theirs")
    to_transformers(tower, tmp_path / "theirs", preprocess=preprocess)
    assert (tmp_path / "theirs" / "preprocessor_config.json").is_file()


def test_names_that_transformers_would_not_read_are_an_error(tmp_path, monkeypatch) -> None:
    lines = [(s.replace("layernorm_before", "norm_before"), *t) for s, *t in tables.VIT]
    target = dataclasses.replace(choose(TOWER), table=lines)
    monkeypatch.setattr("mmvit.hub.export.to_transformers.choose_target", lambda config: ("ViTModel", target))
    with pytest.raises(ValueError, match="reads ViTModel otherwise than expected.*norm_before"):
        to_transformers(build_model(TOWER), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def choose(config):
    from mmvit.hub.export.targets import choose_target

    return choose_target(config)[1]
