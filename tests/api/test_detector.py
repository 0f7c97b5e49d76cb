"""`mmvit.Detector`: pictures of any size and form, boxes in their own pixels, forms of queries, errors."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

import mmvit
from mmvit import hub
from mmvit.detector import Detector
from mmvit.detector.images import concatenate
from tests.api.detectors import detector, owl, picture, same

SIZES = [(40, 120), (64, 64), (150, 50), (7, 9), (300, 200)]


@pytest.fixture(scope="module")
def det() -> Detector:
    return detector()


def pictures() -> list[Image.Image]:
    return [picture(h, w, seed) for seed, (h, w) in enumerate(SIZES)]


def test_what_comes_back(det) -> None:
    found = det.detect(pictures(), ["a fox", "two cups"], threshold=None, top_k=10)
    assert len(found) == len(SIZES)
    for (height, width), one in zip(SIZES, found, strict=True):
        assert one.boxes.dtype == one.scores.dtype == torch.float32
        assert one.labels.dtype == torch.int64
        assert one.query == ["a fox", "two cups"]
        assert 0 < len(one.scores) <= 10
        assert len(one.boxes) == len(one.scores) == len(one.labels)
        assert (one.scores[:-1] >= one.scores[1:]).all()
        assert one.scores.min() > 0
        assert one.scores.max() < 1
        x0, y0, x1, y1 = one.boxes.unbind(1)
        assert (x0 < x1).all()
        assert (y0 < y1).all()
        assert one.boxes.min() >= 0
        assert x1.max() <= width
        assert y1.max() <= height


def test_every_form_of_a_picture_gives_the_same(det, tmp_path) -> None:
    image = picture(30, 50)
    image.save(tmp_path / "p.png")
    buffer = io.BytesIO()
    image.save(buffer, "png")
    forms = [image, tmp_path / "p.png", str(tmp_path / "p.png"), buffer.getvalue(), np.asarray(image)]
    found = det.detect(forms, "a fox", threshold=None)
    same(found, found[:1] * 5)
    for form in forms:
        same(det.detect(form, ["a fox"], threshold=None), found[:1])


def test_upright_pictures_whatever_the_camera_wrote(det) -> None:
    upright = picture(30, 50)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees counter-clockwise for display
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "png", exif=exif)
    enc = det.encode_image([buffer.getvalue()])
    assert enc.sizes == [(30, 50)]
    same(det.detect(buffer.getvalue(), "a fox", threshold=None), det.detect(upright, "a fox", threshold=None))


def test_a_jpeg_drafted_by_its_decoder_keeps_its_place(det) -> None:
    """The decoder may deliver a quarter of the size; boxes still count in pixels of the whole."""
    buffer = io.BytesIO()
    picture(400, 900).save(buffer, "jpeg", quality=95)
    drafts = detector(det.model)
    drafts.preprocess = dataclasses.replace(det.preprocess, draft=True)
    a, b = (d.detect(buffer.getvalue(), "a fox", threshold=None)[0] for d in (det, drafts))
    assert drafts.encode_image(buffer.getvalue()).sizes == [(400, 900)]
    torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=20)


def test_grey_and_transparent_pictures(det) -> None:
    grey = picture(20, 30).convert("L")
    same(det.detect(grey, "fox"), det.detect(grey.convert("RGB"), "fox"))
    clear = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    same(det.detect(clear, "fox"), det.detect(Image.new("RGB", (30, 20), "white"), "fox"))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_change_nothing(det, batch_size) -> None:
    alone = [det.detect(p, ["a fox", "cup"], threshold=None)[0] for p in pictures()]
    same(det.detect(pictures(), ["a fox", "cup"], threshold=None, batch_size=batch_size), alone)


def test_encode_once_query_many(det) -> None:
    enc = det.encode_image(pictures(), batch_size=2)
    bank = det.encode_queries(["a fox", "cup", "tree"])
    whole = det.score(enc, bank, threshold=None)
    same(whole, det.detect(pictures(), ["a fox", "cup", "tree"], threshold=None))
    same(det.score(enc, bank["cup"], threshold=None), det.detect(pictures(), ["cup"], threshold=None))
    same(det.score(enc[1:3], bank, threshold=None), whole[1:3])
    same(det.score(enc[[4, 0]], bank, threshold=None), [whole[4], whole[0]])
    same(det.score(enc[-1], bank, threshold=None), whole[-1:])
    same(det.score(sum(list(enc)[1:], enc[0]), bank, threshold=None), whole)
    same(det.score(det.encode_image(pictures(), keep_on="cpu"), bank, threshold=None), whole)
    assert enc.sizes == SIZES


def test_no_pictures_at_all(det) -> None:
    empty = det.encode_image([])
    assert len(empty) == 0
    assert det.detect([], ["fox"]) == []
    assert det.score(empty, det.encode_queries("fox")) == []
    assert len(concatenate([empty, det.encode_image(picture(9, 9)), empty])) == 1
    assert len(empty + empty) == 0


def test_each_picture_its_own_queries(det) -> None:
    sets = [["fox"], ["cup", "fox", "tree"], [], ["tree", "tree"], ["cup"]]
    found = det.detect(pictures(), sets, threshold=None, batch_size=2)
    for image, own, one in zip(pictures(), sets, found, strict=True):
        assert one.query == own
        if own:
            same([one], det.detect(image, own, threshold=None))
        else:
            assert len(one.scores) == 0
    bank, enc = det.encode_queries(["fox", "cup", "tree"]), det.encode_image(pictures())
    by_name = det.score(enc, bank, queries=sets, threshold=None)
    same(by_name, found)
    numbers = [[0], [1, 0, 2], [], [2, -1], [1]]
    same(det.score(enc, bank, queries=numbers, threshold=None), found)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [0, 1, 0]]).bool()
    masked = det.score(enc, bank, queries=mask, threshold=None)
    assert [one.query for one in masked] == [["fox"], ["fox", "cup", "tree"], [], ["tree"], ["cup"]]
    same([masked[0], masked[4]], [found[0], found[4]])


@pytest.mark.parametrize("fields", [{"class_token": False}, {"merge": "drop"}, {"hide_padding": True}])
def test_any_kind_of_detector(fields) -> None:
    one, two = detector(owl(**fields)).detect([picture(20, 60), picture(60, 20)], "a fox", threshold=None)
    assert len(one.scores) > 0
    assert len(two.scores) > 0
    assert torch.isfinite(one.boxes).all()


@pytest.mark.parametrize("size", [(48, 96), (96, 32), (160, 160)])
def test_tensors_of_another_shape_than_the_model_was_built_for(size) -> None:
    """A grid of 3 x 6 tokens: rows and columns must not be taken for each other anywhere."""
    det = detector(owl(box_bias="center"))
    torch.nn.init.zeros_(det.model.box_head.dense2.weight)
    torch.nn.init.zeros_(det.model.box_head.dense2.bias)
    det.preprocess = dataclasses.replace(det.preprocess, size=size)
    wide = picture(size[0], size[1])
    one = det.detect(wide, "a fox", threshold=None, top_k=None)[0]
    assert len(one.boxes) == size[0] * size[1] // 256
    centres = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
    x, y = centres.unbind(1)
    assert sorted({round(v) for v in x.tolist()}) == list(range(8, size[1], 16))
    assert sorted({round(v) for v in y.tolist()}) == list(range(8, size[0], 16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(det) -> None:
    gpu = detector(owl(objectness=True), device="cuda")
    cpu = detector(owl(objectness=True))
    options = {"threshold": None, "nms": 0.5, "objectness_topk": 5}
    queries = ["fox", "cup", picture(64, 64, 7)]
    same(gpu.detect(pictures(), queries, **options), cpu.detect(pictures(), queries, **options), atol=1e-4)
    enc = gpu.encode_image(pictures(), keep_on="cpu")
    assert enc.candidates.boxes.device.type == "cpu"
    bank = gpu.encode_queries(images=enc, boxes=[(0, 0, 5, 5)] * len(SIZES))
    assert bank.embeddings.device.type == "cpu"
    assert len(gpu.score(enc, bank, threshold=None)) == len(SIZES)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (2, 3)])
def test_slivers_and_dots(det, size) -> None:
    for one in (
        det.detect(picture(*size), ["fox", "cup"], threshold=None)[0],
        detector(owl(hide_padding=True)).detect(picture(*size), "fox", threshold=None)[0],
    ):
        assert torch.isfinite(one.boxes).all()
        assert torch.isfinite(one.scores).all()
        if len(one.boxes):
            assert one.boxes[:, 2].max() <= size[1]
            assert one.boxes[:, 3].max() <= size[0]
    bank = det.encode_queries(images=picture(*size))
    assert torch.isfinite(bank.embeddings).all()


def test_bad_pictures_are_named_by_number(det, tmp_path) -> None:
    good = picture(9, 9)
    with pytest.raises(ValueError, match=r"image 1: image-unreadable"):
        det.detect([good, b"no picture at all"], "fox")
    buffer = io.BytesIO()
    picture(64, 64).save(buffer, "jpeg")
    with pytest.raises(ValueError, match=r"image 2: image-truncated|image 2: image-unreadable"):
        det.encode_image([good, good, buffer.getvalue()[:200]], batch_size=1)
    small = detector(owl())
    small.preprocess = dataclasses.replace(small.preprocess, max_pixels=100)
    with pytest.raises(ValueError, match=r"image 0: image-too-large \(11 x 10 pixels, at most 100 allowed\)"):
        small.detect(picture(10, 11), "fox")
    with pytest.raises(FileNotFoundError, match=r"image 0: no file '.*missing.png'"):
        det.detect(tmp_path / "missing.png", "fox")
    with pytest.raises(ValueError, match="image 0: a picture must be a PIL image"):
        det.detect([np.zeros((4, 4), dtype=np.float32)], "fox")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold=1.5 must lie in 0..1"),
        ({"threshold": float("nan")}, r"threshold=nan must lie in 0..1"),
        ({"nms": -0.1}, r"nms=-0.1 must lie in 0..1"),
        ({"top_k": 0}, r"top_k=0 must be at least 1, or None for all"),
        ({"objectness_topk": 0}, r"objectness_topk=0 must be at least 1"),
        ({"batch_size": 0}, r"batch_size is 0, expected at least 1"),
        ({"queries": []}, r"there is no query"),
        ({"queries": ["fox", " "]}, r"query 1 is empty \(' '\)"),
        ({"queries": [["fox", ""]]}, r"query 1 of picture 0 is empty"),
        ({"queries": ["fox", 3]}, r"example 0: a picture must be a PIL image"),
        ({"queries": [["fox"], "cup"]}, r"queries\[1\] is a str among lists"),
        ({"queries": [["fox"], ["cup"]]}, r"there are 2 lists of queries for 1 pictures"),
        ({"templates": "nonsense"}, r"unknown template set 'nonsense'"),
        ({"ensemble": "nonsense"}, r"ensemble is 'nonsense', valid: embed, logit, prob"),
    ],
)
def test_mistakes_are_named(det, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        det.detect(picture(9, 9), **{"queries": ["fox"], **options})


def test_odd_queries_get_an_answer(det) -> None:
    odd = ["🦊", "?!", "лиса", "a" * 500, "fox " * 50]
    one = det.detect(picture(40, 40), odd, threshold=None)[0]
    assert torch.isfinite(one.scores).all()
    assert set(one.labels.tolist()) <= set(range(5))


def test_bfloat16_is_close_and_float32_outside(det) -> None:
    half = detector(owl(), dtype=torch.bfloat16)
    a = det.detect(picture(64, 64), "fox", threshold=None, top_k=None)[0]
    b = half.detect(picture(64, 64), "fox", threshold=None, top_k=None)[0]
    assert b.boxes.dtype == b.scores.dtype == torch.float32
    assert (a.scores - b.scores).abs().max() < 0.05
    assert not torch.equal(a.scores, b.scores), "bfloat16 was not used"


def test_from_a_folder_and_from_what_load_returns(det, tmp_path) -> None:
    hub.save(det.model, tmp_path / "owl", preprocess=det.preprocess, tokenizer=det.tokenizer)
    wanted = det.detect(pictures()[:2], ["fox", "cup"], threshold=None)
    loaded = mmvit.load(tmp_path / "owl")
    for again in (
        mmvit.Detector(tmp_path / "owl"),
        mmvit.Detector(str(tmp_path / "owl")),
        mmvit.Detector(hub.load(tmp_path / "owl")),
        mmvit.Detector(loaded),
    ):
        same(again.detect(pictures()[:2], ["fox", "cup"], threshold=None), wanted)
        assert again.fingerprint == det.fingerprint
        assert again.text_fingerprint == det.text_fingerprint
    assert mmvit.Detector(mmvit.load(tmp_path / "owl", dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert loaded.modalities == ("text",)
    z = loaded.encode(text=["fox", "cup"])
    bank = det.encode_queries(["fox", "cup"]).embeddings[:, 0]
    torch.testing.assert_close(z, torch.nn.functional.normalize(bank, dim=-1), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="a detector gives boxes, no embedding of a picture"):
        loaded.encode(image=pictures())


def test_only_detectors_detect(det, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"use Detector.from_parts"):
        mmvit.Detector(owl())
    with pytest.raises(ValueError, match="this is a int"):
        mmvit.Detector(3)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        mmvit.Detector(tmp_path / "nothing")
    hub.save(det.model.text, tmp_path / "text", tokenizer=det.tokenizer)
    with pytest.raises(ValueError, match="a detector is needed, this is a text_tower"):
        mmvit.Detector(tmp_path / "text")
    with pytest.raises(ValueError, match="a detector needs its preprocessing"):
        Detector.from_parts(owl(), tokenizer=det.tokenizer)


def test_another_models_pictures_are_refused(det) -> None:
    other = detector(owl(seed=1))
    enc = other.encode_image(picture(9, 9))
    with pytest.raises(ValueError, match="these pictures were encoded by another detector"):
        det.score(enc, det.encode_queries("fox"))
    with pytest.raises(ValueError, match="encoded by different detectors"):
        enc + det.encode_image(picture(9, 9))
    with pytest.raises(ValueError, match="these pictures were encoded by another detector"):
        det.encode_queries(images=enc)
