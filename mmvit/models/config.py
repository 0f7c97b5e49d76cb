"""Plain-data descriptions of models; `build_*` functions in this folder turn them into modules.

What is written to a saved model's config.json is exactly one of these, so every field is a number, a string,
a boolean, a tuple or a nested config. Field names are the field's standard terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mmvit.models.core_config import AnyCoreConfig, CoreConfig
from mmvit.models.stem_config import ConvStemConfig, FoldStemConfig, FrameStemConfig, PatchStemConfig

Pool = Literal[
    "cls",
    "cls_tanh",
    "mean",
    "mean_norm",
    "map",
    "seq",
    "last",
    "eos",
    "cls_dist",
    "cls_dist_norm",
    "queries",
]


@dataclass(frozen=True, kw_only=True)
class QueryPoolConfig:
    """Attention pooling by several learned queries (CoCa): the tower's features are the first one's answer.

    Attributes:
        count: how many queries; those behind the first are kept for a text decoder.
        width: of the queries and of what they return, the features' D.
        num_heads: of the attention.
    """

    count: int = 256
    width: int
    num_heads: int = 8


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """What towers of all modalities share: special tokens, positions, core, pooling, head.

    Attributes:
        class_token: whether a class token leads the sequence.
        class_position: whether the position table has rows for class and distillation tokens (original ViT,
            CLIP, DINOv2).
        class_std: deviation of the class token at the start.
        distill_token: whether a distillation token follows the class token (DeiT).
        registers: tokens without position behind them that only serve the blocks.
        position: "learned", "separable" (MViT's: learned tables of times and of places, added; clips only),
            "axes" (VATT's: a learned table for every axis of the grid, added), a fixed table ("sincos2d":
            MoCo v3's, "sincos2d_mae": MAE's, "sincos1d": VideoMAE's, over all tokens in one line,
            "sincos1d_whisper": Whisper's, likewise), or "none".
        position_std: deviation of a learned table at the start, None = 1/sqrt(D).
        position_resample: how the table follows another grid: a name in `tokens.positions.RESAMPLE`, or
            "recompute" for a fixed one that is made anew.
        position_norm: whether positions pass through a LayerNorm of their own before they are added (VATT).
        token_dropout: on tokens with their positions, while training.
        pre_projection: a linear map and GELU on the stem's tokens, before the positions (VATT, shared core).
        post_projection: width of a linear map and GELU on all tokens behind the core (likewise), None = none.
        pool: cls | mean (of normed tokens) | map | seq | mean_norm (a norm on the mean, timm's fc_norm: set
            core.norm_last=False) | cls_dist (mean of class and distillation token) | cls_dist_norm (a norm
            on that: AST) | queries.
        pool_eps: epsilon of the pooling's own norm, None = the core's.
        queries: of the pooling "queries".
        mean, std: per channel, for pixels scaled to 0..1.
        embed_dim: E, or None: no head, the features are the embedding (E = width).
        head_bias: whether the linear head has a bias (CLIP's has none).
        head_hidden: width of a linear map and ReLU in front of the linear head (CLAP), None = none.
        center: subtract a stored mean from the features before the head (LiT on rectified features).
    """

    core: AnyCoreConfig
    class_token: bool = True
    class_position: bool = True
    class_std: float = 0.0
    distill_token: bool = False
    registers: int = 0
    position: Literal[
        "learned", "separable", "sincos2d", "none", "sincos2d_mae", "sincos1d", "axes", "sincos1d_whisper"
    ] = "learned"
    position_std: float | None = None
    position_resample: str = "bicubic_antialias"
    position_norm: bool = False
    token_dropout: float = 0.0
    pre_projection: bool = False
    post_projection: int | None = None
    pool: Pool = "cls"
    pool_eps: float | None = None
    queries: QueryPoolConfig | None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    embed_dim: int | None = None
    head_bias: bool = True
    head_hidden: int | None = None
    center: bool = False

    @property
    def feature_width(self) -> int:
        """D of the pooled features."""
        if self.post_projection is not None:
            return self.post_projection
        return self.queries.width if self.queries and self.pool == "queries" else self.core.out_width


@dataclass(frozen=True, kw_only=True)
class ImageTowerConfig(TowerConfig):
    """Picture -> features (B,D) -> embedding (B,E), with one of our own cores.

    Attributes:
        image_size: (height, width) in pixels at which positions are stored.
        patch_size: side of a square patch in pixels.
        patch_bias: whether the patch projection has a bias (CLIP's has none).
        patch_resample: how the patch kernel follows another patch size at run time, a name in
            `tokens.flexi.KERNEL_RESAMPLE` (FlexiViT: "pi"); None = the model has one patch size.
        stem: overlapping convolutions in place of patches, None = patches.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    patch_bias: bool = True
    patch_resample: str | None = None
    stem: ConvStemConfig | None = None


@dataclass(frozen=True, kw_only=True)
class VideoTowerConfig(TowerConfig):
    """Clip -> features (B,D) -> embedding (B,E), with one of our own cores.

    Attributes:
        clip_size: (frames, height, width) at which positions are stored.
        patch_size: (frames, height, width) of a tubelet.
        patch_bias: whether the tubelet projection has a bias.
        stem: overlapping convolutions in place of tubelets, None = tubelets.
    """

    clip_size: tuple[int, int, int] = (16, 224, 224)
    patch_size: tuple[int, int, int] = (2, 16, 16)
    patch_bias: bool = True
    stem: ConvStemConfig | None = None


@dataclass(frozen=True, kw_only=True)
class AudioTowerConfig(TowerConfig):
    """Log-mel spectrogram -> features (B,D) -> embedding (B,E), with one of our own cores.

    Attributes:
        spectrogram_size: (frames, mel bands) at which positions are stored.
        patch_size: side of a square patch, in mel bands and in frames.
        patch_stride: (mel bands, frames) from one patch to the next; less than `patch_size` = overlapping.
        patch_bias: whether the patch projection has a bias.
        mean, std: one number each, of the log-mel values that the tower was trained on; spectrograms come in
            already normalised, (x - mean) / std.
        stem: convolutions along time in place of patches, or patches of a folded spectrogram; None = patches.
    """

    spectrogram_size: tuple[int, int] = (1024, 128)
    patch_size: int = 16
    patch_stride: tuple[int, int] = (10, 10)
    patch_bias: bool = True
    position_resample: str = "cut_or_stretch"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    stem: FrameStemConfig | FoldStemConfig | PatchStemConfig | None = None


@dataclass(frozen=True, kw_only=True)
class WaveformTowerConfig(TowerConfig):
    """Raw waveform -> features (B,D) -> embedding (B,E), with one of our own cores.

    Attributes:
        samples: S, at which positions are stored.
        patch_size: samples of a patch.
        patch_bias: whether the patch projection has a bias.
    """

    samples: int = 153_600
    patch_size: int = 128
    patch_bias: bool = True


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A tower (without an embedding head) under a linear classifier.

    Attributes:
        num_classes: C.
        bias_init: initial bias of every class: 0 for softmax, about -ln C for a sigmoid loss.
    """

    tower: ImageTowerConfig | VideoTowerConfig | AudioTowerConfig | WaveformTowerConfig
    num_classes: int
    bias_init: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ForeignImageTowerConfig:
    """Any image model of a peer library as a tower: library, name and the arguments that rebuild it offline.

    Attributes:
        library: timm | open_clip | torchvision | transformers.
        name: the peer's model name (timm, torchvision, open_clip) or architecture class (transformers).
        arguments: plain data that rebuilds the architecture without any download.
        width: D of the pooled features, or of the tokens.
        image_size: (height, width) used to feed it.
        tokens: whether it serves tokens on a grid, as detectors need them; parameters that its pooling alone
            reads are then taken away.
    """

    library: Literal["timm", "open_clip", "torchvision", "transformers"]
    name: str
    width: int
    arguments: dict[str, Any]
    image_size: tuple[int, int] = (224, 224)
    tokens: bool = False
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
        pool: last (position L-1) | eos (last real token by mask) | cls (position 0) | cls_tanh (a linear map
            and tanh on that: BERT's pooler) | mean (over real tokens) | map.
        pad_mask: whether padding is hidden from attention (LiT's SentencePiece towers let padding attend).
        class_last: a learned token behind the text's last position, read by pool="last" (CoCa): "none",
            "masked" (it sees no padding), or "shifted" (as open_clip's released weights were trained: the
            mask stands one position late, so that it sees one padding token and not always itself).
        embed_dim: E, or None: no head.
        head_bias: whether the linear head has a bias.
        head_hidden: as `TowerConfig` has it.
    """

    core: CoreConfig
    vocab_size: int
    context_length: int = 16
    pool: Pool = "eos"
    pad_mask: bool = True
    class_last: Literal["none", "masked", "shifted"] = "none"
    embed_dim: int | None = None
    head_bias: bool = True
    head_hidden: int | None = None


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig:
    """A tower and a text tower with their temperature (LiT, CLIP, SigLIP; with sounds CLAP).

    Attributes:
        image: the tower beside the text's: of pictures, or of clips or sounds; `modality` tells which.
        logit_scale_init: initial LOG scale; 2.6593 = ln(1/0.07) for CLIP, 2.3026 = ln 10 for LiT and SigLIP.
        logit_bias_init: initial bias of the sigmoid loss, None = no bias (softmax).
        logit_scale_max: upper clamp of the LOG scale after each step; ln 100 for CLIP, None = no clamp.
        activation: how similarities become probabilities, as trained.
    """

    image: (
        ImageTowerConfig | ForeignImageTowerConfig | VideoTowerConfig | AudioTowerConfig | WaveformTowerConfig
    )
    text: TextTowerConfig
    logit_scale_init: float = 2.6593
    logit_bias_init: float | None = None
    logit_scale_max: float | None = 4.6052
    activation: Literal["softmax", "sigmoid"] = "softmax"

    @property
    def modality(self) -> Literal["image", "video", "audio"]:
        """What the tower beside the text's takes: also the field of a `Batch` that it reads."""
        if isinstance(self.image, VideoTowerConfig):
            return "video"
        return "audio" if isinstance(self.image, AudioTowerConfig | WaveformTowerConfig) else "image"


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """An image and a text tower under detection heads (OWL-ViT, OWLv2).

    Attributes:
        image: without head and pooling parameters: every token is read (pool cls or mean, embed_dim None).
        text: embeds the queries; its E is the width of the class embeddings.
        merge: what becomes of the class token: "mul_ln" multiplies every token with it and norms the product
            (towers without a class token have nothing to merge), "drop" leaves it out, "norm" leaves it out
            and norms the tokens, for towers that end without a norm.
        merge_eps: epsilon of that norm.
        box_bias: where a token's box starts: "corner" (as released: the lower right corner of its patch) or
            "center" of its patch.
        activation: of the box heads: gelu (transformers) or gelu_tanh (scenic).
        objectness: a further head that tells objects from background (OWLv2).
        prior: probability of every query at every token at the start.
        hide_padding: whether tokens that see only padding are hidden from attention.
        clip_ids: queries are ids of CLIP's tokenizer: where no mask is given, a text ends at its largest id,
            and one whose first id is 0 is missing, as in transformers.
    """

    image: ImageTowerConfig | ForeignImageTowerConfig
    text: TextTowerConfig
    merge: Literal["mul_ln", "norm", "drop"] = "mul_ln"
    merge_eps: float = 1e-5
    box_bias: Literal["corner", "center"] = "corner"
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    objectness: bool = False
    prior: float = 0.01
    hide_padding: bool = False
    clip_ids: bool = False


@dataclass(frozen=True, kw_only=True)
class WordTowerConfig:
    """Word ids (B,L) -> features (B,D) -> embedding (B,E): VATT's text front end on a core of any kind.

    A table of word vectors, a linear map to the core's width, an AGG token in front, the core; its output at
    AGG is the feature.

    Attributes:
        core: its `causal` must be False.
        vocab_size: rows of the table; id 0 is padding.
        context_length: L at most.
        word_width: of the word vectors (word2vec: 300).
        style: "shared" (map with bias and GELU, learned positions with their norm, AGG of the core's width
            without a position; for a core that other modalities use too) or "t5" (AGG of `word_width` in
            front of the words, map without bias and GELU, no positions: the core brings relative ones,
            "buckets").
        token_dropout: on tokens with their positions, while training.
        post_projection: width of a linear map and GELU behind the core, None = none.
        embed_dim: E, or None: no head.
    """

    type: Literal["words"] = "words"
    core: CoreConfig
    vocab_size: int = 65_536
    context_length: int = 16
    word_width: int = 300
    style: Literal["shared", "t5"] = "shared"
    token_dropout: float = 0.0
    post_projection: int | None = None
    embed_dim: int | None = None
    head_bias: bool = True

    @property
    def feature_width(self) -> int:
        """D of the features."""
        return self.core.width if self.post_projection is None else self.post_projection


@dataclass(frozen=True, kw_only=True)
class VattConfig:
    """Video, audio and text towers with the spaces that they share (VATT).

    Attributes:
        shared: one core for all three (modality-agnostic): the towers' `core` configs must be equal, and the
            core is one module.
        spaces: "fac" (fine and coarse: video and audio meet in S_va, that is mapped on to S_vt, where text
            is) or "joint" (one space).
        va_dim: E of S_va, and of the joint space.
        vt_dim: E of S_vt.
        temperature: of the losses, fixed.
    """

    type: Literal["vatt"] = "vatt"
    video: VideoTowerConfig
    audio: AudioTowerConfig | WaveformTowerConfig
    text: WordTowerConfig | TextTowerConfig
    shared: bool = True
    spaces: Literal["fac", "joint"] = "fac"
    va_dim: int = 512
    vt_dim: int = 256
    temperature: float = 0.07
