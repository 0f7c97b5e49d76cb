"""Weights out of other people's files: an ONNX graph, a .pth with other names, a sentence encoder."""

import json

import numpy as np
import onnx
import pytest
import timm
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mmvit.hub.convert.files.read import read_weights
from mmvit.hub.convert.from_dinov2_onnx import from_dinov2_onnx
from mmvit.hub.convert.from_efficientnet_lite import convert_efficientnet_lite, from_efficientnet_lite
from mmvit.hub.convert.from_sentence_bert import from_sentence_bert
from mmvit.hub.convert.keymap import fill, translate


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
            if "var" in name or ("norm" in name.lower() and name.endswith("weight")):
                value.abs_().add_(0.5)
    return model.eval()


def exported(peer: nn.Module, tmp_path) -> str:
    """A graph with the names that exporting gives: biases named, Linear weights transposed and anonymous."""
    peer.save_pretrained(tmp_path / "peer")
    state = read_weights(tmp_path / "peer")
    table = state.pop("embeddings.position_embeddings").numpy()
    state.pop("embeddings.mask_token")
    stored, nodes = [], []
    for i, (name, value) in enumerate(state.items()):
        linear = name.endswith(".weight") and value.ndim == 2
        if linear:
            operand = f"onnx::MatMul_{100 + i}"
            place = name.removesuffix(".weight").replace("encoder.layer.", "encoder/layer#").replace(".", "/")
            place = "/backbone/" + place.replace("#", ".") + "/MatMul"
            nodes.append(helper.make_node("MatMul", [f"x{i}", operand], [f"y{i}"], name=place))
        stored.append(
            numpy_helper.from_array(
                value.numpy().T if linear else value.numpy(), operand if linear else f"backbone.{name}"
            )
        )
    side = int((table.shape[1] - 1) ** 0.5)
    stored.append(numpy_helper.from_array(table[:, :1], "onnx::Concat_7"))
    stored.append(numpy_helper.from_array(table[:, 1:], "onnx::Reshape_8"))
    stored.append(numpy_helper.from_array(np.array([1, side, side, table.shape[2]]), "shape"))
    for op, inputs, output in (
        ("Reshape", ["onnx::Reshape_8", "shape"], "p1"),
        ("Transpose", ["p1"], "p2"),
        ("Cast", ["p2"], "p3"),
        ("Resize", ["p3", "", "", "sizes"], "p4"),
        ("Transpose", ["p4"], "p5"),
        ("Reshape", ["p5", "shape"], "p6"),
        ("Concat", ["onnx::Concat_7", "p6"], "p7"),
        ("Add", ["tokens", "p7"], "p8"),
    ):
        nodes.append(helper.make_node(op, inputs, [output], name=f"/backbone/embeddings/{op}"))
    out = helper.make_tensor_value_info("p8", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [out], stored)), tmp_path / "m.onnx")
    return str(tmp_path / "m.onnx")


@torch.no_grad()
def test_dinov2_out_of_an_onnx_graph(tmp_path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=2, image_size=32, patch_size=8
    )
    peer = randomise(transformers.Dinov2Model(config))
    tower = from_dinov2_onnx(exported(peer, tmp_path))
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    theirs = peer(pixels, output_hidden_states=True)
    assert (tower.features(pixels) - theirs.last_hidden_state[:, 0]).abs().max() < 1e-5
    cut = from_dinov2_onnx(tmp_path / "m.onnx", depth=1, norm_last=False)
    assert (cut.features(pixels) - theirs.hidden_states[1][:, 0]).abs().max() < 1e-5


def test_another_onnx_file_is_refused(tmp_path) -> None:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [out])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="not an exported DINOv2 backbone"):
        from_dinov2_onnx(tmp_path / "m.onnx")


def efficientnet_names(peer: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of timm's network, in the order of its computation, under EfficientNet-PyTorch's names."""
    parts = {"_conv_stem": peer.conv_stem, "_bn0": peer.bn1, "_conv_head": peer.conv_head, "_bn1": peer.bn2}
    parts["_fc"] = peer.classifier
    number = 0
    for stage in peer.blocks:
        for block in stage:
            layers = [m for m in block.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
            names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            for name, layer in zip(names[-len(layers) :], layers, strict=True):
                parts[f"_blocks.{number}.{name}"] = layer
            number += 1
    return {f"{part}.{n}": v for part, layer in parts.items() for n, v in layer.state_dict().items()}


@torch.no_grad()
def test_efficientnet_lite_names() -> None:
    peer = randomise(timm.create_model("tf_efficientnet_lite0", num_classes=7))
    state = efficientnet_names(peer)
    assert state["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    converted, report = convert_efficientnet_lite(state, list(peer.state_dict()), classifier=True)
    again = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    again.load_state_dict(converted)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.eval()(pixels), peer(pixels))
    assert len(report.loaded) == len(state)
    tower = from_efficientnet_lite(state, "tf_efficientnet_lite0")
    assert set(tower.report.left_out) == {"_fc.weight", "_fc.bias"}
    raw = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    features = peer.forward_head(peer.forward_features((raw.float() - 127) / 128), pre_logits=True)
    assert torch.allclose(tower(raw), features, rtol=1e-4, atol=1e-4)
    state.pop("_blocks.3._bn1.weight")
    with pytest.raises(ValueError, match=r"1 tensors missing: blocks.2.0.bn2.weight"):
        from_efficientnet_lite(state, "tf_efficientnet_lite0")


def bert_folder(folder) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    peer = randomise(transformers.BertModel(config))
    peer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fox", "red", "of"])}
    spec = {
        "version": "1.0",
        "added_tokens": [],
        "model": {
            "type": "WordPiece",
            "vocab": words,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return peer


@torch.no_grad()
def test_a_sentence_encoders_folder(tmp_path) -> None:
    peer = bert_folder(tmp_path)
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}))
    tower, tokenizer = from_sentence_bert(tmp_path, context_length=12)
    tokens = tokenizer(["a red fox", "of"])
    assert tokens.ids[0].tolist()[:6] == [2, 4, 6, 5, 3, 0]
    hidden = peer(tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    mean = (hidden * tokens.mask[..., None]).sum(1) / tokens.mask.sum(1, keepdim=True)
    assert (tower(tokens.ids, tokens.mask) - mean).abs().max() < 1e-5
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pools by pooling_mode_max_tokens"):
        from_sentence_bert(tmp_path)


def test_tables_account_for_every_tensor() -> None:
    x = torch.zeros(2, 2)
    table = [("a.*", "b.*"), ("q", "m#0"), ("k", "m#1")]
    state, report = translate({"a.weight": x, "q": x, "k": x + 1}, table, source="toy")
    assert state["m"].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert report.loaded == {"b.weight": ["a.weight"], "m": ["q", "k"]}
    with pytest.raises(ValueError, match="toy: 1 tensors have no place in our model: z"):
        translate({"z": x}, table, source="toy")
    with pytest.raises(ValueError, match="'m' is joined from several tensors and one is missing"):
        translate({"k": x}, table, source="toy")
    with pytest.raises(ValueError, match="two tensors claim 'b.w'"):
        translate({"a.w": x, "c.w": x}, [*table, ("c.*", "b.*")], source="toy")
    linear = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"1 tensors of another shape: weight \(2, 3\) for \(2, 2\)"):
        fill(linear, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, source="toy")
    with pytest.raises(ValueError, match="1 tensors missing: bias"):
        fill(linear, {"weight": x}, source="toy")
