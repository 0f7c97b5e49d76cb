"""What the cases of image-text pairs share: one shape for two inputs, one tensor for two outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

PAIR_NOTE = "tokens and embeddings of both towers; the last number of a size is the text's length"


def pair_inputs(shape: tuple[int, ...], end: int = 49_407, words: int = 900) -> dict[str, Tensor]:
    """Pixels (B,3,H,W), ids (B,L) and mask (B,L) of a shape (B,3,H,W,L): words, end, padding 0.

    Args:
        shape: (B,3,H,W,L).
        end: id of the end token, the largest one.
        words: ids of words are 1..words-1.
    """
    B, L = shape[0], shape[4]
    ends = torch.randint(2, L, (B,))
    ends[0] = L - 1
    mask = torch.arange(L) <= ends[:, None]
    ids = torch.where(mask, torch.randint(1, words, (B, L)), 0)
    ids[torch.arange(B), ends] = end
    return {"pixels": torch.randn(shape[:4]), "ids": ids, "mask": mask}


def joined(image: Tensor, text: Tensor) -> Tensor:
    """The two towers' outputs in one line, since their widths may differ."""
    return torch.cat([image.flatten(), text.flatten()])


def real(tokens: Tensor, mask: Tensor) -> Tensor:
    """The real tokens of a text (n,D), a class token behind it included: padding is read by nobody."""
    behind = mask.new_ones(len(mask), tokens.shape[1] - mask.shape[1])
    return tokens[torch.cat([mask, behind], 1)]


def ours(pair: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens and embeddings of our pair."""
    image, text = pair.image.forward_tokens(x["pixels"]), pair.text.forward_tokens(x["ids"], x["mask"])
    embedded = (
        pair.text.project(pair.text.pool(text)) if pair.text.class_last else pair.text(x["ids"], x["mask"])
    )
    return {
        "tokens": joined(image.values, real(text.values, x["mask"])),
        "pooled": joined(pair.image(x["pixels"]), embedded),
    }


def transformers_pair(peer: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Likewise of transformers' CLIP, OWL-ViT or SigLIP; the final norm stands on all image tokens."""
    p: Any = peer
    image = p.get_image_features(x["pixels"], interpolate_pos_encoding=True)
    text = p.get_text_features(x["ids"])
    tokens = image.last_hidden_state
    if p.config.model_type != "siglip":
        tokens = p.vision_model.post_layernorm(tokens)
    return {
        "tokens": joined(tokens, real(text.last_hidden_state, x["mask"])),
        "pooled": joined(image.pooler_output, text.pooler_output),
    }


def open_clip_pair(peer: nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Likewise of open_clip's CLIP, CustomTextCLIP or CoCa."""
    p: Any = peer
    text = getattr(p, "text", p)
    embedded, mask = text.token_embedding(x["ids"]), None
    if hasattr(text, "_embeds"):
        embedded, mask = text._embeds(x["ids"])
    else:
        embedded = embedded + text.positional_embedding[: x["ids"].shape[1]]
        mask = None if text.attn_mask is None else text.attn_mask[: embedded.shape[1], : embedded.shape[1]]
    texts = text.ln_final(text.transformer(embedded, attn_mask=mask))
    if (
        x["ids"].shape[1] < text.context_length and text is p
    ):  # CLIP's own encode_text takes whole contexts only
        written = texts[torch.arange(len(texts)), x["ids"].argmax(-1)] @ text.text_projection
    else:
        written = p.encode_text(x["ids"], normalize=False)
    if hasattr(p.visual, "trunk"):
        images = p.visual.trunk.forward_features(x["pixels"])
    else:
        images = p.visual.transformer(p.visual._embeds(x["pixels"]))
        images = images if p.visual.attn_pool is not None else p.visual.ln_post(images)
    return {
        "tokens": joined(images, real(texts, x["mask"])),
        "pooled": joined(p.encode_image(x["pixels"], normalize=False), written),
    }
