"""Whisper's encoder out of transformers' models and out of CTranslate2's files; files that lie."""

import struct

import numpy as np
import pytest
import torch

import mmvit
from mmvit import hub
from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.hub.convert.files.ctranslate2 import read_ctranslate2
from tests.hub import ctranslate2_files as files

X = torch.randn(2, 60, 20, generator=torch.Generator().manual_seed(1))


def tokens(peer) -> torch.Tensor:
    return peer.get_encoder()(X.transpose(1, 2)).last_hidden_state


@pytest.mark.parametrize("kind", ["WhisperModel", "WhisperForConditionalGeneration"])
@torch.no_grad()
def test_the_encoder_of_every_class_in_memory_and_in_files(kind, tmp_path):
    peer = files.whisper(kind)
    peer.save_pretrained(tmp_path)
    for source in (peer, tmp_path, peer.get_encoder()):
        tower = hub.from_transformers(source)
        found = tower.forward_tokens(X).values
        assert (found - tokens(peer)).abs().max() < 1e-5
        torch.testing.assert_close(tower.features(X), tokens(peer).mean(1), rtol=0, atol=1e-5)
    assert tokens(peer).std() > 0.5
    left = hub.from_transformers(peer).report.left_out
    assert {name.removeprefix("model.").split(".")[0] for name in left} <= {"decoder", "proj_out"}
    assert "the tower is the encoder" in next(iter(left.values()))
    assert tower.preprocess.audio == AudioPreprocess(
        features="whisper", sample_rate=16_000, samples=9600, mel_bins=20
    )


@torch.no_grad()
def test_a_classifiers_two_linear_layers_become_one():
    peer = files.whisper("WhisperForAudioClassification", num_labels=3, classifier_proj_size=16)
    model = hub.from_transformers(peer)
    wanted = peer(X.transpose(1, 2)).logits
    assert wanted.std() > 0.05
    torch.testing.assert_close(model(X), wanted, rtol=0, atol=1e-5)
    weighted = files.whisper("WhisperForAudioClassification", num_labels=3, use_weighted_layer_sum=True)
    with pytest.raises(ValueError, match="layer_weights"):
        hub.from_transformers(weighted)


@torch.no_grad()
def test_swapped_queries_and_values_would_be_seen():
    peer = files.whisper()
    wanted, attention = tokens(peer), peer.encoder.layers[0].self_attn
    attention.q_proj, attention.v_proj = attention.v_proj, attention.q_proj
    tower = hub.from_transformers(peer)
    assert (tower.forward_tokens(X).values - wanted).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        (lambda arrays: arrays, 1e-5),
        (lambda a: {n: v.astype(np.float16) if v.dtype == np.float32 else v for n, v in a.items()}, 0.02),
        (files.eight_bit, 0.2),
    ],
    ids=["float32", "float16", "int8"],
)
@torch.no_grad()
def test_ctranslate2_gives_the_same_tower(tmp_path, change, limit):
    peer = files.whisper()
    path = files.write(tmp_path / "model.bin", change(files.variables(peer)))
    for source in (path, tmp_path):
        tower = hub.from_ctranslate2(source)
        found = tower.forward_tokens(X).values
        assert found.dtype == torch.float32
        error = (found - tokens(peer)).abs()
        assert error.max() < limit
    assert (error.max() > 1e-4) == (limit > 1e-5)
    same = hub.from_transformers(peer)
    assert tower.config == same.config
    assert tower.preprocess == same.preprocess
    assert {name.removesuffix("_scale") for name in tower.report.left_out} == {"decoder/embeddings/weight"}


def test_a_tower_is_saved_with_how_it_is_fed(tmp_path):
    tower = hub.from_ctranslate2(
        files.write(tmp_path / "m.bin", files.variables(files.whisper())), skip_silence=True, depth=1
    )
    hub.save(tower, tmp_path / "tower")
    loaded = hub.load(tmp_path / "tower")
    assert loaded.preprocess == tower.preprocess
    assert loaded.model.config.stem.skip_silence
    with torch.no_grad():
        assert torch.equal(loaded.model.features(X), tower.features(X))
    model = mmvit.load(tmp_path / "tower")
    assert model.modalities == ("audio",)
    assert model.encode(audio=[(np.sin(np.arange(4000) / 9), 16_000)]).shape == (1, 32)


PARTS = [
    files.variable("encoder/a/weight", np.ones((2, 3), np.float32)),
    files.variable("x", np.ones(2, np.int8)),
]
BAD = {
    "empty": (b"", "the version takes 4 bytes, and 0 are left"),
    "another version": (files.content(PARTS, version=5), "its version is 5, expected 6"),
    "text": (b"not a model at all", "its version is"),
    "more variables than there are": (files.content(PARTS, count=2**32 - 1), "left|no string|printable|type"),
    "fewer variables": (files.content(PARTS, count=1), "bytes follow its end|are left|no string"),
    "something behind": (files.content(PARTS) + b"\0", "1 bytes follow its end"),
    "a length that lies": (
        files.content([files.variable("a", np.ones(2, np.float32), size=2**32 - 1)]),
        "'a' claims 8 bytes of .2,. and has 4,294,967,295",
    ),
    "an unknown type": (files.content([files.variable("a", np.ones(2, np.float32), kind=9)]), "type 9"),
    "another type": (
        files.content([files.variable("a", np.ones(2, np.float32), kind=1)]),
        "claims 2 bytes of .2,. and has 8",
    ),
    "a huge shape": (
        files.content([files.string("a") + struct.pack("<B4I", 4, *[2**31] * 4) + struct.pack("<BI", 0, 8)]),
        "claims [0-9,]{30,} bytes",
    ),
    "a huge shape of nothing": (
        files.content([files.string("a") + struct.pack("<B2I", 2, 2**31, 0) + struct.pack("<BI", 0, 4)]),
        "claims 0 bytes",
    ),
    "many axes": (files.content([files.string("a") + b"\xff" * 2000]), "255 axes"),
    "a name without an end": (files.content([struct.pack("<H", 3) + b"abc" + b"\0" * 40]), "zero byte"),
    "a name that moves the cursor": (
        files.content([files.variable("a\x1b[2J", np.ones(1, np.float32))]),
        "no printable string",
    ),
    "a name twice": (files.content([PARTS[0], PARTS[0]]), "'encoder/a/weight' is there twice"),
    "whole numbers without a scale": (
        files.content([files.variable("weight", np.ones((2, 3), np.int8))]),
        "'weight' is of whole numbers and has no scale",
    ),
    "a scale of another shape": (
        files.content(
            [
                files.variable("weight", np.ones((2, 3), np.int8)),
                files.variable("weight_scale", np.ones(7, np.float32)),
            ]
        ),
        r"the scale of 'weight' \(2, 3\) is \(7, 1\)",
    ),
    "a scale of zero": (
        files.content(
            [
                files.variable("weight", np.ones((2, 3), np.int8)),
                files.variable("weight_scale", np.zeros(2, np.float32)),
            ]
        ),
        "the scale of 'weight' is not positive",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_lies_is_one_line(tmp_path, case):
    data, words = BAD[case]
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words) as caught:
        read_ctranslate2(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole, path = files.content(PARTS), tmp_path / "model.bin"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"are left|no string"):
            read_ctranslate2(path)


def test_only_what_is_wanted_is_read_and_scales_go_along(tmp_path):
    arrays = files.eight_bit({"encoder/weight": np.eye(3, dtype=np.float32), "b": np.ones(2, np.float16)})
    found = read_ctranslate2(files.write(tmp_path / "m.bin", arrays), lambda name: name == "encoder/weight")
    assert found.architecture == "WhisperSpec"
    assert found.others == ["b"]
    assert torch.equal(found.tensors["encoder/weight"], torch.eye(3))
    aliased = read_ctranslate2(
        files.write(tmp_path / "n.bin", {"decoder/embeddings/weight": np.ones((2, 2), np.float32)})
    )
    assert torch.equal(aliased.tensors["decoder/projection/weight"], torch.ones(2, 2))


def test_what_is_no_whisper_is_said(tmp_path):
    arrays = files.variables(files.whisper())
    path = files.write(tmp_path / "t.bin", arrays, architecture="TransformerSpec")
    with pytest.raises(ValueError, match="holds a TransformerSpec, expected a WhisperSpec"):
        hub.from_ctranslate2(path)
    for name in ("encoder/conv1/weight", "encoder/num_heads"):
        rest = {n: v for n, v in arrays.items() if n != name}
        with pytest.raises(ValueError, match=f"has no '{name}'"):
            hub.from_ctranslate2(files.write(tmp_path / "t.bin", rest))
    for heads in (0, -1):
        wrong = arrays | {"encoder/num_heads": np.array(heads, np.int16)}
        with pytest.raises(ValueError, match=f"has {heads} heads of attention, expected at least 1"):
            hub.from_ctranslate2(files.write(tmp_path / "t.bin", wrong))
    rest = {n: v for n, v in arrays.items() if n != "encoder/layer_1/ffn/linear_1/bias"}
    with pytest.raises(ValueError, match=r"missing: core.blocks.1.mlp.fc2.bias"):
        hub.from_ctranslate2(files.write(tmp_path / "t.bin", rest))
    extra = arrays | {"encoder/alibi": np.ones((), np.int8)}
    with pytest.raises(ValueError, match="no place in our model: encoder/alibi"):
        hub.from_ctranslate2(files.write(tmp_path / "t.bin", extra))
    with pytest.raises(FileNotFoundError, match="no weights at"):
        hub.from_ctranslate2(tmp_path / "nowhere.bin")
    assert (
        ClipPreprocess(audio=AudioPreprocess())
        != hub.from_ctranslate2(files.write(tmp_path / "t.bin", arrays)).preprocess
    )
