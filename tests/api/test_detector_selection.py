"""Which pairs of a candidate and a query are detections: order, threshold, suppression, padding, pixels."""

import dataclasses

import pytest
import torch
from PIL import Image

from mmvit.boxes import iou
from mmvit.data.image import ImagePreprocess
from mmvit.detector import Detector
from mmvit.detector.select import Selection, select
from mmvit.types import Candidates
from tests.api.detectors import SIDE, E, detector, owl, picture, planted, same


@pytest.fixture(scope="module")
def det() -> Detector:
    return detector()


def pictures() -> list[Image.Image]:
    return [picture(40, 120), picture(64, 64, 1), picture(150, 50, 2)]


def test_scores_and_boxes_are_those_of_the_model(det) -> None:
    """Against the plain forward of the model, every pair, sorted by hand."""
    image = picture(64, 64)
    tokens = det.tokenizer(["a fox", "two cups"])
    with torch.no_grad():
        out = det.model(det.preprocess(image)[None], tokens.ids[None], tokens.mask[None])
    scores, order = out.logits[0].sigmoid().flatten().sort(descending=True)
    one = det.detect(image, ["a fox", "two cups"], threshold=None, top_k=None)[0]
    torch.testing.assert_close(one.scores, scores, rtol=0, atol=1e-6)
    assert one.labels.tolist() == (order % 2).tolist()
    centre = out.boxes[0][order // 2] * SIDE
    corners = torch.cat([centre[:, :2] - centre[:, 2:] / 2, centre[:, :2] + centre[:, 2:] / 2], dim=1)
    torch.testing.assert_close(one.boxes, corners.clamp(0, SIDE), rtol=0, atol=1e-4)


def test_one_query_twice_gives_both(det) -> None:
    one = det.detect(picture(64, 64), ["fox", "fox"], threshold=None, top_k=None)[0]
    assert one.labels.tolist() == [0, 1] * (len(one.labels) // 2), "equal scores come in the order of queries"
    assert torch.equal(one.scores[::2], one.scores[1::2])


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (50, 50), (1, 60), (333, 64)])
@pytest.mark.parametrize("resize", ["pad_corner", "squash", "pad"])
def test_planted_boxes_come_back_in_the_pictures_own_pixels(det, size, resize) -> None:
    """Fractions of the padded tensor and back: half a pixel is allowed, a thousandth is reached."""
    place = ImagePreprocess(size=(SIDE, SIDE), resize=resize).placement(*size)
    height, width = size
    boxes = torch.tensor(
        [[0, 0, width, height], [0.25 * width, 0.5 * height, 0.75 * width, height], [0, 0, 1, 1]]
    )
    query = torch.nn.functional.normalize(torch.randn(E, generator=torch.Generator().manual_seed(0)), dim=0)
    enc = planted(det, place, boxes, query.expand(3, -1), torch.tensor([0.0, -0.1, -0.2]))
    bank = dataclasses.replace(det.encode_queries("thing"), embeddings=query[None, None])
    one = det.score(enc, bank)[0]
    torch.testing.assert_close(one.boxes, boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(one.scores, torch.sigmoid(torch.tensor([10.0, 9.0, 8.0])), rtol=0, atol=1e-5)


def test_boxes_are_cut_at_the_picture_and_padding_finds_nothing(det) -> None:
    place = det.preprocess.placement(32, 64)
    boxes = torch.tensor([[10.0, 20, 30, 60], [5, 33, 20, 60], [0, 32, 64, 64]])  # the picture ends at y = 32
    enc = planted(det, place, boxes, torch.ones(3, E))
    one = det.score(enc, det.encode_queries("thing"), threshold=None)[0]
    torch.testing.assert_close(one.boxes, torch.tensor([[10.0, 20, 30, 32]]), rtol=0, atol=1e-3)
    real = det.encode_image(picture(32, 64))
    assert real.candidates.mask is not None
    assert real.candidates.mask.view(4, 4).all(dim=1).tolist() == [True, True, False, False]
    assert det.encode_image(picture(64, 64)).candidates.mask is None


def test_what_is_dropped_makes_room_for_the_next(det) -> None:
    place = det.preprocess.placement(64, 64)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [70, 70, 90, 90], [40, 40, 50, 50]])
    enc = planted(det, place, boxes, torch.ones(5, E), -0.01 * torch.arange(5.0))
    bank = det.encode_queries(["thing", "other"])
    for query in ("thing", "other"):
        one = det.score(enc, bank[query], threshold=None, top_k=2, nms=0.5)[0]
        torch.testing.assert_close(one.boxes, boxes[[0, 4]], rtol=0, atol=1e-3)
    assert len(det.score(enc, bank["thing"], threshold=None, top_k=4)[0].boxes) == 4


def test_suppression_is_by_query(det) -> None:
    """The greedy rule written out, on random boxes, is what comes back."""
    g = torch.Generator().manual_seed(0)
    low = 50 * torch.rand(60, 2, generator=g)
    boxes = torch.cat([low, low + 2 + 20 * torch.rand(60, 2, generator=g)], dim=1).clamp(max=64)
    enc = planted(det, det.preprocess.placement(64, 64), boxes, torch.randn(60, E, generator=g))
    bank = det.encode_queries(["fox", "cup", "tree"])
    every = det.score(enc, bank, threshold=None, top_k=None)[0]
    overlaps, kept = iou(every.boxes, every.boxes), []
    for i in range(len(every.boxes)):
        rivals = [j for j in kept if every.labels[j] == every.labels[i]]
        if not any(overlaps[i, j] > 0.3 for j in rivals):
            kept.append(i)
    assert 0 < len(kept) < len(every.boxes)
    for top_k in (1, 7, 50, None):
        one = det.score(enc, bank, threshold=None, top_k=top_k, nms=0.3)[0]
        assert torch.equal(one.boxes, every.boxes[kept][:top_k])
        assert torch.equal(one.labels, every.labels[kept][:top_k])


def test_threshold_and_top_k_cut_the_same_list(det) -> None:
    enc, bank = det.encode_image(pictures()), det.encode_queries(["fox", "cup", "tree"])
    for every, place in zip(det.score(enc, bank, threshold=None, top_k=None), enc, strict=True):
        limit = every.scores[len(every.scores) // 2].item()
        above = int((every.scores > limit).sum())
        cut = det.score(place, bank, threshold=limit, top_k=None)[0]
        assert torch.equal(cut.scores, every.scores[:above])
        few = det.score(place, bank, threshold=None, top_k=3)[0]
        assert torch.equal(few.boxes, every.boxes[:3])
        many = det.score(place, bank, threshold=None, top_k=10**6)[0]
        assert torch.equal(many.boxes, every.boxes)
        best = det.score(place, bank, threshold=None, top_k=None, per_token_argmax=True)[0]
        assert len(best.scores) * 3 >= len(every.scores)
        assert len(best.boxes.unique(dim=0)) == len(best.boxes)
    assert all(len(one.scores) == 0 for one in det.score(enc, bank, threshold=1.0))


@pytest.mark.parametrize("block", [1, 7, 100, 5000])
def test_blocks_bound_memory_and_change_nothing(det, block) -> None:
    """1,203 queries scored in pieces; fewer in the smallest ones."""
    count = 1203 if block > 1 else 40
    enc = det.encode_image(pictures()[:2])
    rows = torch.randn(count, 1, E, generator=torch.Generator().manual_seed(0))
    names = tuple(f"thing {i}" for i in range(count))
    bank = dataclasses.replace(
        det.encode_queries("thing"), names=names, kinds=("text",) * count, embeddings=rows
    )
    rules = Selection(threshold=None, top_k=50)
    whole = select(enc, bank, rules, det.device)
    parts = select(enc, bank, dataclasses.replace(rules, block=block), det.device)
    same(whole, parts, atol=1e-6)


def test_objectness_keeps_the_most_object_like(det) -> None:
    with_head = detector(owl(objectness=True))
    enc = with_head.encode_image(picture(32, 64))
    one = with_head.score(enc, with_head.encode_queries("fox"), threshold=None, objectness_topk=3)[0]
    objectness = enc.candidates.objectness[0].masked_fill(~enc.candidates.mask[0], -1e9)
    best = objectness.topk(3).indices
    kept = dataclasses.replace(enc.candidates, mask=torch.zeros_like(enc.candidates.mask))
    kept.mask[0, best] = True
    expected = with_head.score(
        dataclasses.replace(enc, candidates=kept), with_head.encode_queries("fox"), threshold=None
    )
    same([one], expected)
    assert 0 < len(one.scores) <= 3
    with pytest.raises(ValueError, match="objectness_topk=3 needs a detector with an objectness head"):
        det.detect(picture(9, 9), "fox", objectness_topk=3)


def test_candidates_are_values(det) -> None:
    """Scoring changes nothing in what was encoded."""
    enc, bank = det.encode_image(pictures()), det.encode_queries(["fox", "cup"])
    before = {f.name: getattr(enc.candidates, f.name) for f in dataclasses.fields(Candidates)}
    copies = {k: v.clone() for k, v in before.items() if isinstance(v, torch.Tensor)}
    first = det.score(enc, bank, nms=0.5, threshold=None)
    same(det.score(enc, bank, nms=0.5, threshold=None), first, atol=0)
    for name, copy in copies.items():
        assert torch.equal(before[name], copy)
