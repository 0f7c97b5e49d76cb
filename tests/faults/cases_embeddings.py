"""Odd cached embeddings; the good ones are float32 (4,)."""

import io
import os
import pickle

import numpy as np

from tests.faults.case import CAPTION, Case

TRAP = "a-pickle-was-run"


def npy(array, **options):
    sink = io.BytesIO()
    np.save(sink, array, **options)
    return sink.getvalue()


def header(shape, descr="'<f4'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (TRAP,)


def trap():
    array = np.empty(1, dtype=object)
    array[0] = Trap()
    return npy(array, allow_pickle=True)


def zipped():
    sink = io.BytesIO()
    np.savez(sink, np.zeros(4))
    return sink.getvalue()


def is_ones(embedding, caption):
    assert embedding.tolist() == [1.0] * 4


def case(fault, make, *rest):
    return Case(fault, lambda: {"npy": make(), "txt": CAPTION}, *rest, cached=True)


CASES = [
    Case("no cached embedding", lambda: {"txt": CAPTION}, "embedding-missing", cached=True),
    case("embedding of zero bytes", lambda: b"", "embedding-unreadable"),
    case("embedding cut off", lambda: npy(np.ones(4, np.float32))[:-3], "embedding-unreadable"),
    case("embedding that is a picture", lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "embedding-unreadable"),
    case("embedding with a pickle in it", trap, "embedding-unreadable"),
    case("embedding that is a pickle", lambda: pickle.dumps(Trap()), "embedding-unreadable"),
    case("embedding that is a .npz", zipped, "embedding-unreadable"),
    case("embedding of another width", lambda: npy(np.ones(5, np.float32)), "embedding-shape"),
    case("embedding of three dimensions", lambda: npy(np.ones((1, 1, 4), np.float32)), "embedding-shape"),
    case("embedding of no views", lambda: npy(np.ones((0, 4), np.float32)), "embedding-shape"),
    case("embedding of whole numbers", lambda: npy(np.ones(4, np.int64)), "embedding-dtype"),
    case("embedding of text", lambda: npy(np.array(["a", "b", "c", "d"])), "embedding-dtype"),
    case("embedding with NaN", lambda: npy(np.array([1, np.nan, 1, 1], np.float32)), "embedding-not-finite"),
    case("embedding beyond float32", lambda: npy(np.array([1, 1e300, 1, 1])), "embedding-not-finite"),
    case("embedding in Fortran order", lambda: npy(np.asfortranarray(np.ones((2, 4), np.float32))),
         "embedding-unreadable"),
    case("embedding that claims 10^15 numbers", lambda: header("(10**15,)".replace("10**15", str(10**15))),
         "embedding-unreadable"),
    case("embedding whose header is a program", lambda: header("(__import__('os').mkdir('" + TRAP + "'),)"),
         "embedding-unreadable"),
    case("embedding in float64, other byte order", lambda: npy(np.ones(4, ">f8")), "", "float32", is_ones),
]  # fmt: skip
