"""Exported graphs give torch's outputs (limit 1e-4, usual 1e-6) at other batch sizes and lengths."""

import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordPieceTokenizer, load_tokenizer
from mmvit.hub import load, save
from mmvit.hub.export.onnx import Encoder, compare, export_onnx
from mmvit.models.config import (
    ClassifierConfig,
    CoreConfig,
    DualEncoderConfig,
    ImageTowerConfig,
    TextTowerConfig,
)
from mmvit.models.foreign import ForeignImageTower
from mmvit.models.presets import build_model

runtime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

CORE = CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=48)
IMAGE = ImageTowerConfig(core=CORE, image_size=(32, 48), patch_size=16, embed_dim=24)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
TEXT = TextTowerConfig(core=CORE, vocab_size=len(WORDS), context_length=9, embed_dim=24)
CAUSAL = dataclasses.replace(CORE, causal=True, norm_eps=1e-5, activation="quick_gelu")


def random(config):
    model, generator = build_model(config), torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        value.data = 0.2 * torch.randn(value.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value.data += 1
    return model.eval()


def run(file: Path, **inputs: torch.Tensor) -> torch.Tensor:
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(out)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() < 1e-4
    if len(ours) > 2:
        assert (ours - ours[:1]).abs().max() > 1e-2, "all rows are equal: too flat to tell anything"


def pixels(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, 32, 48), dtype=torch.uint8)


def text(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch + length)
    ids = torch.randint(0, len(WORDS), (batch, length), generator=generator)
    ends = torch.randint(1, length + 1, (batch, 1), generator=generator)
    return {"ids": ids, "mask": torch.arange(length) < ends}


SLOW = pytest.mark.slow  # an export takes some seconds
TEXTS = {
    "CLIP, causal": dataclasses.replace(TEXT, core=CAUSAL, pad_mask=False, head_bias=False),
    "last position, padding attended": dataclasses.replace(TEXT, pool="last", pad_mask=False),
    "mean": dataclasses.replace(TEXT, pool="mean", embed_dim=None),
    "map": dataclasses.replace(TEXT, pool="map"),
}


@pytest.mark.parametrize("case", [pytest.param(n, marks=SLOW if n in ("mean", "map") else ()) for n in TEXTS])
@torch.no_grad()
def test_text_towers(case, tmp_path) -> None:
    tower = random(TEXTS[case])
    (graph,) = export_onnx(tower, tmp_path / "x")
    assert graph.difference < 1e-5
    fixed = case.startswith("last position")
    assert graph.inputs["ids"] == f"int64 (batch,{9 if fixed else 'length'})"
    for batch, length in ((1, 9), (7, 9)) if fixed else ((1, 1), (1, 9), (4, 2), (7, 6), (16, 9)):
        given = text(batch, length)
        out = run(tmp_path / "x" / "text.onnx", **given)
        close(torch.nn.functional.normalize(tower(given["ids"], given["mask"]), dim=-1), out)
    if not fixed:  # what stands behind the mask changes nothing
        given = text(5, 9)
        noise = torch.where(given["mask"], given["ids"], 3)
        out = run(tmp_path / "x" / "text.onnx", **given)
        other = run(tmp_path / "x" / "text.onnx", ids=noise, mask=given["mask"])
        assert (out - other).abs().max() < 1e-6


IMAGES = {
    "class token": IMAGE,
    "mean, sine positions, registers": dataclasses.replace(
        IMAGE, pool="mean", position="sincos2d", registers=2, embed_dim=None
    ),
    "LayerScale, centred": dataclasses.replace(
        IMAGE, core=dataclasses.replace(CORE, layer_scale=0.1), center=True
    ),
}


@SLOW
@pytest.mark.parametrize("case", IMAGES)
@torch.no_grad()
def test_image_towers_take_bytes_and_normalise_inside(case, tmp_path) -> None:
    tower = random(dataclasses.replace(IMAGES[case], mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
    (graph,) = export_onnx(tower, tmp_path / "x")
    assert graph.inputs == {"pixels": "uint8 (batch,3,32,48)"}
    for batch in (1, 5):
        x = pixels(batch)
        close(torch.nn.functional.normalize(tower(x), dim=-1), run(tmp_path / "x" / "image.onnx", pixels=x))


@torch.no_grad()
def test_classifiers_give_logits(tmp_path) -> None:
    model = random(ClassifierConfig(tower=dataclasses.replace(IMAGE, embed_dim=None), num_classes=5))
    (graph,) = export_onnx(model, tmp_path / "x")
    assert graph.output == "logits"
    x = pixels(4)
    close(model(x), run(tmp_path / "x" / "image.onnx", pixels=x))


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory) -> Path:
    """A saved pair: map pooling for pictures, last real token for texts, a bias."""
    image = dataclasses.replace(IMAGE, pool="map", class_token=False)
    config = DualEncoderConfig(image=image, text=TEXT, logit_bias_init=-3.0, activation="sigmoid")
    tokenizer = WordPieceTokenizer("\n".join(WORDS).encode(), context_length=9, sep=True)
    path = tmp_path_factory.mktemp("pair") / "model"
    save(random(config), path, preprocess=ImagePreprocess(size=(32, 48)), tokenizer=tokenizer)
    return path


@pytest.fixture(scope="module")
def exported(pair_folder, root) -> tuple[Path, list[str]]:
    """The pair as the program writes it, and what the program says."""
    out = pair_folder.parent / "onnx"
    command = [sys.executable, root / "scripts" / "export_onnx.py", "--model", pair_folder, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=240, check=True)
    return out, done.stdout.splitlines()


@torch.no_grad()
def test_a_pair_can_be_used_from_its_folder_alone(pair_folder, exported) -> None:
    """As a deployer does it: onnx.json, tokenizer and graphs, without torch's model."""
    out, said = exported
    assert "image.onnx: pixels uint8 (batch,3,32,48) -> embeddings; largest difference to torch" in said[0]
    assert "text.onnx: ids int64 (batch,length), mask bool (batch,length) -> embeddings" in said[1]
    assert sorted(p.name for p in out.iterdir()) == ["image.onnx", "onnx.json", "text.onnx", "tokenizer"]
    facts = json.loads((out / "onnx.json").read_text())
    ours = load(pair_folder)
    assert facts["fingerprint"] == ours.fingerprint
    assert ImagePreprocess.from_dict(facts["preprocess"]) == ours.preprocess
    words = load_tokenizer(out / "tokenizer")(["a b c", "fox"])
    x = pixels(3)
    z, w = run(out / "image.onnx", pixels=x), run(out / "text.onnx", ids=words.ids, mask=words.mask)
    similarity = facts["similarity"]
    assert similarity["activation"] == "sigmoid"
    model = ours.model
    logits = model.logit_scale.exp() * model.encode_image(x) @ model.encode_text(words.ids, words.mask).T
    found = similarity["scale"] * z @ w.T + similarity["bias"]
    assert (found - logits - model.logit_bias).abs().max() < 1e-4


@torch.no_grad()
def test_batches_and_lengths_are_free(pair_folder, exported) -> None:
    model = load(pair_folder).model
    for batch, length in ((1, 1), (1, 9), (4, 2), (7, 6), (16, 9)):
        given = text(batch, length)
        close(model.encode_text(**given), run(exported[0] / "text.onnx", **given))
    for batch in (1, 2, 5):
        x = pixels(batch)
        close(model.encode_image(x), run(exported[0] / "image.onnx", pixels=x))
    graph = runtime.InferenceSession(str(exported[0] / "image.onnx"))
    assert graph.get_inputs()[0].shape == ["batch", 3, 32, 48], "another size is refused by the runtime"


def test_graphs_are_valid_and_tell_nothing_of_this_machine(exported) -> None:
    for side in ("image", "text"):
        file = exported[0] / f"{side}.onnx"
        onnx.checker.check_model(str(file), full_check=True)
        assert {o.domain: o.version for o in onnx.load(file).opset_import}[""] == 18
        assert b".py" not in file.read_bytes(), "names of source files"


@SLOW
@torch.no_grad()
def test_big_weights_stand_in_a_file_beside_the_graph(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mmvit.hub.export.onnx._TWO_GIB", 0)
    tower = random(IMAGE)
    export_onnx(tower, tmp_path / "x")
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "image.onnx",
        "image.onnx.data",
        "onnx.json",
    ]
    x = pixels(3)
    close(torch.nn.functional.normalize(tower(x), dim=-1), run(tmp_path / "x" / "image.onnx", pixels=x))


@SLOW
@torch.no_grad()
def test_peers_towers_are_exported_too(tmp_path) -> None:
    tower = ForeignImageTower.wrap("timm:resnet10t", image_size=(64, 64)).eval()
    export_onnx(tower, tmp_path / "x")
    x = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    theirs = run(tmp_path / "x" / "image.onnx", pixels=x)
    assert (torch.nn.functional.normalize(tower(x), dim=-1) - theirs).abs().max() < 1e-4


def test_a_graph_that_differs_is_an_error(pair_folder, exported) -> None:
    model = load(pair_folder).model
    file = exported[0] / "image.onnx"
    assert compare("image", Encoder(model.image, "embeddings"), file, model.image.config) < 1e-5
    model.image.pool.latent.data += 0.01
    with pytest.raises(
        ValueError, match=r"image.onnx differs from torch by .*, more than 0.0001: do not use"
    ):
        compare("image", Encoder(model.image, "embeddings"), file, model.image.config)


def test_a_model_that_cannot_be_exported_leaves_nothing(tmp_path) -> None:
    tower = random(IMAGE)
    tower.features = lambda pixels: 1 / 0
    with pytest.raises(ValueError, match="torch cannot export this image encoder to ONNX: ") as caught:
        export_onnx(tower, tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_wrong_inputs(pair_folder, tmp_path, monkeypatch, capsys, root) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds no ONNX export"):
        export_onnx(pair_folder, tmp_path / "mine")
    for arguments, message in (
        (["--model", str(tmp_path / "no"), "--out", "x"], "error: no model folder at"),
        (["--model", "x"], "error: give --model FOLDER and --out FOLDER"),
    ):
        monkeypatch.setattr(sys, "argv", ["export_onnx.py", *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / "scripts" / "export_onnx.py"), run_name="__main__")
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(message)
