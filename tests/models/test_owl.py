"""The detector: how it starts, what its logits may and may not depend on, padding, precision, copies."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from mmvit.heads.detect import MISSING, box_bias
from mmvit.models.config import DetectorConfig, ForeignImageTowerConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CaitConfig, CoreConfig
from mmvit.models.owl import OwlDetector

CORE = CoreConfig(width=32, depth=2, num_heads=2, mlp_dim=64)
IMAGE = ImageTowerConfig(core=CORE, image_size=(64, 64), patch_size=16)
TEXT = TextTowerConfig(
    core=CoreConfig(width=24, depth=1, num_heads=2, mlp_dim=48, causal=True),
    vocab_size=50,
    context_length=8,
    embed_dim=16,
)


def detector(scramble: bool = True, **fields) -> OwlDetector:
    """A small detector; `scramble` moves every parameter off its start, so that everything has an effect."""
    torch.manual_seed(0)
    model = OwlDetector(DetectorConfig(**{"image": IMAGE, "text": TEXT} | fields))
    if scramble:
        for value in model.parameters():
            value.data += 0.1 * torch.randn_like(value)
    return model.eval()


def pixels(height: int = 64, width: int = 64, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).byte()


def words(*shape: int) -> torch.Tensor:
    return torch.randint(1, 49, (*shape, 8), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_a_fresh_detector_has_patches_for_boxes_and_the_prior_for_answers():
    model = detector(scramble=False)
    out = model(pixels(), words(2, 5))
    assert out.logits.shape == (2, 16, 5)
    assert torch.equal(out.boxes, box_bias((4, 4), "corner").sigmoid().expand(2, -1, -1))
    assert out.objectness is None
    found = out.candidates
    assert 0 < found.embeddings.abs().max() < 1e-4
    torch.testing.assert_close(found.shift, torch.full((2, 16), math.log(0.01 / 0.99)))
    assert (out.logits - found.shift[..., None]).abs().max() <= 1  # the cosine of a tiny embedding


@torch.no_grad()
def test_queries_do_not_see_each_other():
    model, ids = detector(), words(2, 6)
    found = model.encode_image(pixels())
    queries = model.encode_queries(ids)
    logits = model.score(found, queries)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(model(pixels(), ids[:, order]).logits, logits[..., order], rtol=0, atol=1e-5)
    more = model.score(found, torch.cat([queries, torch.randn(2, 7, 16)], dim=1))
    torch.testing.assert_close(more[..., :6], logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.score(found, 37 * queries), logits, rtol=0, atol=1e-5)
    shared = model.score(found, queries[0])
    torch.testing.assert_close(shared[0], logits[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_missing_queries_are_never_found_and_change_nothing():
    model, ids = detector(), words(2, 4)
    whole = model(pixels(), ids)
    padded = torch.cat([ids, torch.zeros(2, 3, 8, dtype=torch.int64)], dim=1)
    real = torch.arange(7).expand(2, -1) < 4
    out = model(pixels(), padded, padded > 0, real)
    torch.testing.assert_close(out.logits[..., :4], whole.logits, rtol=0, atol=1e-5)
    assert (out.logits[..., 4:] == MISSING).all()
    assert out.logits.sigmoid().isfinite().all()
    assert (model.score(out.candidates, model.encode_queries(padded[0]), real[0])[..., 4:] == MISSING).all()


def test_padding_queries_have_no_part_in_the_gradient():
    model, ids = detector(), torch.zeros(1, 3, 8, dtype=torch.int64)
    ids[0, 0] = words(1)[0]
    out = model(pixels(count=1), ids, ids > 0, torch.tensor([[True, False, False]]))
    out.logits[..., 0].sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)


@torch.no_grad()
def test_equal_queries_are_computed_once():
    model, ids = detector(), words(2, 3)
    seen = []
    model.text.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    doubled = torch.cat([ids, ids.flip(1)], dim=1)
    queries = model.encode_queries(doubled)
    assert seen == [6]
    assert torch.equal(queries[:, :3], queries[:, 3:].flip(1))
    # The same ids under another mask are another query.
    mask = torch.ones(2, 1, 8, dtype=torch.bool)
    mask[1, 0, 4:] = False
    both = model.encode_queries(ids[:1, :1].expand(2, -1, -1), mask)
    assert not torch.allclose(both[0], both[1])
    assert model.encode_queries(ids[:0]).shape == (0, 3, 16)


@torch.no_grad()
def test_other_sizes_and_aspect_ratios():
    model = detector()
    out = model(pixels(32, 112), words(3))
    assert out.candidates.grid == (2, 7)
    assert out.logits.shape == (2, 14, 3)
    assert out.boxes.shape == (2, 14, 4)
    with pytest.raises(ValueError, match="picture is 30x64 pixels, expected multiples of patch_size=16"):
        model(pixels(30, 64), words(3))


@pytest.mark.parametrize("merge", ["mul_ln", "drop", "norm"])
@torch.no_grad()
def test_hidden_padding_is_never_seen(merge):
    model = detector(hide_padding=True, merge=merge)
    regions = torch.tensor([[[0, 0, 1, 0.5]], [[0, 0, 0.75, 1]]])
    picture, other = pixels(), pixels()
    other[0, :, 32:], other[1, :, :, 48:] = 0, 255
    a, b = (model(x, words(3), regions=regions) for x in (picture, other))
    real = a.candidates.mask
    assert real.sum(1).tolist() == [8, 12]
    assert torch.equal(a.logits[real], b.logits[real])
    assert torch.equal(a.boxes[real], b.boxes[real])
    assert (a.logits[~real] == MISSING).all()
    plain = detector(merge=merge)
    shown = [plain(x, words(3), regions=regions) for x in (picture, other)]
    assert not torch.allclose(shown[0].logits[real], shown[1].logits[real])
    assert (shown[0].logits[~real] == MISSING).all()


@torch.no_grad()
def test_hidden_padding_equals_a_picture_without_it():
    """With positions that do not change with the grid, the upper half alone gives the same tokens."""
    model = detector(hide_padding=True, image=copy.copy(IMAGE))
    half = torch.tensor([[[0, 0, 1, 0.5]]])
    found = model.encode_image(pixels(count=1), half)
    model.image.pos_embed.data = torch.cat(
        [model.image.pos_embed.data[:, :1], model.image.pos_embed.data[:, 1:9]], dim=1
    )
    model.image.grid = (2, 4)
    alone = model.encode_image(pixels(count=1)[:, :, :32])
    torch.testing.assert_close(found.embeddings[:, :8], alone.embeddings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
@torch.no_grad()
def test_a_picture_of_which_nothing_is_seen(class_token):
    image = IMAGE if class_token else ImageTowerConfig(**vars(IMAGE) | {"class_token": False, "pool": "mean"})
    model = detector(hide_padding=True, image=image)
    out = model(pixels(), words(3), regions=torch.zeros(2, 1, 4))
    assert (out.logits == MISSING).all()
    assert out.boxes.isfinite().all()


def test_objectness_teaches_its_head_alone():
    model = detector(objectness=True)
    out = model(pixels(), words(3))
    assert out.objectness.shape == (2, 16)
    out.objectness.sum().backward()
    learned = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {"objectness_head"}


def test_every_parameter_learns():
    for fields in ({}, {"merge": "drop"}, {"merge": "norm"}, {"box_bias": "center"}):
        model = detector(**fields)
        out = model(pixels(), words(3))
        (out.logits.sum() + out.boxes.sum()).backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None], fields


def test_a_core_with_a_class_token_of_its_own():
    core = CaitConfig(width=32, depth=1, num_heads=2, mlp_dim=64, class_depth=1)
    image = ImageTowerConfig(core=core, image_size=(64, 64), patch_size=16, class_token=False)
    model = detector(image=image)
    out = model(pixels(), words(3))
    (out.logits.sum() + out.boxes.sum()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with pytest.raises(ValueError, match="merge is 'drop'.*class blocks"):
        detector(image=image, merge="drop")


def test_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = detector()
        model.set_checkpointing(on)
        out = model(pixels(), words(3))
        (out.logits.square().sum() + out.boxes.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name)


@torch.no_grad()
def test_double_and_half_precision():
    model, ids = detector(), words(3)
    single = model(pixels(), ids)
    double = copy.deepcopy(model).double()(pixels(), ids)
    assert double.logits.dtype == torch.float64
    torch.testing.assert_close(double.logits.float(), single.logits, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(pixels(), ids)
    assert (half.logits.dtype, half.boxes.dtype) == (torch.float32, torch.float32)
    assert half.logits.isfinite().all()
    assert (half.boxes - single.boxes).abs().max() < 0.05
    assert (half.logits - single.logits).abs().max() < 0.05 * single.logits.abs().max()


@torch.no_grad()
def test_copies_and_pickles_are_the_same_model():
    model, ids = detector(), words(3)
    wanted = model(pixels(), ids).logits
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    copies.append(OwlDetector(model.config).eval())
    copies[-1].load_state_dict(torch.load(file))
    assert all(torch.equal(other(pixels(), ids).logits, wanted) for other in copies)
    assert not any("bias" in name and "box_bias" in name for name in model.state_dict())


def test_training_goes_on_after_inference():
    """What inference keeps for later calls must not stand in a gradient's way."""
    model, ids = detector(), words(3)
    with torch.inference_mode():
        model(pixels(), ids)
    model(pixels(), ids).boxes.sum().backward()
    assert model.box_head.dense2.weight.grad is not None


def test_towers_that_a_detector_cannot_use():
    with pytest.raises(ValueError, match="no head and no pooling"):
        detector(image=ImageTowerConfig(**vars(IMAGE) | {"embed_dim": 16}))
    with pytest.raises(ValueError, match="no head and no pooling"):
        detector(image=ImageTowerConfig(**vars(IMAGE) | {"pool": "map"}))
    pooled = ForeignImageTowerConfig(
        library="timm", name="resnet10t", width=512, arguments={"num_classes": 0}
    )
    with pytest.raises(ValueError, match="resnet10t pools, expected tokens=True"):
        detector(image=pooled)
    with pytest.raises(ValueError, match="merge is 'add', expected mul_ln, norm or drop"):
        detector(merge="add")
    with pytest.raises(ValueError, match="box_bias is 'middle', expected corner or center"):
        detector(box_bias="middle")
    assert isinstance(detector().merge, nn.Module)
