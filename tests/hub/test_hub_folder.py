"""A saved model comes back whole, and every way in which its folder can be wrong is one clear error."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordPieceTokenizer
from mmvit.hub import is_whole, load, save
from mmvit.hub.fingerprint import fingerprint
from mmvit.models.config import CoreConfig, DualEncoderConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.presets import build_model

CORE = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
IMAGE = ImageTowerConfig(core=CORE, image_size=(16, 16), patch_size=8)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fox", "violin", "of", "picture", "drawing", "##s"]
PAIR = DualEncoderConfig(
    image=IMAGE,
    text=TextTowerConfig(core=CORE, vocab_size=len(WORDS), context_length=8, embed_dim=16),
    logit_bias_init=-2.0,
    activation="sigmoid",
)
PICTURES = ImagePreprocess(size=(16, 16), resize="pad", background=(1, 2, 3))


def tokenizer() -> WordPieceTokenizer:
    return WordPieceTokenizer("\n".join(WORDS).encode(), context_length=8)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return build_model(PAIR)


@pytest.fixture
def folder(pair, tmp_path) -> Path:
    card = {"license": "apache-2.0", "metrics": {"acc1": 0.25}, "data": ["toy"], "base_models": ["a/b"]}
    save(pair, tmp_path / "model", preprocess=PICTURES, tokenizer=tokenizer(), card=card)
    return tmp_path / "model"


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_round_trip(pair, folder) -> None:
    loaded = load(folder)
    assert loaded.model.config == PAIR
    assert loaded.preprocess == PICTURES
    assert loaded.tokenizer.fingerprint() == tokenizer().fingerprint()
    for (name, a), (other, b) in zip(
        pair.state_dict().items(), loaded.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    assert loaded.fingerprint == fingerprint(pair, PICTURES) == loaded.config["fingerprint"]
    assert not loaded.model.training


def test_the_folder_holds_what_its_readme_says(folder) -> None:
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "preprocess.json", "tokenizer"]
    card = (folder / "README.md").read_text()
    for text in (
        "license: apache-2.0",
        "pipeline_tag: zero-shot-image-classification",
        '- "a/b"',
        "| acc1 | 0.25 |",
        "- data: toy",
        'mmvit.load("model")',
    ):
        assert text in card
    assert (folder / "model.safetensors").stat().st_mode & 0o044, "others may not read the weights"


def test_fingerprint_sees_weights_config_and_preprocessing(pair) -> None:
    first = fingerprint(pair, PICTURES)
    assert fingerprint(pair, PICTURES) == first
    assert fingerprint(pair, ImagePreprocess(size=(16, 16), resize="pad")) != first
    pair.image.pos_embed.data[0, 0, 0] += 1e-3
    assert fingerprint(pair, PICTURES) != first
    torch.manual_seed(0)
    other = build_model(PAIR)
    assert fingerprint(other, PICTURES) == first, "the same weights in another object"


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("image_tower", IMAGE),
        ("text_tower", TextTowerConfig(core=CORE, vocab_size=len(WORDS), context_length=8)),
    ],
)
def test_towers_alone(kind, model, tmp_path) -> None:
    parts = {"preprocess": PICTURES} if kind == "image_tower" else {"tokenizer": tokenizer()}
    save(build_model(model), tmp_path / "t", **parts)
    loaded = load(tmp_path / "t")
    assert loaded.config["kind"] == kind
    assert loaded.model.config == model
    assert (loaded.preprocess is None) == (kind == "text_tower")


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_saved_in_float32(pair, half, tmp_path) -> None:
    pair.to(half)
    save(pair, tmp_path / "h", preprocess=PICTURES, tokenizer=tokenizer())
    assert load(tmp_path / "h").fingerprint == fingerprint(pair, PICTURES)


def test_saving_again_replaces_the_model_and_nothing_else(pair, folder, tmp_path) -> None:
    pair.logit_scale.data += 1
    save(pair, folder, preprocess=PICTURES, tokenizer=tokenizer())
    assert load(folder).model.logit_scale == pair.logit_scale
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "no half-written folder stays behind"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is no saved model"):
        save(pair, tmp_path / "mine", preprocess=PICTURES, tokenizer=tokenizer())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_save_that_fails_leaves_the_old_model(pair, folder, tmp_path, monkeypatch) -> None:
    before = load(folder).fingerprint

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("mmvit.hub.folder.card_text", full)
    pair.logit_scale.data += 1
    with pytest.raises(OSError, match="no space left"):
        save(pair, folder, preprocess=PICTURES, tokenizer=tokenizer())
    assert load(folder).fingerprint == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_parts_that_do_not_fit_are_refused(pair, tmp_path) -> None:
    with pytest.raises(ValueError, match="needs its tokenizer"):
        save(pair, tmp_path / "m", preprocess=PICTURES)
    with pytest.raises(ValueError, match="needs its preprocessing"):
        save(pair, tmp_path / "m", tokenizer=tokenizer())
    with pytest.raises(ValueError, match="with_context\\(8\\)"):
        save(pair, tmp_path / "m", preprocess=PICTURES, tokenizer=tokenizer().with_context(9))
    with pytest.raises(ValueError, match="expected multiples of patch_size=8"):
        save(pair, tmp_path / "m", preprocess=ImagePreprocess(size=(20, 20)), tokenizer=tokenizer())
    with pytest.raises(ValueError, match="cannot save a model whose config is a NoneType"):
        save(torch.nn.Linear(2, 2), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_changed_preprocessing_is_an_error_and_not_a_worse_number(folder) -> None:
    spec = json.loads((folder / "preprocess.json").read_text())
    (folder / "preprocess.json").write_text(json.dumps(spec | {"interpolation": "nearest"}))
    with pytest.raises(ValueError, match="preprocess.json' is not the one this model was saved with"):
        load(folder)
    (folder / "preprocess.json").write_text(json.dumps(spec | {"interpolatoin": "nearest"}))
    with pytest.raises(ValueError, match="preprocess.json.*interpolatoin.*did you mean interpolation"):
        load(folder)


def test_another_tokenizer_is_an_error(folder) -> None:
    other = WordPieceTokenizer("\n".join([*WORDS[:-1], "dog"]).encode(), context_length=8)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(FileNotFoundError, match="tokenizer' is missing"):
        load(folder)
    other.save(folder / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer' is not the one this model was saved with"):
        load(folder)


def test_other_weights_are_an_error(pair, folder, tmp_path) -> None:
    pair.logit_scale.data += 1
    save(pair, tmp_path / "other", preprocess=PICTURES, tokenizer=tokenizer())
    shutil.copy(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors' is not the one"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(folder, keep) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors' .* is damaged or cut short"):
        load(folder)


def test_pickles_are_never_opened(folder, tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(ValueError, match="damaged or cut short"):
        load(folder)
    torch.save({"w": Evil()}, folder / "evil.pth")
    from mmvit.hub.convert.files.read import read_torch

    with pytest.raises(ValueError, match="not a file of plain tensors"):
        read_torch(folder / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_no_torch_load_without_weights_only(root) -> None:
    for file in (root / "mmvit").rglob("*.py"):
        text = file.read_text()
        for call in text.split("torch.load(")[1:]:
            assert "weights_only=True" in call.split("\n", 1)[0], f"{file} opens pickles"
        assert "import pickle" not in text, file


CONFIG_ERRORS = {
    "unknown outer key": ({"weight_fingerprint": "x"}, "did you mean weights_fingerprint"),
    "newer schema": ({"schema_version": 2}, "schema_version 2, this mmvit reads 1: update mmvit"),
    "not ours": ({"format": None}, "was not written by mmvit"),
    "unknown kind": ({"kind": "dual_encodr"}, "did you mean dual_encoder"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_config_errors_name_the_key(folder, case) -> None:
    changes, message = CONFIG_ERRORS[case]
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


MODEL_ERRORS = {
    "unknown key": (
        ("image", "patchsize", 8),
        "unknown key 'model.image.patchsize': did you mean patch_size",
    ),
    "wrong type": (("image", "patch_size", "8"), "'model.image.patch_size' is '8', expected int"),
    "wrong choice": (("image", "pool", "max"), "'model.image.pool' is 'max', expected one of cls"),
    "wrong length": (("image", "image_size", [16]), r"'model.image.image_size' is \[16\]"),
    "missing": (("text", "vocab_size", None), "'model.text.vocab_size' is missing"),
    "other shape": (
        ("text", "context_length", 9),
        r"1 tensors of another shape: text.pos_embed \(1, 8, 16\)",
    ),
}


@pytest.mark.parametrize("case", MODEL_ERRORS)
def test_model_config_errors_name_the_path(folder, case) -> None:
    (part, key, value), message = MODEL_ERRORS[case]
    model = json.loads((folder / "config.json").read_text())["model"]
    model[part][key] = value
    if value is None:
        del model[part][key]
    edit(folder, model=model)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_missing_and_unexpected_weights_are_errors(folder) -> None:
    model = json.loads((folder / "config.json").read_text())["model"]
    model["image"]["registers"] = 2
    edit(folder, model=model)
    with pytest.raises(ValueError, match="1 tensors missing: image.reg_token"):
        load(folder)
    model["image"]["registers"], model["logit_bias_init"] = 0, None
    edit(folder, model=model)
    with pytest.raises(ValueError, match="1 tensors unexpected: logit_bias"):
        load(folder)


def test_missing_files(folder, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no model folder at"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load(tmp_path / "empty")
    assert is_whole(folder)
    (folder / "preprocess.json").unlink()
    assert not is_whole(folder)
    with pytest.raises(FileNotFoundError, match=r"preprocess.json' is missing"):
        load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load(folder)
