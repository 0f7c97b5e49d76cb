"""Small detectors with random weights that differ from token to token, and pictures for them."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmvit.boxes import Placement, to_cxcywh
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer
from mmvit.detector import Detector, EncodedImages
from mmvit.models.config import CoreConfig, DetectorConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.owl import OwlDetector
from mmvit.types import Candidates, Detections

CONTEXT, SIDE, PATCH, E = 16, 64, 16, 24


def owl(seed: int = 0, class_token: bool = True, **fields) -> OwlDetector:
    torch.manual_seed(seed)
    core = CoreConfig(width=32, depth=2, num_heads=2, mlp_dim=64)
    words = CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=64, causal=True)
    image = ImageTowerConfig(
        core=core,
        image_size=(SIDE, SIDE),
        patch_size=PATCH,
        class_token=class_token,
        pool="cls" if class_token else "mean",
    )
    text = TextTowerConfig(core=words, vocab_size=49408, context_length=CONTEXT, embed_dim=E)
    model = OwlDetector(DetectorConfig(image=image, text=text, **fields))
    for head in (model.class_head, model.box_head):  # they start as constants
        for p in head.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def detector(model: OwlDetector | None = None, resize="pad_corner", **options) -> Detector:
    return Detector.from_parts(
        owl() if model is None else model,
        preprocess=ImagePreprocess(size=(SIDE, SIDE), resize=resize),
        tokenizer=ClipTokenizer(context_length=CONTEXT),
        **options,
    )


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def planted(
    det: Detector, place: Placement, boxes: Tensor, embeddings: Tensor, shift: Tensor | None = None
) -> EncodedImages:
    """One picture whose candidates have boxes (N,4) xyxy in its pixels and embeddings (N,E), scale 10."""
    shift = torch.zeros(len(boxes)) if shift is None else shift
    return EncodedImages(
        Candidates(
            embeddings=embeddings[None],
            shift=shift[None],
            scale=torch.full((1, len(boxes)), 10.0),
            boxes=to_cxcywh(place.to_fractions(boxes.float()))[None],
            grid=(1, len(boxes)),
        ),
        (place,),
        det.fingerprint,
    )


def same(a: list[Detections], b: list[Detections], atol: float = 1e-5) -> None:
    """Nothing; the same queries were found at the same places."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.scores, y.scores, rtol=0, atol=atol)
        torch.testing.assert_close(x.boxes, y.boxes, rtol=1e-5, atol=max(atol, 1e-4))
        assert x.labels.tolist() == y.labels.tolist()
        assert x.query == y.query
