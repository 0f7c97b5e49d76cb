"""transformers' OwlViTForObjectDetection and Owlv2ForObjectDetection against the owl* presets, with heads."""

from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mmvit import hub
from mmvit.models.presets import list_models, preset
from tests.parity import pairs
from tests.parity.case import Case

NOTE = (
    "tokens of both towers; class and query embeddings; logits, boxes and objectness; the last number of a "
    "size is the queries' length"
)
QUERIES = 3  # of a picture


def config_of(name: str, depth: int | None):
    """transformers' config of a preset, with `depth` blocks in each tower, None = all."""
    detector = preset(name)
    kind = "OwlViT" if name.startswith("owlvit") else "Owlv2"
    cores = {"vision": detector.image.core, "text": detector.text.core}
    sides = {
        side: {
            "hidden_size": core.width,
            "num_hidden_layers": depth or core.depth,
            "num_attention_heads": core.num_heads,
            "intermediate_size": core.mlp_dim,
        }
        for side, core in cores.items()
    }
    image = detector.image
    sides["vision"] |= {"image_size": image.image_size[0], "patch_size": image.patch_size}
    return getattr(transformers, f"{kind}Config")(
        text_config=sides["text"], vision_config=sides["vision"], projection_dim=detector.text.embed_dim
    )


def inputs(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Pixels (B,3,H,W) and `QUERIES` texts a picture, ids and mask (B,Q,L), of a shape (B,3,H,W,L)."""
    texts = pairs.pair_inputs((shape[0] * QUERIES, 3, 1, 1, shape[4]))
    rows = {name: texts[name].unflatten(0, (shape[0], QUERIES)) for name in ("ids", "mask")}
    return rows | {"pixels": torch.randn(shape[:4])}


def outputs(peer: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens, embeddings and predictions of transformers' detector."""
    p: Any = peer
    inner = getattr(p, p.base_model_prefix)
    ids, mask = x["ids"].flatten(0, 1), x["mask"].flatten(0, 1)
    out = p(ids, x["pixels"], mask.long(), interpolate_pos_encoding=True)
    image = inner.vision_model.post_layernorm(out.vision_model_output.last_hidden_state)
    text = out.text_model_output.last_hidden_state
    embedded = inner.get_text_features(ids, mask.long()).pooler_output
    parts = [out.logits.flatten(), out.pred_boxes.flatten()]
    if hasattr(out, "objectness_logits"):
        parts.append(out.objectness_logits.flatten())
    # OWL-ViT returns class embeddings at length 1, OWLv2 as well: compared so.
    return {
        "tokens": pairs.joined(image, pairs.real(text, mask)),
        "pooled": pairs.joined(out.class_embeds, embedded),
        "logits": torch.cat(parts),
    }


def ours(detector: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Likewise of our detector."""
    found = detector(x["pixels"], x["ids"])
    ids, mask = x["ids"].flatten(0, 1), x["mask"].flatten(0, 1)
    image, text = detector.image.forward_tokens(x["pixels"]), detector.text.forward_tokens(ids, mask)
    embeddings = torch.nn.functional.normalize(found.candidates.embeddings, dim=-1)
    parts = [found.logits.flatten(), found.boxes.flatten()]
    if found.objectness is not None:
        parts.append(found.objectness.flatten())
    return {
        "tokens": pairs.joined(image.values, pairs.real(text.values, mask)),
        "pooled": pairs.joined(embeddings, detector.encode_queries(x["ids"], x["mask"])),
        "logits": torch.cat(parts),
    }


def _case(name: str, depth: int | None = 2) -> Case:
    image = preset(name).image
    side, p, full = image.image_size[0], image.patch_size, image.core.depth
    kind = "OwlViTForObjectDetection" if name.startswith("owlvit") else "Owlv2ForObjectDetection"
    return Case(
        preset=name,
        peer=f"transformers {kind}",
        build=lambda: getattr(transformers, kind)(config_of(name, depth)),
        convert=hub.from_transformers,
        outputs=outputs,
        ours=ours,
        inputs=inputs,
        shape=(2, 3, side, side, 16),
        other=(2, 3, 10 * p, 13 * p, 9),
        overrides={"image.depth": depth, "text.depth": depth} if depth else {},
        blocks=f"{depth} of {full}" if depth else "all",
        slow=depth is None,
        note=NOTE,
    )


CASES = [*map(partial(_case), list_models("owl*")), _case("owlvit_base_patch32", depth=None)]
