"""Odd shards: how FOLDER/odd.tar is made, and what comes of it when it is read by index and as a stream."""

import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.case import CAPTION
from tests.faults.cases_words import GOOD


@dataclass(frozen=True)
class Way:
    """What reading it gives: keys that are used, reasons of skips, words of a warning or of the error."""

    keys: tuple[str, ...] = ()
    skipped: dict[str, int] = field(default_factory=dict)
    warning: str = ""
    error: str = ""


@dataclass(frozen=True)
class Tar:
    fault: str
    make: Callable[[Path], None]
    index: Way
    stream: Way


def member(name, data, **more):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def pair(key):
    return [member(f"{key}.png", GOOD), member(f"{key}.txt", CAPTION.encode())]


def link(name, to, kind):
    return member(name, b"", type=kind, linkname=to)


def tar(*members, form=tarfile.GNU_FORMAT):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


ABC = [*pair("a"), *pair("b"), *pair("c")]
BLOCK = 1024  # a member of this file: a header, and a block that GOOD or CAPTION fits into
assert len(GOOD) < 512


def header(block, **fields):
    """A header with fields (at, bytes) replaced and a checksum that fits."""
    block = bytearray(block)
    for at, data in fields.values():
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def with_header(data, at, **fields):
    return data[:at] + header(data[at : at + 512], **fields) + data[at + 512 :]


def size(value):
    """A size in base 256, as tar writes what octal digits cannot hold."""
    sign = b"\xff" if value < 0 else b"\x80"
    return {"size": (124, sign + (value % (1 << 88)).to_bytes(11, "big"))}


def sparse():
    """A GNU sparse member: 300 bytes in the tar stand for 10,000."""
    data = tar(member("b.png", GOOD[:300]), member("b.txt", b"x"), *pair("c"))
    fields = {
        "type": (156, b"S"),
        "map": (386, b"%011o\0%011o\0" % (9700, 300)),
        "real": (483, b"%011o\0" % 10_000),
    }
    return tar(*pair("a"))[: 2 * BLOCK] + with_header(data, 0, **fields)


def deep():
    """3,000 extended headers, each about the next one."""
    block = tar(member("a.txt", b""), form=tarfile.PAX_FORMAT)[:512]
    one = header(block, type=(156, b"x"), size=(124, b"%011o\0" % 512)) + b"12 path=a.t\n".ljust(512, b"\0")
    return tar(*pair("a"))[: 2 * BLOCK] + one * 3000 + tar(*pair("b"))


def written(data):
    def make(path: Path):
        path.write_bytes(data() if callable(data) else data)

    return make


def case(fault, data, index, stream=None):
    return Tar(
        fault, data if callable(data) and data.__name__ == "make" else written(data), index, stream or index
    )


def error(words):
    return Way(error=words)


WHOLE = Way(("a", "b", "c"))
LOST = ("a", "b")
CASES = [
    case("tar of zero bytes", b"", error(r"is empty \(0 bytes\)"), error("as a stream: empty file")),
    case("tar that is text", b"caption\n" * 400, error("is not a tar file"), error("as a stream: ")),
    case("tar that is a picture", GOOD + bytes(1000), error("is not a tar file"), error("as a stream: ")),
    case("tar of 8 bytes", b"ustar  \0", error("is not a tar file"), error("as a stream: ")),
    Tar("a folder called .tar", lambda path: path.mkdir(), error("is a folder"), error("Is a directory")),
    Tar("a link called .tar that leads nowhere", lambda path: path.symlink_to("nowhere.tar"),
        error("cannot read the shard .*No such file"), error("cannot read the shard .*No such file")),
    case("tar compressed with gzip, called .tar", lambda: gzip.compress(tar(*ABC)), error("is compressed"),
         WHOLE),
    case("gzip cut off, called .tar", lambda: gzip.compress(tar(*ABC))[:150], error("is compressed"),
         error("as a stream: ")),
    case("tar cut off in a picture", tar(*ABC)[: 4 * BLOCK + 700], Way(LOST, {"text-missing": 1},
         "its tail is lost"),
         error("as a stream: ")),
    case("tar cut off in a caption", tar(*ABC)[: 5 * BLOCK + 515],
         Way(LOST, {"member-truncated": 1}, "its tail is lost"), error("as a stream: ")),
    case("tar cut off in a header", tar(*ABC)[: 4 * BLOCK + 99], Way(LOST, {}, "its tail is lost"),
         error("as a stream: ")),
    case("tar cut off between two members", tar(*ABC)[: 5 * BLOCK], Way(LOST, {"text-missing": 1},
         "no end mark"),
         Way(LOST, {"text-missing": 1}, "no end mark")),
    case("tar without its end mark", tar(*ABC)[: 6 * BLOCK], Way(("a", "b", "c"), {}, "no end mark")),
    case("tar with a header of garbage in its middle",
         tar(*ABC)[: 4 * BLOCK] + b"x" * 512 + tar(*ABC)[4 * BLOCK + 512 :],
         Way(LOST, {}, "no end mark"), error("damaged at byte 4096")),
    case("two tars put together with cat", tar(*pair("a"), *pair("b")) + tar(*pair("c")),
         Way(LOST, {}, "goes on behind its end mark"), Way(LOST, {}, "goes on behind its end mark")),
    case("tar that holds nothing", tar(), Way()),
    case("keys with dots", tar(*pair("a"), *pair("b.v1"), *pair("c")), Way(("a", "c"), {"text-missing": 1})),
    case("members out of order", tar(ABC[0], ABC[2], ABC[4], ABC[1], ABC[3], ABC[5]), WHOLE,
         Way((), {"text-missing": 3, "image-missing": 3})),
    case("names with ../", tar(*pair("../../evil"), *pair("x/../../evil")), Way(("../../evil",
         "x/../../evil"))),
    Tar("absolute names", lambda path: path.write_bytes(tar(*pair(f"{path.parent.parent}/evil"))),
         Way(("/evil",)),
        Way(("/evil",))),
    case("names of 300 characters, in folders, in Chinese",
         tar(*pair("k" * 300), *pair("x/y/k"), *pair("猫")),
         Way(("k" * 300, "x/y/k", "猫"))),
    case("names that are not UTF-8", tar(*pair("caf\udce9")), Way(("caf\\xe9",))),
    case("names with line breaks", tar(*pair("a\nerror: b"), member("c\r\n.png", b"x"), member("c\r\n.txt",
         b"x")),
         Way(("a\nerror: b",), {"image-unreadable": 1})),
    case("names that begin with a dot", tar(*pair("a"), member(".png", GOOD), member(".txt",
         CAPTION.encode())),
         Way(("a", ""))),
    case("names in capitals", tar(member("a.PNG", GOOD), member("a.Txt", CAPTION.encode())), Way(("a",))),
    case("the same key again in a tar", tar(*pair("a"), *pair("a")), Way(("a", "a"))),
    case("the same key in two tars", tar(*pair("good-0")), Way(("good-0",))),
    case("folders, a pipe and a device among the members",
         tar(*pair("a"), member("b", b"", type=tarfile.DIRTYPE), member("c.png", b"", type=tarfile.FIFOTYPE),
             member("d.png", b"", type=tarfile.CHRTYPE)), Way(("a",))),
    case("a symbolic link for a picture", tar(*pair("a"), link("b.png", "/etc/passwd", tarfile.SYMTYPE),
         ABC[3]),
         Way(("a",), {"image-missing": 1}, "links")),
    case("a hard link for a picture", tar(*pair("a"), link("b.png", "a.png", tarfile.LNKTYPE), ABC[3]),
         Way(("a",), {"image-missing": 1}, "links")),
    case("a sparse file for a picture", sparse, Way(("a", "c"), {"image-missing": 1}, "sparse"), Way(("a",
         "c"), {"image-unreadable": 1})),
    case("a member that claims 8 exabytes", with_header(tar(*ABC), 4 * BLOCK, **size(1 << 63)),
         Way(LOST, {"member-truncated": 1}, "its tail is lost"), error("as a stream: ")),
    case("a member that claims 2^80 bytes", with_header(tar(*ABC), 4 * BLOCK, **size(1 << 80)),
         Way(LOST, {"member-truncated": 1}, "its tail is lost"), error("as a stream: ")),
    case("a member of a negative size", with_header(tar(*ABC), 4 * BLOCK, **size(-4096)),
         Way(LOST, {}, "its tail is lost"), error("as a stream: ")),
    case("3,000 extended headers in a row", deep, Way(("a",), {}, "its tail is lost"),
         error("as a stream: ")),
]  # fmt: skip
