"""Query banks: words and templates, example pictures and their boxes, adding, choosing, saving, refusing."""

import dataclasses
import json
import logging

import pytest
import torch
from torch.nn.functional import normalize

from mmvit.boxes import to_cxcywh
from mmvit.detector import Detector, QueryBank
from mmvit.models.image_query import choose
from mmvit.types import Candidates
from tests.api.detectors import CONTEXT, SIDE, E, detector, owl, picture, planted

PLACES = {"fox": (4.0, 4.0, 30.0, 30.0), "cup": (40.0, 8.0, 60.0, 50.0)}


@pytest.fixture(scope="module")
def det() -> Detector:
    return detector()


def test_a_bank_of_words(det) -> None:
    bank = det.encode_queries(["fox", "a red cup", "fox"])
    assert len(bank) == 3
    assert bank.names == ("fox", "a red cup", "fox")
    assert bank.kinds == ("text",) * 3
    assert bank.templates == ("{}",)
    assert bank.embeddings.shape == (3, 1, E)
    assert bank.embeddings.dtype == torch.float32
    tokens = det.tokenizer(["fox", "a red cup", "fox"])
    with torch.no_grad():
        expected = det.model.text(tokens.ids, tokens.mask)
    torch.testing.assert_close(bank.embeddings[:, 0], expected, rtol=0, atol=1e-5)
    assert torch.equal(det.encode_queries("fox").embeddings, det.encode_queries(["fox"]).embeddings)


def test_templates_make_prompts(det) -> None:
    templates = ["{}", "a photo of a {}.", "art of the {}."]
    kept = det.encode_queries(["fox", "cup"], templates=templates, ensemble="logit", batch_size=4)
    assert kept.embeddings.shape == (2, 3, E)
    by_hand = det.encode_queries([t.format(w) for w in ("fox", "cup") for t in templates]).embeddings
    torch.testing.assert_close(kept.embeddings.flatten(0, 1), by_hand[:, 0], rtol=0, atol=1e-5)
    mean = det.encode_queries(["fox", "cup"], templates=templates)
    assert mean.embeddings.shape == (2, 1, E)
    expected = normalize(by_hand[:, 0], dim=-1).unflatten(0, (2, 3)).mean(1)
    torch.testing.assert_close(mean.embeddings[:, 0], expected, rtol=0, atol=1e-6)
    assert det.encode_queries(["fox"], templates="clip7", ensemble="prob").prompts == 7


@pytest.mark.parametrize("ensemble", ["logit", "prob"])
def test_what_is_averaged_over_templates(det, ensemble) -> None:
    templates = ["{}", "a photo of a {}.", "art of the {}."]
    enc = det.encode_image(picture(64, 64))
    bank = det.encode_queries(["fox"], templates=templates, ensemble=ensemble)
    one = det.score(enc, bank, threshold=None, top_k=None)[0]
    alone = det.encode_queries([t.format("fox") for t in templates])
    logits = det.model.score(enc.candidates, alone.embeddings[:, 0])[0]
    mean = logits.mean(1).sigmoid() if ensemble == "logit" else logits.sigmoid().mean(1)
    torch.testing.assert_close(one.scores, mean.sort(descending=True).values, rtol=0, atol=1e-5)


def test_long_words_are_cut_and_keep_their_end(det, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        bank = det.encode_queries(["a very " * 40 + "long fox", "fox"])
    assert "1 of 2 queries were cut to 16 tokens" in caplog.text
    ids = det.tokenizer(["a very " * 40 + "long fox"]).ids
    assert ids.shape[1] == CONTEXT
    assert ids[0, -1] == det.tokenizer.end_id
    assert not torch.allclose(bank.embeddings[0], bank.embeddings[1])


def test_canonical_words(det) -> None:
    tidy = det.encode_queries(["red fox"]).embeddings
    loud = det.encode_queries(["  Red,  FOX!"], canonicalise=True)
    assert torch.equal(loud.embeddings, tidy)
    assert loud.names == ("  Red,  FOX!",), "results speak of what was asked"
    assert not torch.equal(det.encode_queries(["Red, FOX!"]).embeddings, tidy)
    for odd in ("🦊", "лиса", "!?"):
        kept = det.encode_queries([odd], canonicalise=True).embeddings
        assert torch.equal(kept, det.encode_queries([odd]).embeddings)


def example(det):
    """One encoded picture with planted candidates: two fit the fox's box, one the cup's, one the whole."""
    place = det.preprocess.placement(SIDE, SIDE)
    boxes = torch.tensor([PLACES["fox"], (4.0, 4, 30, 29), PLACES["cup"], (0.0, 0, 64, 64), (50, 55, 60, 60)])
    base = torch.zeros(5, E)
    base[:, 0] = 1  # what all tokens share: background
    base[0, 1], base[1, 0], base[1, 3], base[2, 2] = 1, 0.5, 1, 2
    return planted(det, place, boxes, base), base


def test_the_box_chooses_the_candidate_least_like_background(det) -> None:
    enc, base = example(det)
    bank = det.encode_queries(images=enc, boxes=[PLACES["fox"]])
    assert bank.kinds == ("image",)
    assert bank.names == ("image 0",)
    assert torch.equal(bank.embeddings[0, 0], base[1]), "not the best fit, but the one unlike the mean"
    best = det.encode_queries(images=enc, boxes=PLACES["fox"], choice="iou")
    assert torch.equal(best.embeddings[0, 0], base[0])
    cup = det.encode_queries(images=enc, boxes=[PLACES["cup"]])
    assert torch.equal(cup.embeddings[0, 0], base[2])
    whole = det.encode_queries(images=enc)
    assert torch.equal(whole.embeddings[0, 0], base[3])
    one = det.score(enc, cup, threshold=None, top_k=1)[0]
    torch.testing.assert_close(one.boxes[0], torch.tensor(PLACES["cup"]), rtol=0, atol=1e-3)


def test_the_box_is_meant_in_the_pictures_own_pixels(det) -> None:
    """The same box in a picture of twice the size chooses the same candidate; what sticks out is ignored."""
    enc, base = example(det)
    large = dataclasses.replace(enc, placements=(det.preprocess.placement(2 * SIDE, 2 * SIDE),))
    bank = det.encode_queries(images=large, boxes=[tuple(2 * x for x in PLACES["cup"])])
    assert torch.equal(bank.embeddings[0, 0], base[2])
    out = det.encode_queries(images=enc, boxes=[(-900.0, -5.0, 64, 9999.0)])
    assert torch.equal(out.embeddings[0, 0], base[3])


def test_when_no_box_touches_the_nearest_is_taken(det, caplog) -> None:
    """By generalised IoU, which is negative: the slack of 20 % lies below the best, not above it."""
    place = det.preprocess.placement(SIDE, SIDE)
    boxes = torch.tensor([[0.0, 0, 4, 4], [30, 30, 34, 34], [31, 30, 35, 34]])
    base = torch.eye(3, E)
    base[0, 0], base[1, 1] = 9, 2  # candidate 2 is least like the mean
    enc = planted(det, place, boxes, base)
    with caplog.at_level(logging.WARNING):
        bank = det.encode_queries(images=enc, boxes=[(40, 40, 50, 50)])
    assert "no object that the model sees touches its box" in caplog.text
    assert torch.equal(bank.embeddings[0, 0], base[2])


def test_examples_of_one_name_are_averaged(det) -> None:
    enc, base = example(det)
    three = enc[[0, 0, 0]]
    bank = det.encode_queries(
        images=three, boxes=[PLACES["cup"], PLACES["fox"], None], names=["thing", "fox", "thing"]
    )
    assert bank.names == ("thing", "fox")
    assert torch.equal(bank.embeddings[:, 0], torch.stack([(base[2] + base[3]) / 2, base[1]]))


def test_objectness_decides_where_the_model_has_it_and_no_box_was_given() -> None:
    det = detector(owl(objectness=True))
    enc = det.encode_image(picture(SIDE, SIDE))
    best = enc.candidates.objectness[0].argmax()
    bank = det.encode_queries(images=enc)
    assert torch.equal(bank.embeddings[0, 0], enc.candidates.embeddings[0, best])
    unlike = det.encode_queries(images=enc, choice="background-unlike")
    whole = torch.tensor([0.0, 0, 1, 1])
    chosen = choose(enc.candidates, [whole], "background-unlike")
    assert torch.equal(unlike.embeddings[0, 0], chosen.embeddings[0])


def test_padding_is_never_an_example(det) -> None:
    """Candidates on padding are neither chosen nor part of the mean that says what background looks like."""
    boxes = to_cxcywh(torch.tensor([[[0.0, 0, 1, 0.5], [0, 0, 1, 0.5], [0, 0, 1, 0.5]]]))
    embeddings = torch.tensor([[[1.0, 0], [0.5, 0.1], [-5, 5]]])
    flat = torch.zeros(1, 3)
    plain = Candidates(embeddings, flat, flat, boxes, (1, 3))
    masked = dataclasses.replace(plain, mask=torch.tensor([[True, True, False]]))
    half = [torch.tensor([0.0, 0, 1, 0.5])]
    assert choose(masked, half).tokens.item() == 1
    assert choose(plain, half).tokens.item() == 0
    assert choose(masked, [None], "background-unlike").tokens.item() == 1
    assert len(choose(masked, []).tokens) == 0


def test_an_object_found_in_its_own_picture(det) -> None:
    """The whole way: an example from a real picture is found there again as the best of all pairs."""
    image = picture(SIDE, SIDE, seed=3)
    enc = det.encode_image(image)
    bank = det.encode_queries(images=image, boxes=[(0, 0, 32, 32)], choice="iou")
    cosine = normalize(enc.candidates.embeddings[0].float(), dim=-1) @ normalize(bank.embeddings[0, 0], dim=0)
    assert cosine.max().item() == pytest.approx(1, abs=1e-5)
    found = det.detect(image, [image], threshold=None, top_k=3)[0]
    assert found.query == ["image 0"]
    same = det.score(enc, det.encode_queries(images=enc), threshold=None, top_k=3)[0]
    torch.testing.assert_close(found.scores, same.scores, rtol=0, atol=1e-6)


def test_words_and_pictures_in_one_call_keep_their_order(det) -> None:
    shown = picture(SIDE, SIDE, seed=5)
    found = det.detect(picture(SIDE, SIDE), ["fox", shown, "cup"], threshold=None, top_k=None)[0]
    assert found.query == ["fox", "image 1", "cup"]
    bank = det.encode_queries(["fox", "cup"]) + det.encode_queries(images=shown)
    apart = det.score(det.encode_image(picture(SIDE, SIDE)), bank, threshold=None, top_k=None)[0]
    assert apart.query == ["fox", "cup", "image 0"]
    for mine, theirs in ((0, 0), (1, 2), (2, 1)):
        a, b = found.scores[found.labels == mine], apart.scores[apart.labels == theirs]
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_banks_add_and_select(det) -> None:
    words = det.encode_queries(["fox", "cup"], templates=["{}", "art of the {}."], ensemble="prob")
    shown = det.encode_queries(images=picture(SIDE, SIDE), names=["fox"])
    both = words + shown
    assert both.names == ("fox", "cup", "fox")
    assert both.kinds == ("text", "text", "image")
    assert (both.prompts, both.ensemble) == (2, "prob")
    assert torch.equal((shown + words)[[1, 2, 0]].embeddings, both.embeddings)
    enc = det.encode_image(picture(SIDE, SIDE, 2))
    every = det.score(enc, both, threshold=None, top_k=None)[0]
    for part, rows in ((words, [0, 1]), (shown, [2])):
        alone = det.score(enc, part, threshold=None, top_k=None)[0]
        mine = torch.isin(every.labels, torch.tensor(rows))
        torch.testing.assert_close(every.scores[mine], alone.scores, rtol=0, atol=1e-6)
    assert both["cup"].names == ("cup",)
    assert both[["cup", 0, -1]].kinds == ("text", "text", "image")
    assert both[1:].names == ("cup", "fox")
    assert both[:2].model_fingerprint is None
    with pytest.raises(ValueError, match=r"'fox' names 2 queries: give the number, one of \[0, 2\]"):
        both["fox"]
    with pytest.raises(ValueError, match="no query 'cups' in the bank: did you mean cup"):
        both["cups"]
    with pytest.raises(IndexError):
        both[3]
    other = det.encode_queries(["dog"], templates=["{}", "{}.", "the {}"], ensemble="prob")
    with pytest.raises(ValueError, match="2 prompts a query for ensemble='prob' and 3 for 'prob'"):
        words + other


def test_length_of_an_embedding_says_nothing_and_merging_respects_that(det) -> None:
    words = det.encode_queries(["fox", "cup"])
    shown = det.encode_queries(images=picture(SIDE, SIDE), names=["fox"])
    loud = dataclasses.replace(shown, embeddings=100 * shown.embeddings)
    enc = det.encode_image(picture(SIDE, SIDE, 2))
    a, b = (det.score(enc, words + bank, threshold=None, top_k=None)[0] for bank in (shown, loud))
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
    merged = (words + loud).merged()
    assert merged.names == ("fox", "cup")
    assert merged.kinds == ("image", "text")
    torch.testing.assert_close(merged.embeddings, (words + shown).merged().embeddings, rtol=0, atol=1e-6)
    expected = (normalize(words.embeddings[0], dim=-1) + normalize(shown.embeddings[0], dim=-1)) / 2
    torch.testing.assert_close(merged.embeddings[0], expected, rtol=0, atol=1e-6)


def test_save_and_load_again(det, tmp_path) -> None:
    words = det.encode_queries(["fox", "naïve 🦊 cup"], templates=["{}", "a {}."], ensemble="logit")
    bank = words + det.encode_queries(images=picture(SIDE, SIDE), names=["tree"])
    bank.save(tmp_path / "bank")
    assert sorted(p.name for p in (tmp_path / "bank").iterdir()) == ["bank.json", "embeddings.safetensors"]
    again = QueryBank.load(tmp_path / "bank")
    assert torch.equal(again.embeddings, bank.embeddings)
    for field in dataclasses.fields(QueryBank):
        if field.name != "embeddings":
            assert getattr(again, field.name) == getattr(bank, field.name)
    enc = det.encode_image(picture(30, 60))
    a, b = det.score(enc, bank, threshold=None)[0], det.score(enc, again, threshold=None)[0]
    assert torch.equal(a.scores, b.scores)
    bank[:1].save(tmp_path / "bank")
    assert len(QueryBank.load(tmp_path / "bank")) == 1, "a bank that is there is replaced"


def test_damaged_banks_are_refused(det, tmp_path) -> None:
    bank = det.encode_queries(["fox", "cup"])
    with pytest.raises(FileNotFoundError, match="holds no query bank: bank.json is missing"):
        QueryBank.load(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no query bank: choose another folder"):
        bank.save(tmp_path / "mine")
    bank.save(tmp_path / "b")
    file = tmp_path / "b" / "bank.json"
    record = json.loads(file.read_text())
    for change, message in (
        ({"names": ["fox"]}, "contradicts itself"),
        ({"kinds": ["text", "sound"]}, "contradicts itself"),
        ({"names": 3}, "contradicts itself"),
        ({"ensemble": "median"}, "contradicts itself"),
        ({"format": "other"}, "is no query bank"),
        ({"schema_version": 9}, "schema_version 9, this mmvit reads 1"),
        ({"embeddings_fingerprint": "0"}, "the embeddings are not those of bank.json"),
    ):
        file.write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=message):
            QueryBank.load(tmp_path / "b")
    file.write_text(json.dumps({k: v for k, v in record.items() if k != "kinds"}))
    with pytest.raises(ValueError, match="'kinds' is missing"):
        QueryBank.load(tmp_path / "b")
    file.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        QueryBank.load(tmp_path / "b")
    file.write_text(json.dumps(record))
    weights = tmp_path / "b" / "embeddings.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"embeddings.safetensors"):
        QueryBank.load(tmp_path / "b")


def test_another_models_bank_is_refused(det) -> None:
    other = detector(owl(seed=1))
    enc = det.encode_image(picture(9, 9))
    with pytest.raises(ValueError, match="this bank is of another text tower"):
        det.score(enc, other.encode_queries("fox"))
    with pytest.raises(ValueError, match="this bank is of another text tower"):
        det.detect(picture(9, 9), other.encode_queries("fox"))
    with pytest.raises(ValueError, match="made by different text towers"):
        det.encode_queries("fox") + other.encode_queries("fox")
    with pytest.raises(ValueError, match="bank is a list, expected a QueryBank"):
        det.score(enc, ["fox"])


def test_words_stay_valid_when_only_the_image_side_changed(det) -> None:
    """Text queries belong to the text tower; image queries to the whole detector."""
    model = owl()
    with torch.no_grad():
        model.class_head.dense.weight.mul_(2)
    tuned = detector(model)
    enc = tuned.encode_image(picture(9, 9))
    assert len(tuned.score(enc, det.encode_queries("fox"), threshold=None)) == 1
    with pytest.raises(ValueError, match="image queries of another detector"):
        tuned.score(enc, det.encode_queries(images=picture(9, 9)))
    with pytest.raises(ValueError, match="made by different detectors"):
        det.encode_queries(images=picture(9, 9)) + tuned.encode_queries(images=picture(9, 9))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((70, 0, 80, 10), r"box 0 .* lies outside what is seen of its picture of 64 x 32 pixels"),
        ((5, 5, 5, 20), r"box 0 is .* expected finite numbers with x0 < x1 and y0 < y1"),
        ((20, 5, 5, 20), r"expected finite numbers with x0 < x1"),
        ((0, 0, float("nan"), 9), r"expected finite numbers"),
        ((0, 0, float("inf"), 9), r"expected finite numbers"),
        ((0, 0, 9), r"box 0 has shape \(3,\), expected numbers x0, y0, x1, y1"),
    ],
)
def test_boxes_that_are_none(det, box, message) -> None:
    with pytest.raises(ValueError, match=message):
        det.encode_queries(images=[picture(32, 64)], boxes=[box])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either texts or images"),
        ({"texts": ["fox"], "images": [None]}, "give either texts or images"),
        ({"texts": []}, "there is no query"),
        ({"images": []}, "there is no query"),
        ({"texts": ["fox", ""]}, r"query 1 is empty \(''\)"),
        ({"texts": ["fox", 3]}, r"query 1 is a int, expected str"),
        ({"texts": ["fox"], "boxes": [None]}, "boxes and names belong to example pictures"),
        ({"texts": ["fox"], "ensemble": "median"}, "ensemble is 'median'"),
        ({"texts": ["fox"], "templates": ["no place"]}, r"template 'no place' has no '\{\}'"),
        ({"images": picture(9, 9), "choice": "best"}, "choice is 'best', valid: auto, background-unlike"),
        ({"images": picture(9, 9), "choice": "objectness"}, "needs a detector with an objectness head"),
        ({"images": picture(9, 9), "names": ["a", "b"]}, "there are 2 names for 1 example pictures"),
        ({"images": picture(9, 9), "boxes": [None, None]}, "there are 2 boxes for 1 pictures"),
    ],
)
def test_mistakes_are_named(det, given, message) -> None:
    with pytest.raises(ValueError, match=message):
        det.encode_queries(**given)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([["fox"]], r"queries must be 2 lists"),
        ("fox", r"queries must be 2 lists"),
        ([["fox"], ["tree"]], r"no query 'tree' in the bank"),
        (torch.ones(2, 3, dtype=torch.bool), r"expected bool \(2, 2\)"),
        (torch.ones(2, 2), r"queries is torch.float32"),
    ],
)
def test_mistakes_in_sets_are_named(det, queries, message) -> None:
    enc, bank = det.encode_image([picture(9, 9)] * 2), det.encode_queries(["fox", "cup"])
    with pytest.raises(ValueError, match=message):
        det.score(enc, bank, queries=queries)
