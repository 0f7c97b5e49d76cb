"""Members of package files: `.tgz` from npm, `.deb` (an `ar` archive around a compressed tar) from Debian.

Place in the path: corpus builder, between download and drawing. Only the standard library; no dpkg and no
root. Source: the `ar(5)` common format and `deb(5)`: 8 bytes of magic, then 60-byte headers and even-padded
members.
"""

from __future__ import annotations

import io
import lzma
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from mmvit.errors import UserError

MAGIC = b"!<arch>\n"
HEADER = 60


def ar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every member of an `ar` archive, in order.

    Raises:
        UserError: the file is not an ar archive, or it is cut off.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path} is not an ar archive (a .deb file): delete it and build again")
        while header := file.read(HEADER):
            if len(header) < HEADER or header[58:60] != b"`\n":
                raise UserError(f"{path} is damaged (bad member header): delete it and build again")
            size = int(header[48:58])
            data = file.read(size)
            if len(data) < size:
                raise UserError(f"{path} is cut off: delete it and build again")
            yield header[:16].decode("ascii").strip().rstrip("/"), data
            file.read(size % 2)


def deb_files(path: Path, keep: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path (no leading `./`) and bytes of the regular files of a .deb for which `keep(path)` holds."""
    for name, data in ar_members(path):
        if not name.startswith("data.tar"):
            continue
        if name.endswith(".zst"):
            data = _unzstd(data, path)
        yield from _regular(partial(tarfile.open, fileobj=io.BytesIO(data), mode="r|*"), keep, path)
        return
    raise UserError(f"{path} has no data.tar member: delete it and build again")


def tgz_files(path: Path, keep: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path inside the package (after `package/`) and bytes of the files of an npm .tgz that `keep` wants."""
    inside = _regular(partial(tarfile.open, path, mode="r|gz"), lambda n: keep(n.partition("/")[2]), path)
    for name, data in inside:
        yield name.partition("/")[2], data


def unpack_deb(path: Path, folder: Path, keep: Callable[[str], bool]) -> Path:
    """`folder`, filled with the wanted files of the .deb; a folder that is there is taken as whole."""
    if folder.is_dir():
        return folder
    aside = folder.with_name(f".part-{folder.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    for name, data in deb_files(path, keep):
        target = aside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    aside.mkdir(parents=True, exist_ok=True)
    os.replace(aside, folder)
    return folder


def _regular(
    opened: Callable[[], tarfile.TarFile], keep: Callable[[str], bool], path: Path
) -> Iterator[tuple[str, bytes]]:
    try:
        with opened() as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                outside = name.startswith("/") or ".." in PurePosixPath(name).parts
                if member.isreg() and not outside and keep(name):
                    handle = tar.extractfile(member)
                    assert handle is not None
                    yield name, handle.read()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and build again") from None


def _unzstd(data: bytes, path: Path) -> bytes:
    if shutil.which("zstd") is None:
        raise UserError(f"{path} is compressed with zstd: install the program zstd, or leave this source out")
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
