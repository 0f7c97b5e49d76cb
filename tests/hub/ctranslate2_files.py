"""Small Whispers in CTranslate2's format, written number by number as its converter writes them."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from tests.parity.case import randomise

SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "vocab_size": 50,
    "max_source_positions": 30,
    "max_target_positions": 8,
    "num_mel_bins": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


def whisper(kind: str = "WhisperModel", **fields: Any) -> Any:
    """A small model of transformers, all parameters random."""
    torch.manual_seed(0)
    return randomise(getattr(transformers, kind)(transformers.WhisperConfig(**SMALL | fields)))


def variables(peer: Any) -> dict[str, np.ndarray]:
    """The encoder's variables under CTranslate2's names, and one of the decoder's."""
    state = {n.removeprefix("encoder."): v for n, v in peer.state_dict().items() if n.startswith("encoder.")}
    found: dict[str, Tensor] = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
    for conv in ("conv1", "conv2"):
        found |= {f"encoder/{conv}/{part}": state[f"{conv}.{part}"] for part in ("weight", "bias")}

    def norm(theirs: str, mine: str) -> None:
        found[f"encoder/{mine}/gamma"] = state[f"{theirs}.weight"]
        found[f"encoder/{mine}/beta"] = state[f"{theirs}.bias"]

    norm("layer_norm", "layer_norm")
    for i in range(SMALL["encoder_layers"]):
        theirs, mine = f"layers.{i}", f"layer_{i}"
        attention = f"{theirs}.self_attn"
        q, v = state[f"{attention}.q_proj.bias"], state[f"{attention}.v_proj.bias"]
        joined = [state[f"{attention}.{part}_proj.weight"] for part in "qkv"]
        found[f"encoder/{mine}/self_attention/linear_0/weight"] = torch.cat(joined)
        found[f"encoder/{mine}/self_attention/linear_0/bias"] = torch.cat([q, torch.zeros_like(q), v])
        for part in ("weight", "bias"):
            found[f"encoder/{mine}/self_attention/linear_1/{part}"] = state[f"{attention}.out_proj.{part}"]
            for k, name in enumerate(("fc1", "fc2")):
                found[f"encoder/{mine}/ffn/linear_{k}/{part}"] = state[f"{theirs}.{name}.{part}"]
        norm(f"{theirs}.self_attn_layer_norm", f"{mine}/self_attention/layer_norm")
        norm(f"{theirs}.final_layer_norm", f"{mine}/ffn/layer_norm")
    arrays = {name: value.numpy() for name, value in found.items()}
    arrays["encoder/num_heads"] = np.array(SMALL["encoder_attention_heads"], np.int16)
    arrays["decoder/embeddings/weight"] = np.zeros((50, 32), np.float16)
    return arrays


def eight_bit(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Linear weights in 8 bits with a scale for each row."""
    found: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if not name.endswith("weight") or value.ndim != 2:
            found[name] = value
            continue
        greatest = np.abs(value).astype(np.float32).max(1)
        scale = 127 / np.where(greatest == 0, 127, greatest)
        found[name] = np.rint(value * scale[:, None]).astype(np.int8)
        found[f"{name}_scale"] = scale.astype(np.float32)
    return found


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, value: np.ndarray, **lies: int) -> bytes:
    """One variable; `kind` and `size` may be stated wrongly."""
    kind = lies.get("kind", TYPES.index(value.dtype.type))
    size = lies.get("size", value.nbytes)
    shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
    return string(name) + shape + struct.pack("<BI", kind, size) + value.tobytes()


def content(parts: list[bytes], *, architecture: str = "WhisperSpec", version: int = 6, **lies: int) -> bytes:
    """A file of variables; `count` may be stated wrongly."""
    head = struct.pack("<I", version) + string(architecture) + struct.pack("<I", 3)
    alias = string("decoder/projection/weight") + string("decoder/embeddings/weight")
    count = lies.get("count", len(parts))
    return head + struct.pack("<I", count) + b"".join(parts) + struct.pack("<I", 1) + alias


def write(path: Path, arrays: dict[str, np.ndarray], **fields: Any) -> Path:
    path.write_bytes(content([variable(*item) for item in sorted(arrays.items())], **fields))
    return path
