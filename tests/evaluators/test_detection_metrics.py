"""Average precision against pycocotools, against a slow and obvious count, and on cases done by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

from mmvit.evaluators.detection import confused, evaluate
from mmvit.evaluators.detection_truth import frequencies, label_counts, make_truth, read_truth
from mmvit.types import Detections

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def found(boxes, scores, labels):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
        [],
    )


def nothing():
    return found([], [], [])


def perfect(truth):
    return found(truth.boxes.tolist(), [1.0] * len(truth.boxes), truth.labels.tolist())


def random_set(seed, images=12, classes=5, crowds=True, federated=False):
    """Pictures with boxes of all sizes, and detections of which about half are near a true box."""
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for picture in range(images):
        count = rng.integers(0, 7)
        corner = rng.uniform(0, 100, (count, 2))
        boxes = np.concatenate(
            [corner, corner + rng.choice([12, 50, 150], (count, 1)) * rng.uniform(0.5, 1, (count, 2))], 1
        )
        labels = rng.integers(0, classes - 1, count)  # the last category never occurs
        absent = [int(c) for c in range(classes) if c not in labels and rng.random() < 0.5]
        partly = [int(c) for c in set(labels.tolist()) if rng.random() < 0.3]
        truths.append(
            make_truth(
                boxes,
                labels,
                crowd=rng.random(count) < 0.2 if crowds else None,
                area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * rng.uniform(0.4, 1, count),
                negatives=absent if federated else (),
                not_exhaustive=partly if federated else (),
                key=f"p{picture}",
            )
        )
        near = boxes[rng.integers(0, count, 9)] + rng.normal(0, 4, (9, 4)) if count else np.zeros((0, 4))
        corner = rng.uniform(0, 100, (6, 2))
        stray = np.concatenate([corner, corner + rng.uniform(5, 80, (6, 2))], 1)
        all_boxes = np.concatenate([near, stray])
        all_boxes[:, 2:] = np.maximum(all_boxes[:, 2:], all_boxes[:, :2] + 1)
        wild = rng.integers(0, classes, len(all_boxes))
        if count:
            wild[:9] = np.where(rng.random(9) < 0.8, labels[rng.integers(0, count, 9)], wild[:9])
        predictions.append(
            found(all_boxes.tolist(), rng.permutation(len(all_boxes)) / 20 + picture / 997, wild.tolist())
        )
    return predictions, truths


def by_pycocotools(predictions, truths, classes):
    """pycocotools' twelve numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {
            "id": 1 + 1000 * i + j,
            "image_id": i + 1,
            "category_id": int(t.labels[j]) + 1,
            "bbox": [*t.boxes[j, :2].tolist(), *(t.boxes[j, 2:] - t.boxes[j, :2]).tolist()],
            "area": float(t.area[j]),
            "iscrowd": int(t.crowd[j]),
        }
        for i, t in enumerate(truths)
        for j in range(len(t.boxes))
    ]
    rows = [
        {
            "image_id": i + 1,
            "category_id": int(label) + 1,
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": float(score),
        }
        for i, p in enumerate(predictions)
        for box, score, label in zip(p.boxes.double(), p.scores.double(), p.labels, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": c + 1} for c in range(classes)],
        }
        coco.createIndex()
        counter = COCOeval(coco, coco.loadRes(rows), "bbox")
        counter.evaluate()
        counter.accumulate()
        counter.summarize()
    return counter.stats


def overlap(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_lvis(predictions, truths, category, limit=300):
    """One category's LVIS average precision, straight from the definition; None without a true box."""
    total = sum(int((t.labels == category).sum()) for t in truths)
    if not total:
        return None
    precisions = []
    for threshold in THRESHOLDS:
        judged = []  # (score, hit or miss) of every detection that counts
        for p, t in zip(predictions, truths, strict=True):
            if category not in t.labels and category not in t.negatives and not t.exhaustive:
                continue
            best = sorted(range(len(p.scores)), key=lambda i: -p.scores[i].item())[:limit]
            free = [box for box, label in zip(t.boxes, t.labels, strict=True) if label == category]
            for i in (i for i in best if p.labels[i] == category):
                values = [overlap(p.boxes[i].double().numpy(), box) for box in free]
                if values and max(values) >= threshold:
                    del free[int(np.argmax(values))]
                    judged.append((p.scores[i].item(), True))
                elif category not in t.not_exhaustive:
                    judged.append((p.scores[i].item(), False))
        hits = np.cumsum([hit for _, hit in sorted(judged, key=lambda pair: -pair[0])])
        recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
        points = [precision[recall >= r - 1e-12].max(initial=0.0) for r in np.linspace(0, 1, 101)]
        precisions.append(np.mean(points))
    return float(np.mean(precisions))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coco_numbers_are_those_of_pycocotools(seed):
    predictions, truths = random_set(seed)
    ours = evaluate(predictions, truths, list("abcde")).metrics
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    theirs = by_pycocotools(predictions, truths, 5)
    assert 0 < ours["AP"] < 0.9
    for name, value in zip(names, theirs, strict=True):
        assert ours[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("protocol", ["lvis", "lvis_fixed"])
def test_lvis_numbers_are_those_of_a_slow_count(seed, protocol):
    predictions, truths = random_set(seed, crowds=False, federated=True)
    ours = evaluate(predictions, truths, list("abcde"), protocol=protocol, frequency=list("rrcff"))
    slow = {c: slow_lvis(predictions, truths, i) for i, c in enumerate("abcde")}
    assert slow["e"] is None
    assert "e" not in ours.classes
    for name in "abcd":
        assert ours.classes[name]["AP"] == pytest.approx(slow[name], abs=1e-9), name
    assert ours.metrics["AP"] == pytest.approx(np.mean([slow[c] for c in "abcd"]), abs=1e-9)
    assert ours.metrics["APr"] == pytest.approx((slow["a"] + slow["b"]) / 2, abs=1e-9)
    assert ours.metrics["APf"] == pytest.approx(slow["d"], abs=1e-9)
    assert ("AR300" in ours.metrics) == (protocol == "lvis")


@pytest.mark.parametrize("protocol", ["coco", "lvis", "lvis_fixed"])
def test_what_is_perfect_has_1_and_what_is_shifted_away_has_0(protocol):
    _, truths = random_set(3, crowds=False, federated=True)
    right = [perfect(t) for t in truths]
    assert evaluate(right, truths, list("abcde"), protocol=protocol).metrics["AP"] == 1.0
    away = [Detections(p.boxes + 500, p.scores, p.labels, []) for p in right]
    metrics = evaluate(away, truths, list("abcde"), protocol=protocol).metrics
    assert metrics["AP"] == metrics["AP50"] == 0.0


def test_a_better_scored_miss_halves_the_precision():
    truth = make_truth([[0, 0, 10, 10]], [0])
    p = found([[50, 50, 60, 60], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])
    assert evaluate([p], [truth], ["a"]).metrics["AP50"] == pytest.approx(0.5)
    late = found([[50, 50, 60, 60], [0, 0, 10, 10]], [0.7, 0.8], [0, 0])
    assert evaluate([late], [truth], ["a"]).metrics["AP50"] == 1.0


def test_lvis_judges_only_what_was_annotated():
    wrong = found([[50, 50, 60, 60], [0, 0, 10, 10]], [0.9, 0.8], [1, 1])
    has_b = make_truth([[0, 0, 10, 10]], [1])
    unknown = make_truth([[0, 0, 10, 10]], [0])  # whether b is in this picture, nobody looked
    stray = found([[50, 50, 60, 60], [0, 0, 10, 10]], [0.95, 0.8], [1, 0])

    def ap50(truths, protocol="lvis"):
        return evaluate([wrong, stray], truths, ["a", "b"], protocol=protocol).classes["b"]["AP50"]

    assert ap50([has_b, unknown]) == pytest.approx(0.5)
    assert ap50([has_b, unknown], "coco") == pytest.approx(1 / 3)
    absent = make_truth([[0, 0, 10, 10]], [0], negatives=[1])
    assert ap50([has_b, absent]) == pytest.approx(1 / 3)
    whole = make_truth([[0, 0, 10, 10]], [0], exhaustive=True)
    assert ap50([has_b, whole]) == pytest.approx(1 / 3)
    some = make_truth([[0, 0, 10, 10]], [1], not_exhaustive=[1])  # the stray b there may well be one
    assert ap50([some, unknown]) == 1.0


def test_lvis_keeps_300_of_a_picture_and_the_fixed_variant_all():
    truth = make_truth([[0, 0, 10, 10]], [0])
    p = found([[50, 50, 60, 60]] * 300 + [[0, 0, 10, 10]], [0.9] * 300 + [0.1], [1] * 300 + [0])
    metrics = evaluate([p], [truth], ["a", "b"], protocol="lvis").metrics
    assert metrics["AP"] == 0.0
    assert metrics["detections"] == 0
    assert evaluate([p], [truth], ["a", "b"], protocol="lvis_fixed").metrics["AP"] == 1.0
    assert evaluate([p], [truth], ["a", "b"]).metrics["AP"] == 1.0  # COCO's 100 are of each category


def test_pictures_without_boxes_and_without_detections_count():
    truth, empty = make_truth([[0, 0, 10, 10]], [0], key="x"), make_truth([], [])
    right, stray = perfect(truth), found([[0, 0, 9, 9]], [1.0], [0])
    assert evaluate([right, nothing()], [truth, empty], ["a"]).metrics["AP"] == 1.0
    assert evaluate([right, nothing()], [truth, truth], ["a"]).metrics["AP"] == pytest.approx(51 / 101)
    half = found(right.boxes.tolist(), [0.5], [0])  # a stray detection in the empty picture scores higher
    assert evaluate([half, stray], [truth, empty], ["a"]).metrics["AP"] == pytest.approx(0.5)
    measured = evaluate([nothing(), nothing()], [truth, empty], ["a", "b"])
    assert measured.metrics["AP"] == 0.0
    assert measured.metrics["AR100"] == 0.0
    assert measured.metrics["classes"] == 1
    assert measured.metrics["without_boxes"] == 1
    assert measured.classes == {"a": {"AP": 0.0, "AP50": 0.0, "boxes": 1, "images": 1}}


def test_metrics_that_nothing_was_measured_for_are_left_out_and_json_takes_the_rest():
    truth = make_truth([[0, 0, 10, 10]], [0])
    measured = evaluate([perfect(truth)], [truth], ["a"], seen=["a"], frequency=["f"])
    assert measured.metrics["APs"] == 1.0
    assert "APl" not in measured.metrics
    assert measured.metrics["AP_seen"] == 1.0
    assert "AP_unseen" not in measured.metrics
    assert "APr" not in measured.metrics
    assert measured.metrics["classes_unseen"] == 0
    assert json.loads(json.dumps([measured.metrics, measured.classes]))[1]["a"]["AP"] == 1.0


def test_seen_and_unseen_are_means_over_their_classes():
    predictions, truths = random_set(4)
    measured = evaluate(predictions, truths, list("abcde"), seen={"a", "c", "z"})
    ap = {name: entry["AP"] for name, entry in measured.classes.items()}
    assert measured.metrics["AP_seen"] == pytest.approx((ap["a"] + ap["c"]) / 2)
    assert measured.metrics["AP_unseen"] == pytest.approx((ap["b"] + ap["d"]) / 2)
    assert (measured.metrics["classes_seen"], measured.metrics["classes_unseen"]) == (2, 2)


def test_counting_a_few_categories_at_a_time_changes_nothing(monkeypatch):
    predictions, truths = random_set(5, federated=True)
    for protocol in ("coco", "lvis"):
        whole = evaluate(predictions, truths, list("abcde"), protocol=protocol)
        monkeypatch.setattr("mmvit.evaluators.detection._PAIRS", 2 * len(truths))
        assert evaluate(predictions, truths, list("abcde"), protocol=protocol) == whole
        monkeypatch.undo()


def test_wrong_names_are_chance():
    predictions, truths = random_set(6)
    swapped = confused(predictions, 5)
    assert all((a.labels != b.labels).all() for a, b in zip(predictions, swapped, strict=True))
    right, chance = (evaluate(p, truths, list("abcde")).metrics["AP"] for p in (predictions, swapped))
    assert chance < 0.5 * right


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": [[0, 0, float("nan"), 5]]}, "x: a detection has a box or a score that is not finite"),
        ({"scores": [float("inf")]}, "not finite"),
        ({"labels": [2]}, r"labels must lie in 0\.\.1, got 2\.\.2"),
        ({"labels": [0, 1]}, "differ in number"),
    ],
)
def test_bad_detections_are_refused(change, message):
    good = {"boxes": [[0, 0, 5, 5]], "scores": [0.5], "labels": [0]}
    truth = make_truth([[0, 0, 5, 5]], [0], key="x")
    with pytest.raises(ValueError, match=message):
        evaluate([found(**good | change)], [truth], ["a", "b"])


def test_bad_calls_are_refused():
    truth = make_truth([[0, 0, 5, 5]], [0], key="x")
    with pytest.raises(ValueError, match="0 predictions for 1 pictures"):
        evaluate([], [truth], ["a"])
    with pytest.raises(ValueError, match="must be coco, lvis or lvis_fixed"):
        evaluate([nothing()], [truth], ["a"], protocol="voc")
    with pytest.raises(ValueError, match="none of the 1 pictures has a true box of the 2 categories"):
        evaluate([nothing()], [make_truth([], [])], ["a", "b"])
    with pytest.raises(ValueError, match="not distinct"):
        evaluate([nothing()], [truth], ["a", "a"])
    with pytest.raises(ValueError, match="r, c or f for each of the 1"):
        evaluate([nothing()], [truth], ["a"], frequency=["x"])
    with pytest.raises(ValueError, match="x: a true box is not finite"):
        make_truth([[0, 0, float("nan"), 1]], [0], key="x")
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        make_truth([[0, 0, 1, 1]] * 2, [0])


def test_truth_is_read_from_a_samples_json():
    meta = {
        "width": 40,
        "height": 30,
        "objects": [
            {"label": "Fox", "box": [1, 2, 11, 22], "area": 77},
            {"label": "fox", "box": [0, 0, 4, 5], "crowd": True},
            {"label": "owl", "box": [0, 0, 4, 5]},
            {"label": "cat", "box": [0, 0, 4, 5]},
            {"label": "owl", "box": [40, 0, 50, 5]},
            {"label": "owl", "box": [3, 3, 3, 9]},
            {"label": "owl", "box": [0, 0, None, 5]},
            {"label": "owl", "box": [0, 0, float("nan"), 5]},
            {"box": [0, 0, 4, 5]},
        ],
        "negatives": ["Bee", "dog"],
        "not_exhaustive": ["owl"],
    }
    truth = read_truth(meta, {"fox": 0, "owl": 1, "bee": 2}, "k")
    assert truth.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 4, 5], [0, 0, 4, 5]]
    assert truth.labels.tolist() == [0, 0, 1]
    assert truth.crowd.tolist() == [False, True, False]
    assert truth.area.tolist() == [77, 20, 20]  # the mask's where there is one
    assert (truth.negatives, truth.not_exhaustive, truth.exhaustive) == ((2,), (1,), False)
    assert truth.left_out == {
        "other category": 2,
        "box-outside": 1,
        "box-empty": 1,
        "box-unreadable": 1,
        "box-not-finite": 1,
    }
    assert truth.size == (30, 40)
    assert len(read_truth({}, {"fox": 0}).boxes) == 0


def test_labels_are_counted_by_picture_and_graded_as_lvis_does():
    metas = [
        {"objects": [{"label": "fox"}, {"label": "fox"}, {"label": "ant"}]},
        {},
        {"objects": [{"label": "fox"}]},
    ]
    assert label_counts(metas) == {"ant": 1, "fox": 2}
    counts = {"a": 10, "b": 11, "c": 100, "d": 101}
    assert frequencies(["a", "b", "c", "d", "e"], counts) == ["r", "c", "c", "f", "r"]
