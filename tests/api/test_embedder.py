"""`mmvit.load(...)` and `encode`: every form of input, order, batches, calibrated similarity, errors."""

import io
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import mmvit
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordPieceTokenizer
from mmvit.hub import save
from mmvit.models.config import CoreConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.presets import build_model

CORE = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fox", "violin", "of", "picture", "drawing", "red"]


def save_pair(path, **fields):
    torch.manual_seed(0)
    text = TextTowerConfig(core=CORE, vocab_size=len(WORDS), context_length=8, embed_dim=16, pool="mean")
    image = ImageTowerConfig(core=CORE, image_size=(16, 16), patch_size=8)
    model = build_model(DualEncoderConfig(image=image, text=text, **fields))
    words = WordPieceTokenizer("\n".join(WORDS).encode(), context_length=8)
    save(model, path, preprocess=ImagePreprocess(size=(16, 16)), tokenizer=words)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("api") / "pair")


@pytest.fixture(scope="module")
def model(folder):
    return mmvit.load(folder)


def pictures(count: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in range(count)]


def test_what_a_model_says_about_itself(model) -> None:
    assert model.modalities == ("image", "text")
    assert model.embed_dim == 16
    assert len(model.fingerprint) == 64


def test_embeddings_are_unit_float32_rows_on_the_cpu_in_order(model) -> None:
    z = model.encode(image=pictures(), batch_size=2)
    assert z.shape == (5, 16)
    assert z.dtype == torch.float32
    assert z.device.type == "cpu"
    assert torch.allclose(z.norm(dim=1), torch.ones(5), atol=1e-6)
    pixels = torch.stack([model.preprocess(p) for p in pictures()])
    with torch.no_grad():
        assert torch.allclose(z, model.model.encode_image(pixels), atol=1e-6)
    w = model.encode(text=["a fox", "a red violin", "of"], batch_size=2)
    tokens = model.tokenizer(["a fox", "a red violin", "of"])
    with torch.no_grad():
        assert torch.allclose(w, model.model.encode_text(tokens.ids, tokens.mask), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_change_nothing(model, batch_size) -> None:
    assert torch.allclose(
        model.encode(image=pictures(), batch_size=batch_size), model.encode(image=pictures()), atol=1e-6
    )


def test_every_form_of_a_picture_gives_the_same(model, tmp_path) -> None:
    picture = pictures(1)[0]
    picture.save(tmp_path / "p.png")
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    forms = [picture, tmp_path / "p.png", str(tmp_path / "p.png"), buffer.getvalue(), np.asarray(picture)]
    z = model.encode(image=forms)
    assert torch.equal(z, z[:1].expand(5, -1))
    for form in forms:
        # One alone counts as a list of one.
        assert torch.allclose(model.encode(image=form), z[:1], atol=1e-6)
    stack = np.stack([np.asarray(picture)] * 2)
    assert torch.allclose(model.encode(image=stack), z[:2], atol=1e-6)
    assert torch.equal(model.encode(image=iter(forms)), z)
    assert torch.equal(model.encode(text="a fox"), model.encode(text=["a fox"]))
    assert model.encode(image=[]).shape == (0, 16)


def test_similarity_is_calibrated_as_trained(tmp_path, model) -> None:
    z, w = model.encode(image=pictures(3)), model.encode(text=["a fox", "a violin"])
    p = model.similarity(z, w)
    assert torch.allclose(p.sum(1), torch.ones(3), atol=1e-6)
    assert torch.allclose(p, (model.model.logit_scale.exp() * z @ w.T).softmax(1), atol=1e-6)
    sigmoid = mmvit.load(save_pair(tmp_path / "s", activation="sigmoid", logit_bias_init=-3.0))
    p = sigmoid.similarity(z, w)
    assert torch.allclose(p, torch.sigmoid(math.exp(2.6593) * z @ w.T - 3), atol=1e-5)
    assert torch.allclose(sigmoid.similarity(5 * z, w), p, atol=1e-6), "inputs need not be normalised"


def test_save_and_load_again(model, tmp_path) -> None:
    model.save(tmp_path / "copy")
    again = mmvit.load(tmp_path / "copy")
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.encode(text=["a fox"]), model.encode(text=["a fox"]))


def test_bfloat16_is_close_and_still_float32_outside(folder, model) -> None:
    half = mmvit.load(folder, dtype=torch.bfloat16)
    z = half.encode(image=pictures())
    assert z.dtype == torch.float32
    assert (z * model.encode(image=pictures())).sum(1).min() > 0.99
    assert not torch.equal(z, model.encode(image=pictures())), "bfloat16 was not used"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(folder, model) -> None:
    z = mmvit.load(folder, device="cuda").encode(image=pictures())
    assert torch.allclose(z, model.encode(image=pictures()), atol=1e-4)


def test_cut_texts_are_counted(model, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        model.encode(text=["a fox", "a red fox of a picture of a drawing of a violin"])
    assert "1 of 2 texts were cut to 8 tokens" in caplog.text


def test_fewer_patches_of_any_tower_of_ours(model) -> None:
    whole, half = model.encode(image=pictures(2)), model.encode(image=pictures(2), keep_rate=0.5)
    pixels = torch.stack([model.preprocess(p) for p in pictures(2)])
    keep = torch.randperm(4, generator=torch.Generator().manual_seed(0))[:2].sort().values.expand(2, -1)
    with torch.no_grad():
        assert torch.allclose(half, normalize(model.model.image(pixels, keep), dim=-1), atol=1e-6)
    assert not torch.allclose(half, whole, atol=1e-4)


def test_mistakes_are_named(model, tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    for call, error, message in (
        ({"audio": [1]}, ValueError, "does not embed 'audio': valid: image, text"),
        ({"imagee": ["x"]}, ValueError, "does not embed 'imagee': did you mean image"),
        ({}, ValueError, "exactly one of image, text, got none"),
        ({"image": pictures(1), "text": ["a"]}, ValueError, "got image, text"),
        ({"image": [*pictures(2), "nowhere.png"]}, FileNotFoundError, "image 2: no file 'nowhere.png'"),
        ({"image": [tmp_path / "broken.png"]}, ValueError, "image 0 '.*broken.png': image-unreadable"),
        ({"image": [3.5]}, ValueError, "image 0: "),
        ({"text": ["a", 7]}, ValueError, "text 1 is a int, expected str"),
        ({"text": ["a"], "batch_size": 0}, ValueError, "batch_size is 0"),
    ):
        with pytest.raises(error, match=message):
            model.encode(**call)
    with pytest.raises(ValueError, match=r"b is \(1, 3\), expected \(rows, 16\)"):
        model.similarity(torch.ones(1, 16), torch.ones(1, 3))
    with pytest.raises(FileNotFoundError, match="no model folder at 'nowhere'"):
        mmvit.load("nowhere")


def test_towers_alone_embed_what_they_can(tmp_path) -> None:
    torch.manual_seed(0)
    tower = build_model(ImageTowerConfig(core=CORE, image_size=(16, 16), patch_size=8))
    save(tower, tmp_path / "t", preprocess=ImagePreprocess(size=(16, 16)))
    model = mmvit.load(tmp_path / "t")
    assert model.modalities == ("image",)
    z = model.encode(image=pictures(2))
    assert torch.allclose(model.similarity(z, z), normalize(z) @ normalize(z).T, atol=1e-6)
    with pytest.raises(ValueError, match="does not embed 'text'"):
        model.encode(text=["a"])
    with pytest.raises(ValueError, match="needs a model that reads text"):
        mmvit.ZeroShotClassifier(model, ["a"])


OFFLINE = """
import socket, sys

def refused(*_, **__):
    raise OSError("the network is off")

socket.socket.connect = refused
socket.create_connection = refused
socket.getaddrinfo = refused
import mmvit
model = mmvit.load(sys.argv[1])
clf = mmvit.ZeroShotClassifier(model, ["fox", "violin"])
print(clf.predict([sys.argv[2]])[0][0].label)
heavy = {"timm", "open_clip", "transformers", "faiss", "torchvision", "huggingface_hub", "matplotlib"}
print(sorted(heavy & set(sys.modules)))
"""


def test_a_fresh_process_answers_without_network_and_light(folder, model, tmp_path, root) -> None:
    picture = pictures(1)[0]
    picture.save(tmp_path / "p.png")
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(folder), str(tmp_path / "p.png")],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    label, heavy = run.stdout.split("\n")[:2]
    assert label == mmvit.ZeroShotClassifier(model, ["fox", "violin"]).predict([picture])[0][0].label
    assert heavy == "[]"
