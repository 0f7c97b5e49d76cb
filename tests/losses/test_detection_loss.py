"""The loss against Python loops, known answers, both normalisations, invariances, wrong input."""

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

import mmvit
from mmvit.boxes import to_xyxy
from mmvit.losses import detection_loss, detection_terms, pad_targets
from mmvit.losses.match import match

NORMALIZATIONS = ["global", "per_example"]


def draw(seed=0, N=7, Q=5, counts=(3, 0, 2, 9), dtype=torch.float64):
    """Pictures with 3, 0, 2 and 9 boxes (more than tokens), some tokens and queries missing."""
    g = torch.Generator().manual_seed(seed)
    B = len(counts)
    logits = torch.randn(B, N, Q, generator=g, dtype=dtype) * 2
    boxes = torch.rand(B, N, 4, generator=g, dtype=dtype) * 0.8 + 0.1
    targets = []
    for m in counts:
        corners = to_xyxy(torch.rand(m, 4, generator=g, dtype=dtype))
        targets.append({"labels": torch.rand(m, Q, generator=g) > 0.6, "boxes": corners})
    masks = {
        "query_mask": torch.rand(B, Q, generator=g) > 0.3,
        "token_mask": torch.rand(B, N, generator=g) > 0.2,
    }
    return logits, boxes, targets, masks


def slow_loss(logits, boxes, targets, query_mask, token_mask, normalization, weights=(1, 1, 1)):
    """One picture, token and box after the other; only the assignment is the library's."""
    padded = pad_targets(targets, logits)
    padded.labels.mul_(query_mask[:, None])
    pairs = match(logits.detach(), boxes.detach(), padded, token_mask)
    sums = []
    for b in range(len(logits)):
        own = pairs.picture == b
        chosen = dict(zip(pairs.token[own].tolist(), pairs.target[own].tolist(), strict=True))
        classes, distance, gap, positives = 0.0 * logits[b].sum(), 0.0, 0.0, 0
        for i in range(logits.shape[1]):
            wanted = torch.zeros(logits.shape[2], dtype=torch.bool)
            if i in chosen:
                wanted = targets[b]["labels"][chosen[i]]
                true, found = targets[b]["boxes"][chosen[i]], to_xyxy(boxes[b, i])
                distance = distance + sum(abs(found[k] - true[k]) for k in range(4))
                gap = gap + 1 - giou(found, true)
            for q in range(logits.shape[2]):
                if not (query_mask[b, q] and token_mask[b, i]):
                    continue
                p = torch.sigmoid(logits[b, i, q])
                if wanted[q]:
                    classes = classes - 0.3 * (1 - p) ** 2 * torch.log(p)
                    positives += 1
                else:
                    classes = classes - 0.7 * p**2 * torch.log(1 - p)
        sums.append((classes, distance, gap, positives, len(chosen)))
    if normalization == "global":
        positives, n = (max(1, sum(row[k] for row in sums)) for k in (3, 4))
        parts = [sum(row[k] for row in sums) / (positives if k == 0 else n) for k in range(3)]
    else:
        parts = [sum(row[k] / max(1, row[3 if k == 0 else 4]) for row in sums) / len(sums) for k in range(3)]
    return sum(w * part for w, part in zip(weights, parts, strict=True)), parts


def giou(a, b, eps=1e-6):
    inter = (min(a[2], b[2]) - max(a[0], b[0])).clamp(min=0) * (min(a[3], b[3]) - max(a[1], b[1])).clamp(
        min=0
    )
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / (union + eps) - (hull - union) / (hull + eps)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_value_and_gradients_equal_python_loops(normalization, seed):
    logits, boxes, targets, masks = draw(seed)
    leaves = [[t.clone().requires_grad_() for t in (logits, boxes)] for _ in range(2)]
    weights = (1.0, 5.0, 2.0)
    want, parts = slow_loss(*leaves[0], targets, **masks, normalization=normalization, weights=weights)
    got = detection_loss(*leaves[1], targets, **masks, normalization=normalization, weights=weights)
    torch.testing.assert_close(got["loss"], want, rtol=0, atol=1e-10)
    for name, part in zip(("loss_class", "loss_box", "loss_giou"), parts, strict=True):
        torch.testing.assert_close(got[name], part, rtol=0, atol=1e-10)
    want.backward()
    got["loss"].backward()
    for a, b in zip(*leaves, strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-10)


def test_float32_equals_float64_to_1e_6_relative():
    logits, boxes, targets, masks = draw()
    want = detection_loss(logits, boxes, targets, **masks)
    got = detection_loss(logits.float(), boxes.float(), targets, **masks)
    for name, value in want.items():
        assert got[name].dtype == torch.float32
        assert got[name].item() == pytest.approx(value.item(), rel=2e-6)


def test_it_is_public_and_equals_the_peers_where_one_token_meets_one_box():
    logits = torch.tensor([[[0.3, -1.2]]])
    boxes = torch.tensor([[[0.4, 0.5, 0.2, 0.4]]])
    true = torch.tensor([[0.25, 0.35, 0.55, 0.6]])
    out = mmvit.losses.detection_loss(logits, boxes, [{"labels": torch.tensor([[1.0, 0.0]]), "boxes": true}])
    focal = sigmoid_focal_loss(logits[0], torch.tensor([[1.0, 0.0]]), alpha=0.3, gamma=2).sum()
    assert out["loss_class"].item() == pytest.approx(focal.item(), abs=1e-6)
    assert out["loss_box"].item() == pytest.approx(0.05 + 0.05 + 0.05 + 0.1, abs=1e-6)
    overlap = generalized_box_iou(to_xyxy(boxes[0]), true)
    assert out["loss_giou"].item() == pytest.approx(1 - overlap.item(), abs=1e-4)  # eps in the denominators
    assert out["loss"].item() == pytest.approx(sum(out[k].item() for k in out if k != "loss"), abs=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_perfect_answers_cost_nothing(normalization):
    true = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.4, 0.4, 0.9, 0.8]])
    boxes = torch.cat([(true[:, :2] + true[:, 2:]) / 2, true[:, 2:] - true[:, :2]], dim=1)
    logits = torch.tensor([[[30.0, -30.0, -30.0], [-30.0, 30.0, 30.0]]])
    labels = torch.tensor([[True, False, False], [False, True, True]])
    given = [{"labels": labels, "boxes": true}]
    out = detection_loss(logits, boxes[None], given, normalization=normalization)
    assert out["loss"].item() == pytest.approx(0, abs=2e-5)  # the GIoU's eps


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_orders_and_padding_do_not_matter(normalization):
    logits, boxes, targets, masks = draw(counts=(3, 0, 2, 5))
    want = detection_loss(logits, boxes, targets, **masks, normalization=normalization)

    def same(logits, boxes, targets, masks):
        got = detection_loss(logits, boxes, targets, **masks, normalization=normalization)
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-12)

    turned = [{name: value.flip(0) for name, value in t.items()} for t in targets]
    same(logits, boxes, turned, masks)
    other = [{"labels": t["labels"].flip(1), "boxes": t["boxes"]} for t in targets]
    same(logits.flip(2), boxes, other, masks | {"query_mask": masks["query_mask"].flip(1)})
    more_queries = torch.cat([logits, torch.full_like(logits[..., :2], 7.0)], dim=2)
    wider = [
        {"labels": torch.cat([t["labels"], t["labels"][:, :2]], dim=1), "boxes": t["boxes"]} for t in targets
    ]
    absent = torch.zeros(len(logits), 2, dtype=torch.bool)
    same(more_queries, boxes, wider, masks | {"query_mask": torch.cat([masks["query_mask"], absent], dim=1)})
    more_tokens = torch.cat([logits, torch.full_like(logits[:, :2], 9.0)], dim=1)
    more_boxes = torch.cat([boxes, boxes[:, :2]], dim=1)
    same(
        more_tokens,
        more_boxes,
        targets,
        masks | {"token_mask": torch.cat([masks["token_mask"], absent], dim=1)},
    )


def test_what_global_and_per_example_divide_by():
    """Two pictures of 1 and 3 boxes, all off by 0.1 in x: the same mean; other weights of pictures."""
    true = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.4, 0.0, 0.6, 0.2], [0.0, 0.4, 0.2, 0.6]])
    boxes = torch.tensor([[0.1, 0.1, 0.2, 0.2], [0.5, 0.1, 0.2, 0.2], [0.1, 0.5, 0.2, 0.2]]).repeat(2, 1, 1)
    boxes[1, :, 0] += 0.1
    logits = torch.full((2, 3, 1), -30.0)
    targets = [{"labels": torch.ones(n, 1), "boxes": true[:n]} for n in (1, 3)]
    found = {n: detection_loss(logits, boxes, targets, normalization=n) for n in NORMALIZATIONS}
    assert found["global"]["loss_box"].item() == pytest.approx(3 * 0.2 / 4, abs=1e-6)
    assert found["per_example"]["loss_box"].item() == pytest.approx((0 + 0.2) / 2, abs=1e-6)
    assert found["global"]["loss_class"].item() == pytest.approx(0.3 * 30, rel=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_pictures_without_boxes_have_a_loss_and_a_graph(normalization):
    logits, boxes, _, masks = draw(counts=(0, 0))
    leaves = [t.clone().requires_grad_() for t in (logits, boxes)]
    none = {"labels": torch.zeros(0, 5, dtype=torch.bool), "boxes": torch.zeros(0, 4)}
    out = detection_loss(*leaves, [none, none], **masks, normalization=normalization)
    assert out["loss_box"].item() == out["loss_giou"].item() == 0
    out["loss"].backward()
    assert leaves[0].grad.abs().sum() > 0
    assert not leaves[1].grad.any()
    nothing = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    out = detection_loss(*leaves, [none, none], **nothing, normalization=normalization)
    assert out["loss"].item() == 0


def test_boxes_without_any_query_are_still_placed():
    logits, boxes, targets, _ = draw(counts=(2, 1))
    none = [{"labels": t["labels"][:, :0], "boxes": t["boxes"]} for t in targets]
    out = detection_loss(logits[..., :0], boxes, none, objectness=logits[..., 0], objectness_weight=1.0)
    assert out["loss_class"].item() == 0
    assert out["loss_box"].item() > 0


def test_three_hundred_boxes_on_seven_tokens():
    logits, boxes, targets, masks = draw(counts=(300, 300))
    terms = detection_terms(logits, boxes, pad_targets(targets, logits), **masks)
    assert len(terms.matches.token) == masks["token_mask"].sum()
    assert math.isfinite(terms.loss.item())


def test_degenerate_boxes_give_numbers():
    logits, boxes, targets, masks = draw()
    targets[0]["boxes"][0] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    targets[0]["boxes"][1] = torch.tensor([-3.0, 0.0, 7.0, 0.1])
    targets[0]["boxes"][2] = torch.tensor([0.8, 0.8, 0.2, 0.2])  # corners exchanged: empty
    targets[2]["labels"][:] = False  # boxes that answer no query
    boxes[0, 0] = 0.0
    leaves = [t.clone().requires_grad_() for t in (logits, boxes)]
    out = detection_loss(*leaves, targets, **masks)
    out["loss"].backward()
    assert all(math.isfinite(value.item()) for value in out.values())
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_one_query_twice_is_two_queries():
    logits, boxes, targets, _ = draw(counts=(3,))
    twice = [
        {"labels": torch.cat([t["labels"], t["labels"][:, :1]], 1), "boxes": t["boxes"]} for t in targets
    ]
    out = detection_loss(torch.cat([logits, logits[..., :1]], dim=2), boxes, twice)
    assert math.isfinite(out["loss"].item())


def test_objectness_learns_the_tokens_own_best_score():
    logits, boxes, targets, masks = draw()
    objectness = torch.randn(logits.shape[:2], dtype=logits.dtype, requires_grad=True)
    free = logits.clone().requires_grad_()
    plain = detection_loss(free, boxes, targets, **masks)
    (slope,) = torch.autograd.grad(plain["loss"], free)
    out = detection_loss(free, boxes, targets, **masks, objectness=objectness, objectness_weight=0.5)
    values = []
    for b in range(len(logits)):
        own = []
        for i in range(logits.shape[1]):
            if masks["token_mask"][b, i]:
                best = max([torch.sigmoid(logits[b, i, q]) for q in range(5) if masks["query_mask"][b, q]])
                p = torch.sigmoid(objectness[b, i])
                own.append(-best * torch.log(p) - (1 - best) * torch.log(1 - p))
        values.append(sum(own) / len(own))
    want = sum(values) / len(values)
    torch.testing.assert_close(out["loss_objectness"], want, rtol=0, atol=1e-12)
    torch.testing.assert_close(out["loss"], plain["loss"] + 0.5 * want, rtol=0, atol=1e-12)
    out["loss"].backward()
    assert torch.equal(free.grad, slope)  # the scores are constants to it
    assert objectness.grad[masks["token_mask"]].all()
    assert not objectness.grad[~masks["token_mask"]].any()


def test_terms_tell_overlap_and_hits():
    logits = torch.tensor([[[5.0, -5.0], [-5.0, -4.0], [-5.0, -5.0]]])
    boxes = torch.tensor([[[0.2, 0.2, 0.2, 0.2], [0.75, 0.7, 0.3, 0.2], [0.5, 0.9, 0.1, 0.1]]])
    true = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8]])
    given = [{"labels": torch.tensor([[True, False], [True, False]]), "boxes": true}]
    terms = detection_terms(logits, boxes, pad_targets(given, logits))
    assert terms.matches.token.tolist() == [0, 1]
    assert terms.matches.target.tolist() == [0, 1]
    assert terms.iou.tolist() == pytest.approx([1.0, 2 / 3], abs=1e-5)
    assert terms.hits.tolist() == [True, False]
    assert terms.share.item() == pytest.approx(0.5)
    logits, boxes = (value.repeat(3, 1, 1) for value in (logits, boxes))
    fewer = {name: value[:1] for name, value in given[0].items()}
    none = {name: value[:0] for name, value in given[0].items()}
    targets = pad_targets([given[0], fewer, none], logits)
    terms = detection_terms(logits, boxes, targets, normalization="per_example")
    assert (terms.iou * terms.share).sum().item() == pytest.approx(((1 + 2 / 3) / 2 + 1 + 0) / 3, abs=1e-5)
    assert (terms.hits * terms.share).sum().item() == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_the_loss_is_computed_in_float32_under_autocast():
    logits, boxes, targets, masks = draw(dtype=torch.float32)
    want = detection_loss(logits.bfloat16().float(), boxes, targets, **masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = detection_loss(logits.bfloat16(), boxes, targets, **masks)
    assert got["loss"].dtype == torch.float32
    assert torch.equal(got["loss"], want["loss"])


def test_wrong_input_is_named():
    logits, boxes, targets, masks = draw()
    with pytest.raises(ValueError, match="normalization is 'global' or 'per_example', got 'mean'"):
        detection_loss(logits, boxes, targets, normalization="mean")
    with pytest.raises(ValueError, match=r"one entry for each of the 4 pictures of the logits, got 3"):
        detection_loss(logits, boxes, targets[:3])
    wrong = [*targets[:2], targets[2] | {"labels": torch.zeros(2, 4)}, targets[3]]
    with pytest.raises(ValueError, match=r"picture 2 need labels \(M,5\) and boxes \(M,4\), got \(2, 4\)"):
        detection_loss(logits, boxes, wrong)
    with pytest.raises(
        ValueError, match=r"boxes must be \(4, 7, 4\) for logits \(4, 7, 5\), got \(4, 6, 4\)"
    ):
        detection_loss(logits, boxes[:, :6], targets)
    with pytest.raises(ValueError, match=r"query_mask must be \(4, 5\)"):
        detection_loss(logits, boxes, targets, query_mask=masks["token_mask"])
    with pytest.raises(ValueError, match=r"logits are \(B,N,Q\), got \(7, 5\)"):
        detection_terms(logits[0], boxes, pad_targets(targets, logits))
    targets[0]["boxes"][1, 3] = math.inf
    with pytest.raises(ValueError, match="box 1 of picture 0 has a number that is not finite"):
        detection_loss(logits, boxes, targets)
