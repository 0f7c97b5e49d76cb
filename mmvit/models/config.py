"""Plain-data descriptions of models; `build_*` functions in this folder turn them into modules.

What is written to a saved model's config.json is exactly one of these, so every field is a number, a string,
a boolean, a tuple or a nested config. Field names are the field's standard terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Pool = Literal["cls", "mean", "mean_norm", "map", "last", "eos"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


@dataclass(frozen=True, kw_only=True)
class CoreConfig:
    """The one transformer.

    Attributes:
        norm: "pre" (ViT) or "post" (BERT: x = LN(x + f(x)), no final norm).
        norm_eps: LayerNorm epsilon; 1e-6 ViT, 1e-5 CLIP, 1e-12 BERT and transformers' ViT.
        layer_scale: initial value of the per-channel scale, None = no LayerScale.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, depth)[i].
        dropout: after attention projection and in the MLP.
        norm_first: one extra LayerNorm on the incoming tokens (CLIP's ln_pre; BERT's embedding norm).
        norm_last: the final LayerNorm; always False for norm="post".
        causal: each token attends to itself and earlier ones only.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    qkv_bias: bool = True
    layer_scale: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    norm_first: bool = False
    norm_last: bool = True
    causal: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig:
    """Picture -> features (B,D) -> embedding (B,E), with our own ViT core.

    Attributes:
        image_size: (height, width) in pixels at which the position table is stored.
        patch_size: side of a square patch in pixels.
        class_token: whether a class token leads the sequence.
        class_position: whether the position table has a row for the class token (original ViT, CLIP, DINOv2).
        position: "learned" or "sincos2d" (MoCo-v3 form, fixed).
        position_resample: how the table follows another grid: a name in `tokens.positions.RESAMPLE`.
        pool: cls | mean (of normed tokens) | map | mean_norm (a norm on the mean, timm's fc_norm: set
            core.norm_last=False).
        mean, std: per channel, for pixels scaled to 0..1.
        embed_dim: E, or None: no head, the features are the embedding (E = width).
        head_bias: whether the linear head has a bias (CLIP's has none).
        center: subtract a stored mean from the features before the head (LiT on rectified features).
    """

    core: CoreConfig
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    patch_bias: bool = True
    class_token: bool = True
    class_position: bool = True
    registers: int = 0
    position: Literal["learned", "sincos2d"] = "learned"
    position_resample: str = "bicubic_antialias"
    pool: Pool = "cls"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    embed_dim: int | None = None
    head_bias: bool = True
    center: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """An image tower (without an embedding head) under a linear classifier.

    Attributes:
        num_classes: C.
        bias_init: initial bias of every class: 0 for softmax, about -ln C for a sigmoid loss.
    """

    tower: ImageTowerConfig
    num_classes: int
    bias_init: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ForeignImageTowerConfig:
    """Any image model of a peer library as a tower: library, name and the arguments that rebuild it offline.

    Attributes:
        library: timm | open_clip | torchvision | transformers.
        name: the peer's model name (timm, torchvision, open_clip) or architecture class (transformers).
        arguments: plain data that rebuilds the architecture without any download.
        width: D of the pooled features.
        image_size: (height, width) used to feed it.
    """

    library: Literal["timm", "open_clip", "torchvision", "transformers"]
    name: str
    width: int
    arguments: dict[str, Any]
    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    embed_dim: int | None = None
    head_bias: bool = True
    center: bool = False


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Token ids (B,L) -> features (B,D) -> embedding (B,E).

    Attributes:
        vocab_size: rows of the token table.
        context_length: L at most; shorter inputs use the first rows of the position table.
        pool: last (position L-1) | eos (last real token by mask) | cls (position 0) | mean (over real
            tokens) | map.
        pad_mask: whether padding is hidden from attention (LiT's SentencePiece towers let padding attend).
        embed_dim: E, or None: no head.
        head_bias: whether the linear head has a bias.
    """

    core: CoreConfig
    vocab_size: int
    context_length: int = 16
    pool: Pool = "eos"
    pad_mask: bool = True
    embed_dim: int | None = None
    head_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """An image-text pair with its temperature (LiT, CLIP, SigLIP).

    Attributes:
        logit_scale_init: initial LOG scale; 2.6593 = ln(1/0.07) for CLIP, 2.3026 = ln 10 for LiT and SigLIP.
        logit_bias_init: initial bias of the sigmoid loss, None = no bias (softmax).
        logit_scale_max: upper clamp of the LOG scale after each step; ln 100 for CLIP, None = no clamp.
        activation: how similarities become probabilities, as trained.
    """

    image: ImageTowerConfig | ForeignImageTowerConfig
    text: TextTowerConfig
    logit_scale_init: float = 2.6593
    logit_bias_init: float | None = None
    logit_scale_max: float | None = 4.6052
    activation: Literal["softmax", "sigmoid"] = "softmax"
