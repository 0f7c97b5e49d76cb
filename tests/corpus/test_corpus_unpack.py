"""Package files read without dpkg, and refused with a clear message when they are damaged."""

import io
import tarfile

import pytest
from corpus.unpack import MAGIC, ar_members, deb_files, tgz_files, unpack_deb

from mmvit.errors import UserError


def tar_bytes(files, mode):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("./usr/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return out.getvalue()


def ar_bytes(members):
    out = MAGIC
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
        out += header.encode() + data + b"\n" * (len(data) % 2)
    return out


def deb(path, compression="xz", files=None):
    files = files or {
        "./usr/share/a.txt": b"one",
        "./usr/share/b.bin": b"two!",
        "../evil": b"x",
        "/abs": b"y",
    }
    data = tar_bytes(files, f"w:{compression}")
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": data}
    path.write_bytes(ar_bytes(members))
    return path


def test_ar_members_are_padded_to_even_offsets(tmp_path):
    path = tmp_path / "x.a"
    path.write_bytes(ar_bytes({"one": b"abc", "two": b"", "three": b"abcd"}))
    assert list(ar_members(path)) == [("one", b"abc"), ("two", b""), ("three", b"abcd")]


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_deb_files_are_the_regular_files_inside_the_package(tmp_path, compression):
    path = deb(tmp_path / "p_1.0_all.deb", compression)
    assert dict(deb_files(path, lambda name: True)) == {"usr/share/a.txt": b"one", "usr/share/b.bin": b"two!"}
    assert [n for n, _ in deb_files(path, lambda name: name.endswith(".txt"))] == ["usr/share/a.txt"]


def test_unpacking_is_whole_or_not_at_all(tmp_path):
    path = deb(tmp_path / "p_1.0_all.deb")

    def fails_at_b(name):
        if name.endswith(".bin"):
            raise RuntimeError("killed")
        return True

    with pytest.raises(RuntimeError):
        unpack_deb(path, tmp_path / "out", fails_at_b)
    assert not (tmp_path / "out").exists()
    folder = unpack_deb(path, tmp_path / "out", lambda name: True)
    assert (folder / "usr/share/a.txt").read_bytes() == b"one"
    path.unlink()
    assert unpack_deb(path, tmp_path / "out", lambda name: True) == folder


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"PK\x03\x04", "not an ar archive"), (MAGIC + b"x" * 70, "bad member header")],
)
def test_files_that_are_no_packages_are_named(tmp_path, data, message):
    path = tmp_path / "p_1.0_all.deb"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        list(deb_files(path, lambda name: True))


def test_a_cut_off_package_is_named(tmp_path):
    path = deb(tmp_path / "p_1.0_all.deb")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cut off"):
        list(deb_files(path, lambda name: True))


def test_npm_packages_are_read_under_their_folder(tmp_path):
    path = tmp_path / "a-1.0.tgz"
    path.write_bytes(tar_bytes({"package/icons.json": b"{}", "package/x/y.json": b"[]"}, "w:gz"))
    assert dict(tgz_files(path, lambda name: name == "icons.json")) == {"icons.json": b"{}"}


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not a gzip file"])
def test_a_damaged_npm_package_is_named(tmp_path, damage):
    path = tmp_path / "a-1.0.tgz"
    path.write_bytes(damage(tar_bytes({"package/icons.json": bytes(range(256)) * 400}, "w:gz")))
    with pytest.raises(UserError, match="a-1.0.tgz is damaged"):
        list(tgz_files(path, lambda name: True))
