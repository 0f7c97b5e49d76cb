"""The task: what the loss sees of a batch, micro-batches, parameters without a share, a fit."""

import copy

import pytest
import torch

from mmvit.boxes import iou, to_xyxy
from mmvit.losses import detection_loss
from mmvit.models.config import DetectorConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.owl import OwlDetector
from mmvit.tasks.detection import DetectionTask
from mmvit.types import Batch

SIDE, PATCH = 48, 8
COLOURS = [(220, 30, 30), (30, 200, 40), (40, 60, 230), (230, 220, 30), (250, 250, 250), (150, 30, 200)]


def detector(**options):
    torch.manual_seed(0)
    image = ImageTowerConfig(
        core=CoreConfig(width=48, depth=2, num_heads=4, mlp_dim=96),
        image_size=(SIDE, SIDE),
        patch_size=PATCH,
        pool="cls",
    )
    text = TextTowerConfig(
        core=CoreConfig(width=32, depth=1, num_heads=4, mlp_dim=64, causal=True),
        vocab_size=20,
        context_length=4,
        embed_dim=32,
    )
    return OwlDetector(DetectorConfig(image=image, text=text, **options))


def scenes(size=4):
    """Pictures of two or three coloured rectangles on grey, and the colours as queries."""
    g = torch.Generator().manual_seed(0)
    Q = len(COLOURS)
    image = torch.full((size, 3, SIDE, SIDE), 90, dtype=torch.uint8)
    boxes, labels = torch.zeros(size, 3, 4), torch.zeros(size, 3, Q, dtype=torch.bool)
    for b in range(size):
        corners, colours = torch.randperm(4, generator=g)[:3], torch.randperm(Q, generator=g)[:3]
        for m, (corner, c) in enumerate(zip(corners.tolist(), colours.tolist(), strict=True)):
            h, w, y, x = torch.randint(10, 18, (4,), generator=g).tolist()
            y0, x0 = corner // 2 * 24 + y % 6, corner % 2 * 24 + x % 6
            image[b, :, y0 : y0 + h, x0 : x0 + w] = torch.tensor(COLOURS[c], dtype=torch.uint8)[:, None, None]
            boxes[b, m] = torch.tensor([x0, y0, x0 + w, y0 + h]) / SIDE
            labels[b, m, c] = True
    mask = torch.ones(size, 3, dtype=torch.bool)
    mask[-1, 2] = False
    ids = torch.tensor([[1, 2 + q, 19, 0] for q in range(Q)]).expand(size, Q, 4)
    return Batch(
        keys=[str(b) for b in range(size)],
        image=image,
        queries=ids,
        queries_mask=ids > 0,
        query_mask=torch.ones(size, Q, dtype=torch.bool),
        boxes=boxes,
        box_mask=mask,
        box_labels=labels,
        regions=torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]).repeat(size, 1, 1),
    )


def test_the_loss_is_that_of_the_real_boxes_queries_and_tokens():
    task, batch = DetectionTask(detector(), weights=(1.0, 2.0, 0.5)).eval(), scenes()
    batch.regions[0, 0] = torch.tensor([0.0, 0.0, 1.0, 0.5])  # padding below
    batch.query_mask[1, 4] = False
    batch.boxes[-1, 2] = float("nan")  # padding of the boxes is not read
    out = task(batch)
    found = task.model(batch.image, batch.queries, batch.queries_mask, batch.query_mask, batch.regions)
    seen = torch.ones(4, 36, dtype=torch.bool)
    seen[0, 18:] = False
    assert torch.equal(found.candidates.mask, seen)
    targets = [
        {"labels": batch.box_labels[b][batch.box_mask[b]], "boxes": batch.boxes[b][batch.box_mask[b]]}
        for b in range(4)
    ]
    want = detection_loss(
        found.logits,
        found.boxes,
        targets,
        query_mask=batch.query_mask,
        token_mask=seen,
        weights=(1.0, 2.0, 0.5),
    )
    for name, value in want.items():
        torch.testing.assert_close(out[name], value, rtol=1e-6, atol=1e-6)
    assert out["boxes"].item() == 11 / 4
    assert 0 < out["match_iou"].item() < 1
    assert 0 <= out["match_top1"].item() <= 1


@pytest.mark.parametrize("normalization", ["global", "per_example"])
@pytest.mark.parametrize("padded", [False, True])
def test_embeddings_of_parts_are_parts_of_embeddings(normalization, padded):
    """What micro-batches rest on: rows do not depend on each other, the loss reads tensors and batch only."""
    task, batch = DetectionTask(detector(objectness=True), normalization).double().eval(), scenes()
    batch.regions = torch.tensor([[[0.0, 0.0, 1.0, 0.6]]]).repeat(4, 1, 1) if padded else None
    whole = task.embed(batch)
    parts = [task.embed(batch.rows(i, i + 1)) for i in range(4)]
    assert [x.shape for x in whole] == [(4, 36, 6), (4, 36, 4), (4, 36), (4, 36)]
    for a, b in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(b), a, rtol=0, atol=1e-12)
    assert whole[2].sum().item() == (4 * 24 if padded else 4 * 36)
    again = task.loss(tuple(torch.cat(x) for x in zip(*parts, strict=True)), batch)
    torch.testing.assert_close(again["loss"], task(batch)["loss"], rtol=0, atol=1e-10)
    rows = [task(batch.rows(i, i + 1)) for i in range(4)]
    for name in ("loss", "match_iou"):
        single = torch.stack([row[name] for row in rows]).mean()
        assert torch.isclose(single, again[name].double(), rtol=1e-9).item() == task.separable, name


@pytest.mark.parametrize("objectness", [False, True])
def test_every_parameter_has_a_gradient_whatever_the_batch_holds(objectness):
    """Data parallelism waits for all of them, also on the rank whose pictures are empty."""
    batch = scenes()
    for change in ({}, {"box_mask": torch.zeros(4, 3, dtype=torch.bool)}, {"boxes": None}):
        task = DetectionTask(detector(objectness=objectness))
        given = copy.copy(batch)
        for name, value in change.items():
            setattr(given, name, value)
        if given.boxes is None:
            given.boxes, given.box_mask = torch.zeros(4, 0, 4), torch.zeros(4, 0, dtype=torch.bool)
            given.box_labels = torch.zeros(4, 0, 6, dtype=torch.bool)
            given.query_mask = torch.zeros(4, 6, dtype=torch.bool)
        out = task(given)
        out["loss"].backward()
        assert all(torch.isfinite(value) for value in out.values())
        assert [n for n, p in task.named_parameters() if p.grad is None] == []
        assert all(torch.isfinite(p.grad).all() for p in task.parameters())


def test_autocast_reaches_the_towers_but_not_the_loss():
    task, batch = DetectionTask(detector()), scenes()
    want, precise = task(batch), task.embed(batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = task.embed(batch)
        out = task.loss(embeddings, batch)
    assert not torch.equal(embeddings[0], precise)
    assert {x.dtype for x in (*embeddings, *out.values())} <= {torch.float32, torch.float64}
    assert out["loss"].item() == pytest.approx(want["loss"].item(), rel=0.02)


def test_objectness_moves_its_own_head_only():
    plain, task = DetectionTask(detector()), DetectionTask(detector(objectness=True), objectness_weight=1.0)
    state = task.state_dict()
    state.update(plain.state_dict())
    task.load_state_dict(state)
    batch = scenes()
    plain(batch)["loss"].backward()
    out = task(batch)
    out["loss"].backward()
    assert out["loss_objectness"] > 0
    others = dict(plain.named_parameters())
    for name, parameter in task.named_parameters():
        if "objectness" in name:
            assert parameter.grad.abs().sum() > 0, name
        else:
            torch.testing.assert_close(parameter.grad, others[name].grad, rtol=1e-6, atol=1e-7)


def test_four_pictures_are_learnt():
    batch, task = scenes(), DetectionTask(detector(box_bias="center"))
    optimizer = torch.optim.Adam(task.parameters(), lr=4e-3)
    losses = []
    for _ in range(150):
        out = task(batch)
        optimizer.zero_grad()
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        losses.append(out["loss"].item())
    assert losses[-1] < losses[0] / 10
    assert out["match_top1"].item() == pytest.approx(1)
    with torch.no_grad():
        logits, boxes, *_ = task.eval().embed(batch)
    for b in range(4):
        scores = logits[b].sigmoid()
        for m in range(int(batch.box_mask[b].sum())):
            query = int(batch.box_labels[b, m].nonzero())
            best = scores[:, query].argmax()
            assert scores[best].argmax() == query
            assert iou(to_xyxy(boxes[b, best])[None], batch.boxes[b, m][None]).item() > 0.5
        absent = ~batch.box_labels[b][batch.box_mask[b]].any(dim=0)
        assert scores[:, absent].max() < 0.5


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"objectness_weight is 0\.5, but the model has no objectness head"):
        DetectionTask(detector(), objectness_weight=0.5)
    task = DetectionTask(detector())
    assert task.chance(16) is None
    assert task.loss_parameters() == []
    bare = scenes()
    bare.queries = None
    with pytest.raises(ValueError, match="needs pictures and their queries"):
        task(bare)
    bare = scenes()
    bare.box_labels = None
    with pytest.raises(ValueError, match="needs boxes, box_mask and box_labels"):
        task(bare)
