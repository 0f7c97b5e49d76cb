"""transformers' parameter names -> ours, for ViT, DINOv2, BERT, CLIP and SigLIP.

Version 5 keeps other names in memory than in files (`layers.0.attention.q_proj` for
`encoder.layer.0.attention.attention.query`); both spellings are read. Linear weights need no transpose.
"""

from __future__ import annotations

from mmvit.hub.convert.keymap import LEFT_OUT, Line, blocks, first_third, last_thirds, row, scalar, token

_POOLER = LEFT_OUT + "the tanh pooler, which vision checkpoints mostly lack; the class token is read instead"


def _attention(pattern: str, names: tuple[str, str, str], out: str) -> list[Line]:
    qkv: list[Line] = [(f"{pattern.format(n)}.*", f"attn.qkv.*#{k}") for k, n in enumerate(names)]
    return [*qkv, (f"{out}.*", "attn.proj.*")]


_IN_FILES = _attention("attention.attention.{}", ("query", "key", "value"), "attention.output.dense")
_IN_MEMORY = _attention("attention.{}_proj", ("q", "k", "v"), "attention.o_proj")
_CLIP_ATTENTION = _attention("self_attn.{}_proj", ("q", "k", "v"), "self_attn.out_proj")
_MLP: list[Line] = [("mlp.fc1.*", "mlp.fc1.*"), ("mlp.fc2.*", "mlp.fc2.*")]

_VISION: list[Line] = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"),
    ("embeddings.mask_token", LEFT_OUT + "the token that stands for hidden patches in pre-training"),
    ("layernorm.*", "core.norm.*"),
    ("pooler.dense.*", _POOLER),
]

VIT_BLOCKS: list[Line] = [
    *blocks(
        "encoder.layer.{i}.",
        "core.blocks.{i}.",
        [
            *_IN_FILES,
            ("layernorm_before.*", "norm1.*"),
            ("layernorm_after.*", "norm2.*"),
            ("intermediate.dense.*", "mlp.fc1.*"),
            ("output.dense.*", "mlp.fc2.*"),
        ],
    ),
    *blocks(
        "layers.{i}.",
        "core.blocks.{i}.",
        [*_IN_MEMORY, ("layernorm_before.*", "norm1.*"), ("layernorm_after.*", "norm2.*"), *_MLP],
    ),
]
VIT: list[Line] = [*_VISION, *VIT_BLOCKS]
DEIT: list[Line] = [*VIT, ("embeddings.distillation_token", "dist_token")]

DINOV2: list[Line] = [
    *_VISION,
    ("embeddings.register_tokens", "reg_token"),
    *blocks(
        "encoder.layer.{i}.",
        "core.blocks.{i}.",
        [
            *_IN_FILES,
            *_IN_MEMORY,
            ("norm1.*", "norm1.*"),
            ("norm2.*", "norm2.*"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            *_MLP,
        ],
    ),
]

# Token type 0 is added to the positions before this table is used: every token of a single text has it.
BERT: list[Line] = [
    ("embeddings.word_embeddings.weight", "tok_embed.weight"),
    ("embeddings.position_embeddings.weight", "pos_embed", row),
    ("embeddings.token_type_embeddings.weight", LEFT_OUT + "type 0 is part of the positions, type 1 unused"),
    ("embeddings.position_ids", LEFT_OUT + "a constant"),
    ("embeddings.LayerNorm.*", "core.norm_pre.*"),
    ("pooler.dense.*", LEFT_OUT + "the next-sentence pooler; the tower pools tokens"),
    *blocks(
        "encoder.layer.{i}.",
        "core.blocks.{i}.",
        [
            *_attention("attention.self.{}", ("query", "key", "value"), "attention.output.dense"),
            ("attention.output.LayerNorm.*", "norm1.*"),
            ("intermediate.dense.*", "mlp.fc1.*"),
            ("output.dense.*", "mlp.fc2.*"),
            ("output.LayerNorm.*", "norm2.*"),
        ],
    ),
]

_CLIP_BLOCKS = blocks(
    "encoder.layers.{i}.",
    "core.blocks.{i}.",
    [*_CLIP_ATTENTION, ("layer_norm1.*", "norm1.*"), ("layer_norm2.*", "norm2.*"), *_MLP],
)
CLIP_VISION: list[Line] = [
    ("embeddings.class_embedding", "cls_token", token),
    ("embeddings.patch_embedding.weight", "patch_embed.proj.weight"),
    ("embeddings.position_embedding.weight", "pos_embed", row),
    ("embeddings.position_ids", LEFT_OUT + "a constant"),
    ("pre_layrnorm.*", "core.norm_pre.*"),
    ("post_layernorm.*", "core.norm.*"),
    *_CLIP_BLOCKS,
]
SIGLIP_VISION: list[Line] = [
    ("embeddings.patch_embedding.*", "patch_embed.proj.*"),
    ("embeddings.position_embedding.weight", "pos_embed", row),
    ("embeddings.position_ids", LEFT_OUT + "a constant"),
    ("post_layernorm.*", "core.norm.*"),
    ("head.probe", "pool.latent"),
    ("head.attention.in_proj_weight", "pool.q.weight", first_third),
    ("head.attention.in_proj_weight", "pool.kv.weight", last_thirds),
    ("head.attention.in_proj_bias", "pool.q.bias", first_third),
    ("head.attention.in_proj_bias", "pool.kv.bias", last_thirds),
    ("head.attention.out_proj.*", "pool.proj.*"),
    ("head.layernorm.*", "pool.norm.*"),
    ("head.mlp.fc1.*", "pool.mlp.fc1.*"),
    ("head.mlp.fc2.*", "pool.mlp.fc2.*"),
    *_CLIP_BLOCKS,
]
_CLIP_TEXT: list[Line] = [
    ("embeddings.token_embedding.weight", "tok_embed.weight"),
    ("embeddings.position_embedding.weight", "pos_embed", row),
    ("embeddings.position_ids", LEFT_OUT + "a constant"),
    ("final_layer_norm.*", "core.norm.*"),
    ("head.*", "head.*"),  # SigLIP's
    *_CLIP_BLOCKS,
]


def _pair(vision: list[Line]) -> list[Line]:
    return [
        *blocks("vision_model.", "image.", vision),
        *blocks("text_model.", "text.", _CLIP_TEXT),
        ("visual_projection.weight", "image.head.weight"),
        ("text_projection.weight", "text.head.weight"),
        ("logit_scale", "logit_scale", scalar),
        ("logit_bias", "logit_bias", scalar),
    ]


CLIP = _pair(CLIP_VISION)
SIGLIP = _pair(SIGLIP_VISION)
