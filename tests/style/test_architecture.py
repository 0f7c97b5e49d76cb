"""The house rules of docs/architecture.md, held by a machine: imports, words, names, sizes."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mmvit"

# folder (or file) of mmvit -> the rooms it may import from; `types` and `errors` are open to all
MAY_IMPORT = {
    "types": set(),
    "options": set(),
    "errors": set(),
    "boxes": set(),
    "data": set(),
    "tokens": set(),
    "core": set(),
    "heads": set(),
    "losses": set(),
    "models": {"tokens", "core", "heads"},
    "tasks": {"models", "tokens", "core", "heads", "losses"},
    "train": set(),
    "search": set(),
    "evaluators": {"models", "data", "search"},
    "hub": {"models", "data", "tokens", "heads", "core"},
    "api": {"models", "data", "hub", "search", "evaluators"},
    "detector": {"models", "data", "hub", "evaluators", "api", "heads"},
    "cli": {"models", "data", "hub", "search", "evaluators", "api", "detector"},
}

FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    p for top in ("mmvit", "recipes", "eval", "scripts", "tests") for p in (ROOT / top).rglob("*.py")
)
MODALITY = re.compile(
    r"(?i)\b(images?|videos?|audios?|texts?|pixels?|patch(?:es)?|frames?|waveforms?|captions?)\b"
)
HEAVY = {"torch", "timm", "open_clip", "transformers", "faiss", "torchvision", "av"}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "mmvit":
                names = [f"mmvit.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("mmvit.")}
    return rooms


def test_there_is_a_house_to_check():
    assert len(FILES) > 40
    assert {room_of(f) for f in FILES} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_along_the_data_path(path):
    room = room_of(path)
    if room == "__init__":
        return
    forbidden = imported_rooms(path) - MAY_IMPORT[room] - {room, "types", "errors", "options", "boxes"}
    assert not forbidden, f"{path.relative_to(ROOT)} ({room}) must not import {sorted(forbidden)}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_the_core_knows_no_modality(path):
    words = MODALITY.findall(path.read_text())
    assert not words, f"{path.name} names {sorted(set(words))}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_the_core_imports_torch_and_types_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert (
                top == "torch"
                or name.startswith(("mmvit.types", "mmvit.core"))
                or top in sys.stdlib_module_names
            ), name


def test_training_verbs_name_no_method():
    for path in (PACKAGE / "train").glob("*.py"):
        words = re.findall(r"(?i)\b(lit|vatt|owl|clip_loss|siglip_loss)\b", path.read_text())
        assert not words, f"{path.name} names {sorted(set(words))}"


def test_no_drawers():
    drawers = [p for p in SOURCES if re.fullmatch(r"(utils?|helpers?|common|misc)\.py", p.name)]
    assert not drawers
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"too long to hold in the head: {long}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_and_public_name_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    if not tree.body:
        return
    assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} opens without saying what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.relative_to(ROOT)}: {node.name} has no docstring"


def test_import_is_light_and_lazy():
    code = "import sys, mmvit; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not HEAVY & set(out.stdout.split())


def test_public_names_are_reachable():
    import mmvit

    for name in mmvit.__all__:
        assert getattr(mmvit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mmvit.nonsense  # noqa: B018


def test_scripts_keep_one_set_of_versions():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert pins["torch"] == "2.11.0"
    assert pins["torchvision"] == "0.26.0"
    assert pins["torchaudio"] == "2.11.0"
    for other in [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]:
        assert not re.search(r"[a-z_-]+==\d", other.read_text()), f"{other.name} pins a version of its own"
