"""transformers' OWL-ViT and OWLv2 converted: logits, boxes, objectness and embeddings equal (limit 1e-5)."""

import pytest
import torch
import torch.nn.functional as F
import transformers

from mmvit import hub
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer
from mmvit.heads.detect import MISSING
from mmvit.hub.convert.files.read import read_weights
from mmvit.models.image_query import choose
from tests.parity.case import randomise

CORE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
KINDS = ("OwlViT", "Owlv2")
SIZES = [(64, 64), (32, 32), (48, 80), (96, 40)]  # the first is the native one


def peer_of(kind: str, words: int = 60, seed: int = 0):
    text = CORE | {"vocab_size": words, "max_position_embeddings": 16}
    text |= {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": 0}
    vision = CORE | {"hidden_size": 48, "image_size": 64, "patch_size": 8}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, projection_dim=32)
    return randomise(getattr(transformers, f"{kind}ForObjectDetection")(config), seed)


def queries(pictures: int, count: int, words: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B,Q,16) of texts of all lengths: begin, words, end, padding."""
    generator = torch.Generator().manual_seed(2)
    ends = torch.randint(1, 16, (pictures, count, 1), generator=generator)
    place = torch.arange(16).expand(pictures, count, -1)
    ids = torch.randint(1, words - 2, place.shape, generator=generator)
    ids = torch.where(place == 0, words - 2, torch.where(place == ends, words - 1, ids))
    mask = place <= ends
    return ids * mask, mask


def pixels(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert b.std() > 0.02, "too flat to tell anything"
    assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_text_queries(kind, size, seed):
    peer = peer_of(kind, seed=seed)
    detector = hub.from_transformers(peer)
    ids, mask = queries(2, 5)
    theirs = peer(
        ids.flatten(0, 1), pixels(size), mask.flatten(0, 1).long(), interpolate_pos_encoding=size != SIZES[0]
    )
    ours = detector(pixels(size), ids, mask)
    close(ours.logits, theirs.logits)
    close(ours.boxes, theirs.pred_boxes)
    close(F.normalize(ours.candidates.embeddings, dim=-1), theirs.class_embeds)
    close(F.normalize(detector.encode_queries(ids, mask), dim=-1), theirs.text_embeds)
    assert (ours.objectness is None) == (kind == "OwlViT")
    if kind == "Owlv2":
        close(ours.objectness, theirs.objectness_logits)
    close(detector(pixels(size), ids).logits, theirs.logits)  # the ids tell where a text ends


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_missing_queries(kind):
    peer = peer_of(kind)
    ids, mask = queries(2, 4)
    ids[1, 2:] = 0
    theirs = peer(ids.flatten(0, 1), pixels((64, 64)), (ids > 0).flatten(0, 1).long()).logits
    detector = hub.from_transformers(peer)
    ours = detector(pixels((64, 64)), ids, mask & (ids > 0), ids[..., 0] > 0).logits
    told = detector(pixels((64, 64)), ids).logits
    close(told[0], ours[0])
    assert (told[1, :, 2:] == MISSING).all()
    assert (theirs[1, :, 2:] == torch.finfo(theirs.dtype).min).all()
    assert (ours[1, :, 2:] == MISSING).all()
    close(ours[0], theirs[0])
    close(ours[1, :, :2], theirs[1, :, :2])


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_image_queries(kind, size):
    """The token that stands for a whole reference picture, and what it finds in another one."""
    peer = peer_of(kind)
    detector = hub.from_transformers(peer)
    reference = pixels(size).flip(0) * 2
    theirs = peer.image_guided_detection(pixels(size), reference, interpolate_pos_encoding=size != SIZES[0])
    asked = detector.encode_image(reference)
    close(asked.boxes, theirs.query_pred_boxes)
    chosen = choose(asked, [torch.tensor([0.0, 0, 1, 1])] * 2) if kind == "OwlViT" else None
    chosen = chosen or choose(asked, [None, None], "objectness")
    feats = theirs.query_image_embeds.flatten(1, 2)
    embedding, index, _ = peer.embed_image_query(
        feats, theirs.query_image_embeds, interpolate_pos_encoding=size != SIZES[0]
    )
    assert chosen.tokens.tolist() == index.flatten().tolist()
    close(chosen.embeddings, embedding.reshape(2, -1))
    found = detector.encode_image(pixels(size))
    close(detector.score(found, chosen.embeddings[:, None]), theirs.logits)
    close(found.boxes, theirs.target_pred_boxes)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_folders_and_what_becomes_of_every_tensor(kind, tmp_path):
    peer = peer_of(kind)
    peer.save_pretrained(tmp_path)
    detector = hub.from_transformers(tmp_path)
    ids = queries(2, 3)[0]
    close(
        detector(pixels((64, 64)), ids).logits,
        hub.from_transformers(peer)(pixels((64, 64)), ids).logits,
    )
    stored = set(read_weights(tmp_path))
    report = detector.report
    left = {name.removeprefix(f"{kind.lower()}.") for name in report.left_out}
    assert left == {"visual_projection.weight", "logit_scale"}
    assert len(stored) == sum(map(len, report.loaded.values())) + len(report.left_out)
    pair = hub.from_transformers(tmp_path, head=False)
    assert pair.config.image.embed_dim == pair.config.text.embed_dim == 32
    assert {n.split(".")[0] for n in pair.report.left_out} >= {"class_head", "box_head", "layer_norm"}


@torch.no_grad()
def test_another_size_on_request():
    """Positions are resampled once, when the model is converted; OWLv2's can be cut as it was trained."""
    peer, ids = peer_of("Owlv2"), queries(2, 3)[0]
    native, larger = hub.from_transformers(peer), hub.from_transformers(peer, image_size=96)
    assert larger.report.resized.keys() == {"image.pos_embed"}
    close(larger(pixels((96, 96)), ids).boxes, native(pixels((96, 96)), ids).boxes)
    assert larger.preprocess.size == (96, 96)
    cut = hub.from_transformers(peer, image_size=32, position_resample="crop")
    block = native.image.pos_embed[:, 1:].unflatten(1, (8, 8))[:, :4, :4].flatten(1, 2)
    assert torch.equal(cut.image.pos_embed[:, 1:], block)
    with pytest.raises(ValueError, match="'crop', and grid .12, 12. is larger than the stored .8, 8."):
        hub.from_transformers(peer, image_size=96, position_resample="crop")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_detector_is_fed_as_its_peer_was(kind, tmp_path):
    peer = peer_of(kind, words=49_408)
    detector = hub.from_transformers(peer)
    hub.save(detector, tmp_path / "ours", tokenizer=ClipTokenizer().with_context(16))
    loaded = hub.load(tmp_path / "ours")
    resize = {"OwlViT": ("squash", "bicubic"), "Owlv2": ("pad_corner", "bilinear")}[kind]
    wanted = ImagePreprocess(size=(64, 64), resize=resize[0], interpolation=resize[1], background=(0, 0, 0))
    assert loaded.preprocess == wanted
    words = loaded.tokenizer(["a red fox", "violin"])
    theirs = peer(words.ids.repeat(2, 1), pixels((64, 64)), words.mask.repeat(2, 1).long())
    close(loaded.model(pixels((64, 64)), words.ids, words.mask).logits, theirs.logits)
    # The folder's own word comes first.
    peer.save_pretrained(tmp_path / "theirs")
    processor = getattr(transformers, f"{kind}ImageProcessor")(
        resample=0,
        image_mean=[0.4] * 3,
        image_std=[0.2] * 3,
        **({"do_pad": False} if kind == "Owlv2" else {}),
    )
    processor.save_pretrained(tmp_path / "theirs")
    stated = hub.from_transformers(tmp_path / "theirs")
    assert (stated.preprocess.resize, stated.preprocess.interpolation) == ("squash", "nearest")
    assert (stated.config.image.mean, stated.config.image.std) == ((0.4,) * 3, (0.2,) * 3)
