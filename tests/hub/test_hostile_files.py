"""Weight files that lie, are cut short or would run code: one line each, and nothing allocated or run."""

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmvit import hub
from mmvit.hub.convert.files.npz import read_npz
from mmvit.hub.convert.files.read import read_safetensors, read_torch, read_weights
from mmvit.hub.convert.files.safetensors_header import read_header
from tests.hub import flax_files as flax

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}


def refused(
    read: Callable[[Path], object], path: Path, match: str, kind: type[Exception] = ValueError
) -> None:
    """`read(path)` ends in one line that names the file."""
    with pytest.raises(kind, match=match) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


# ---- pickles that run code ----


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def torch_file(path: Path, evil: Evil) -> None:
    torch.save({"model": {"blocks.0.norm1.weight": torch.ones(2)}, "args": evil}, path)


def old_torch_file(path: Path, evil: Evil) -> None:
    torch.save({"model": evil}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps({"w": evil}))


def object_array(path: Path, evil: Evil) -> None:
    with path.open("wb") as file:
        np.savez(file, **flax.random_vit(np.random.default_rng(0)), args=np.array([evil], dtype=object))


def checkpoint(path: Path) -> object:
    return hub.from_checkpoint(path, "deit")


PICKLES = {
    "torch file": (torch_file, "w.pth", checkpoint, "it contains posix.mkdir"),
    "old torch file": (old_torch_file, "w.pth", checkpoint, "it contains posix.mkdir"),
    "bare pickle": (bare_pickle, "pytorch_model.bin", checkpoint, "is not opened"),
    "pickle called safetensors": (bare_pickle, "w.safetensors", checkpoint, "damaged or cut short"),
    "object array": (object_array, "w.npz", hub.from_big_vision, "'args.npy' holds Python objects"),
    "pickle called npz": (bare_pickle, "w.npz", hub.from_big_vision, "damaged or no .npz"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_code_in_a_file_is_not_run(case: str, tmp_path) -> None:
    write, name, read, message = PICKLES[case]
    mark = tmp_path / "owned"
    write(tmp_path / name, Evil(mark))
    refused(read, tmp_path / name, message)
    assert not mark.exists()
    if case == "torch file":  # the file is truly armed
        torch.load(tmp_path / name, weights_only=False)
        assert mark.exists()


# ---- files cut short, of another kind, or not there ----


def small_safetensors(path: Path) -> None:
    save_file(TENSORS, path)


def small_torch(path: Path) -> None:
    torch.save(TENSORS, path)


def small_old_torch(path: Path) -> None:
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)


def small_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.arange(12.0).reshape(3, 4), b=np.ones(5, np.float32))


FORMATS = {
    "safetensors": (small_safetensors, read_safetensors),
    "torch": (small_torch, read_torch),
    "old torch": (small_old_torch, read_torch),
    "npz": (small_npz, read_npz),
}


@pytest.mark.parametrize("name", FORMATS)
def test_cut_anywhere(name: str, tmp_path) -> None:
    write, read = FORMATS[name]
    path = tmp_path / "w"
    write(path)
    read(path)
    content = path.read_bytes()
    for cut in {*range(0, len(content), max(1, len(content) // 150)), 1, 7, 8, 9, len(content) - 1}:
        path.write_bytes(content[:cut])
        refused(read, path, "damaged or|is not opened")


@pytest.mark.parametrize("name", FORMATS)
def test_any_byte_changed_is_an_error_or_loads(name: str, tmp_path) -> None:
    write, read = FORMATS[name]
    path, rng = tmp_path / "w", np.random.default_rng(0)
    write(path)
    content = path.read_bytes()
    for place in rng.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):  # anything else, a crash above all, fails
            read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_not_there_or_a_folder_or_another_format(name: str, tmp_path) -> None:
    read = FORMATS[name][1]
    refused(read, tmp_path / "none", "no weights at", FileNotFoundError)
    (tmp_path / "folder").mkdir()
    refused(read, tmp_path / "folder", "it is a folder", FileNotFoundError)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n" * 4, b"<html>" * 50, b"\0" * 4096):
        (tmp_path / "w").write_bytes(content)
        refused(read, tmp_path / "w", "damaged or|is not opened")
    for other, (write, _) in FORMATS.items():
        if other.split()[-1] != name.split()[-1]:
            write(tmp_path / "w")
            refused(read, tmp_path / "w", "damaged or|is not opened|expected")


# ---- safetensors whose header lies ----


def with_header(path: Path, header: object, data: bytes = bytes(16), length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list, first: int, last: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


HEADERS = {
    "terabytes": ({"w": entry([10**6, 10**6], 0, 4 * 10**12)}, r"tensors need 4,000,000,000,000 bytes"),
    "a shape beyond its bytes": ({"w": entry([10**6, 10**6], 0, 16)}, "does not fill its 16 bytes"),
    "offsets that overlap": (
        {"w": entry([4], 0, 16), "v": entry([2], 4, 12)},
        "begins at byte 4, expected 16",
    ),
    "a gap": ({"w": entry([2], 8, 16)}, "begins at byte 8, expected 0"),
    "offsets outside": ({"w": entry([4], 16, 32)}, "begins at byte 16"),
    "offsets backwards": ({"w": entry([4], 16, 0)}, "does not fill"),
    "bytes left over": ({"w": entry([2], 0, 8)}, "need 8 bytes, the file has 16"),
    "a negative shape": ({"w": entry([-4], 0, 16)}, "has no shape"),
    "an overflowing shape": ({"w": entry([2**33, 2**33, 2**33], 0, 16)}, "does not fill"),
    "a fractional shape": ({"w": entry([4.0], 0, 16)}, "has no shape"),
    "an unknown dtype": ({"w": entry([4], 0, 16, "F33")}, "no dtype that is known"),
    "no dtype": ({"w": {"shape": [4], "data_offsets": [0, 16]}}, "no dtype that is known"),
    "an entry that is a list": ({"w": [4]}, "no dtype that is known"),
    "a list": ([1, 2], "its header is no object"),
    "no JSON": (b"{'w': 1", "its header is no JSON"),
    "no text": (b"\xff\xfe{}", "its header is no JSON"),
    "an endless nest": (b"[" * 100_000, "damaged or cut short"),
    "a number without end": (b'{"w": ' + b"9" * 10_000 + b"}", "damaged or cut short"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers(case: str, tmp_path) -> None:
    header, message = HEADERS[case]
    with_header(tmp_path / "w.safetensors", header)
    for read in (read_safetensors, read_header):
        refused(read, tmp_path / "w.safetensors", message)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8 + 1, 200, 0])
def test_safetensors_headers_of_a_length_that_is_not_theirs(length: int, tmp_path) -> None:
    with_header(tmp_path / "w.safetensors", {"w": entry([4], 0, 16)}, length=length)
    refused(read_safetensors, tmp_path / "w.safetensors", "damaged or cut short")


# ---- an index over several files ----


def index(folder: Path, places: object) -> Path:
    small_safetensors(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


INDEXES = {
    "the folder above": ({"a.weight": "../w.safetensors"}, ValueError, "files of its own folder"),
    "an absolute path": ({"a.weight": "/etc/passwd"}, ValueError, "files of its own folder"),
    "another system's path": ({"a.weight": "..\\w.safetensors"}, ValueError, "files of its own folder"),
    "a folder below": ({"a.weight": "x/w.safetensors"}, ValueError, "files of its own folder"),
    "another kind of file": ({"a.weight": "pytorch_model.bin"}, ValueError, "files of its own folder"),
    "a missing part": ({"a.weight": "two.safetensors"}, FileNotFoundError, "two.safetensors' is missing"),
    "a missing tensor": (
        {"a.weight": "part.safetensors", "b": "part.safetensors", "c": "part.safetensors"},
        ValueError,
        "names 'c', which no file holds",
    ),
    "a tensor too many": ({"a.weight": "part.safetensors"}, ValueError, "holds 'b', which"),
    "numbers": ({"a.weight": 3}, ValueError, "is no index of safetensors files"),
    "a list": (["part.safetensors"], ValueError, "is no index of safetensors files"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_indexes(case: str, tmp_path) -> None:
    places, kind, message = INDEXES[case]
    (tmp_path / "model").mkdir()
    small_safetensors(tmp_path / "w.safetensors")
    folder = index(tmp_path / "model", places)
    with pytest.raises(kind, match=message) as caught:
        read_weights(folder)
    assert "\n" not in str(caught.value)


def test_a_whole_index(tmp_path) -> None:
    places = dict.fromkeys(TENSORS, "part.safetensors")
    assert set(read_weights(index(tmp_path, places))) == set(TENSORS)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="is no index of safetensors files"):
        read_weights(tmp_path)


# ---- npz archives that claim more than they hold ----


def header_of(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


MEMBERS = {
    "terabytes": ({"a.npy": header_of("(1000000, 1000000)") + bytes(16)}, r"claims 4,000,000,000,000 bytes"),
    "an overflowing shape": (
        {"a.npy": header_of("(2**40,)".replace("2**40", str(2**62))) + bytes(4)},
        "claims",
    ),
    "too little": ({"a.npy": header_of("(4,)") + bytes(8)}, "claims 16 bytes of .4,. and has 8"),
    "too much": ({"a.npy": header_of("(4,)") + bytes(80)}, "claims 16 bytes of .4,. and has 80"),
    "a negative shape": ({"a.npy": header_of("(-4,)") + bytes(16)}, "is no array"),
    "objects": ({"a.npy": header_of("(1,)", "'|O'") + bytes(8)}, "holds Python objects"),
    "objects in a field": ({"a.npy": header_of("(1,)", "[('x', '|O')]") + bytes(8)}, "holds Python objects"),
    "fields": ({"a.npy": header_of("(1,)", "[('x', '<f4')]") + bytes(4)}, "expected numbers"),
    "text": ({"a.npy": header_of("(1,)", "'<U4'") + bytes(16)}, "expected numbers"),
    "code for a header": ({"a.npy": header_of("__import__('os').getpid()") + bytes(16)}, "is no array"),
    "a header without end": (
        {"a.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 64},
        "is no array",
    ),
    "no array": ({"a.npy": b"#!/bin/sh\nrm -rf\n"}, "is no array"),
    "another member": ({"evil.pkl": b"x"}, "has a member 'evil.pkl'"),
    "nothing": ({}, "it is empty"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_npz_members(case: str, tmp_path) -> None:
    members, message = MEMBERS[case]
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(read_npz, tmp_path / "w.npz", message)
    refused(hub.from_big_vision, tmp_path / "w.npz", message)


def test_an_archive_that_would_unfold_is_not_unfolded(tmp_path) -> None:
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(header_of("(33554432,)"))
        for _ in range(128):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 200_000
    refused(read_npz, path, r"would unfold to 134,217,")
    # honest compression is read
    np.savez_compressed(tmp_path / "ok.npz", a=np.zeros((1000, 100), np.float32))
    assert read_npz(tmp_path / "ok.npz")[0]["a"].shape == (1000, 100)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(tmp_path) -> None:
    content = io.BytesIO()
    np.save(content, np.ones(3))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
        archive.writestr("a.npy", content.getvalue())
    refused(read_npz, tmp_path / "w.npz", "expected arrays with a name each")


def test_a_changed_array_is_seen_by_its_checksum(tmp_path) -> None:
    small_npz(tmp_path / "w.npz")
    content = bytearray((tmp_path / "w.npz").read_bytes())
    place = content.index(np.float64(11.0).tobytes())
    content[place + 6] ^= 1
    (tmp_path / "w.npz").write_bytes(content)
    refused(read_npz, tmp_path / "w.npz", "damaged or no .npz: Bad CRC-32")


# ---- torch files ----


def rewritten(path: Path, change: Callable[[str, bytes], bytes], kind: int = zipfile.ZIP_STORED) -> None:
    """A torch file with its members changed."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, change(name, content))


def test_torch_files_that_claim_more_than_they_hold(tmp_path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.arange(8.0)}, path)
    grown = b"J" + (1 << 28).to_bytes(4, "little")
    rewritten(path, lambda name, c: c.replace(b"K\x08", grown) if name.endswith("data.pkl") else c)
    refused(read_torch, path, "is not opened")
    torch.save({"w": torch.arange(8.0)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    refused(read_torch, path, "is compressed.*is not opened")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("what", ["a view of one number", "sparse", "meta", "quantized"])
def test_tensors_that_are_larger_than_what_is_stored(what: str, tmp_path) -> None:
    huge = {
        "a view of one number": lambda: torch.zeros(1).expand(10**6, 10**6),
        "sparse": lambda: torch.sparse_coo_tensor(
            torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), (10**12,)
        ),
        "meta": lambda: torch.empty(10**6, 10**6, device="meta"),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    }[what]()
    torch.save({"w": huge}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    refused(read_torch, tmp_path / "w.pth", "is no plain tensor|is not opened")


def test_torch_files_without_a_state_dict(tmp_path) -> None:
    for content, message in (
        ({"model": {"a": 3}}, "holds a dict .names a., expected a state dict"),
        ([torch.ones(2)], "holds a list"),
        ({}, "holds a dict"),
        ({1: torch.ones(2)}, "names 1"),
        ({"state_dict": {"model": {"model": 1}}}, "expected a state dict"),
    ):
        torch.save(content, tmp_path / "w.pth")
        refused(read_torch, tmp_path / "w.pth", message)
