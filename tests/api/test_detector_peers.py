"""`Detector` against transformers' OWL-ViT and OWLv2 with the same random weights: boxes in original pixels,
the token that an example picture chooses, and its scores."""

import dataclasses

import pytest
import torch
import transformers

from mmvit import hub
from mmvit.boxes import area, clip
from mmvit.data.text import ClipTokenizer
from mmvit.detector import Detector
from tests.api.detectors import CONTEXT, SIDE, picture

SIZES = [(64, 64), (40, 120), (150, 50), (37, 91)]
QUERIES = ["a fox", "two red cups", "tree"]


def peer(version: int) -> torch.nn.Module:
    torch.manual_seed(version)
    sides = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    kind = {1: "OwlViT", 2: "Owlv2"}[version]
    config = getattr(transformers, f"{kind}Config")(
        vision_config=sides | {"image_size": SIDE, "patch_size": 16},
        text_config=sides | {"max_position_embeddings": CONTEXT},
        projection_dim=32,
    )
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).eval()
    for p in model.parameters():  # all of them: zero biases would hide what is not loaded
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture(scope="module", params=[1, 2], ids=["owlvit", "owlv2"])
def pair(request) -> tuple[torch.nn.Module, Detector, int]:
    model = peer(request.param)
    ours = Detector.from_parts(hub.from_transformers(model), tokenizer=ClipTokenizer(context_length=CONTEXT))
    return model, ours, request.param


def pixels(det: Detector, images) -> torch.Tensor:
    """The pictures as our preprocessing makes them, normalised as the peer's does."""
    mean, std = (torch.tensor(getattr(det.model.config.image, n)).view(3, 1, 1) for n in ("mean", "std"))
    return torch.stack([(det.preprocess(image) / 255 - mean) / std for image in images])


def theirs(model, det, images, threshold: float) -> list[dict[str, torch.Tensor]]:
    """Their forward and their post-processing; OWLv2's pictures are padded to squares, and scaled as such."""
    tokens = det.tokenizer(QUERIES)
    with torch.no_grad():
        out = model(
            pixel_values=pixels(det, images),
            input_ids=tokens.ids.repeat(len(images), 1),
            attention_mask=tokens.mask.long().repeat(len(images), 1),
        )
    kind = "Owlv2" if det.preprocess.resize == "pad_corner" else "OwlViT"
    processor = getattr(transformers, f"{kind}ImageProcessor")()
    sizes = [(image.height, image.width) for image in images]
    if kind == "Owlv2":
        sizes = [(max(size), max(size)) for size in sizes]
    return processor.post_process_object_detection(out, threshold=threshold, target_sizes=sizes)


def test_same_boxes_in_original_pixels(pair) -> None:
    model, det, version = pair
    assert det.preprocess.resize == {1: "squash", 2: "pad_corner"}[version]
    images = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    enc = det.encode_image(images)
    # Theirs look for things on the padding too; ours do not, which is what the mask is for.
    enc = dataclasses.replace(enc, candidates=dataclasses.replace(enc.candidates, mask=None))
    bank = det.encode_queries(QUERIES)
    threshold = torch.cat([one["scores"] for one in theirs(model, det, images, 0.0)]).median().item()
    found = det.score(enc, bank, threshold=threshold, top_k=None, per_token_argmax=True)
    total = 0
    for size, mine, expected in zip(SIZES, found, theirs(model, det, images, threshold), strict=True):
        boxes = clip(expected["boxes"], size)
        seen = area(boxes) > 0
        order = expected["scores"][seen].argsort(descending=True)
        torch.testing.assert_close(mine.scores, expected["scores"][seen][order], rtol=0, atol=1e-5)
        torch.testing.assert_close(mine.boxes, boxes[seen][order], rtol=0, atol=1e-3)
        assert torch.equal(mine.labels, expected["labels"][seen][order])
        total += len(mine.boxes)
    assert 8 < total <= 32, "half of 64 tokens, less those whose boxes lie on padding"


def test_same_example_and_same_scores_for_it(pair) -> None:
    model, det, version = pair
    targets = [picture(64, 64, seed) for seed in (0, 1)]
    examples = [picture(64, 64, seed) for seed in (2, 3)]
    with torch.no_grad():
        out = model.image_guided_detection(pixels(det, targets), query_pixel_values=pixels(det, examples))
    enc = det.encode_image(targets)
    for i, example in enumerate(examples):
        bank = det.encode_queries(images=example)
        logits = det.model.score(enc[i].candidates, bank.embeddings[:, 0])
        torch.testing.assert_close(logits[0], out.logits[i], rtol=0, atol=1e-4)
    torch.testing.assert_close(enc.candidates.boxes, out.target_pred_boxes, rtol=0, atol=1e-5)
