"""Plain-data descriptions of the cores: tokens (B,N,D) in, tokens out, whatever the modality.

Each is the keyword arguments of one class in `mmvit/core/`; `models/build.py` knows which. All but the ViT's
carry a `type`, so that a saved config says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu"]


class _SameWidth:
    """A core whose tokens come out as wide as they came in."""

    width: int

    @property
    def out_width(self) -> int:
        """Width of the tokens that come out."""
        return self.width


@dataclass(frozen=True, kw_only=True)
class CoreConfig(_SameWidth):
    """The one transformer.

    Attributes:
        norm: "pre" (ViT), "post" (BERT: x = LN(x + f(x)), no final norm) or "mid" (CCT: the stream itself is
            normed between attention and MLP).
        norm_type: "layer" or "rms" (T5: neither mean nor bias).
        norm_eps: the norms' epsilon; 1e-6 ViT and T5, 1e-5 CLIP, 1e-12 BERT and transformers' ViT.
        key_bias: whether keys have a bias as queries and values do; BEiT's have none.
        proj_bias, mlp_bias: whether the attention's output and the MLP have biases; T5's have none.
        attn_scale: of the attention scores, None = 1/sqrt(width of a head); T5: 1.
        relative: learned biases by relative place: on the grid, "block" (a table each) or "shared"; by
            distance in the sequence, special tokens counted, "buckets" (T5: one table for all blocks); None.
        relative_resample: how the tables follow another grid, "bilinear" or "geometric" (`RelativeBias`).
        relative_buckets: of "buckets": rows, for both directions together.
        relative_distance: likewise: from which on all distances are one.
        layer_scale: initial value of the per-channel scale, None = no LayerScale.
        drop_path: stochastic depth of the last block; block i gets linspace(0, drop_path, depth)[i].
        dropout: after attention projection and in the MLP.
        attn_dropout: on the attention weights.
        final_dropout: behind the final norm.
        norm_first: one extra norm on the incoming tokens (CLIP's ln_pre; BERT's embedding norm).
        norm_last: the final norm; always False for norm="post".
        causal: each token attends to itself and earlier ones only.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm: Literal["pre", "post", "mid"] = "pre"
    norm_type: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    qkv_bias: bool = True
    key_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    attn_scale: float | None = None
    relative: Literal["shared", "block", "buckets"] | None = None
    relative_resample: str = "bilinear"
    relative_buckets: int = 32
    relative_distance: int = 128
    layer_scale: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    attn_dropout: float = 0.0
    final_dropout: float = 0.0
    norm_first: bool = False
    norm_last: bool = True
    causal: bool = False


@dataclass(frozen=True, kw_only=True)
class CaitConfig(_SameWidth):
    """Deep blocks with talking heads on the grid tokens, then class attention (CaiT).

    Attributes:
        class_depth: blocks in which the class token alone reads the others.
        layer_scale: initial gain per channel of every branch.
        drop_path: stochastic depth, the same for every block.
    """

    type: Literal["cait"] = "cait"
    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    class_depth: int = 2
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MixerConfig(_SameWidth):
    """MLPs across tokens and across channels in turn (MLP-Mixer).

    Attributes:
        tokens: how many tokens the token-mixing MLPs are made for.
        token_dim: hidden width of the token-mixing MLPs.
        mlp_dim: hidden width of the channel-mixing MLPs.
    """

    type: Literal["mixer"] = "mixer"
    width: int
    depth: int
    tokens: int
    token_dim: int
    mlp_dim: int
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    drop_path: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MvitConfig:
    """Stages that shrink the grid and widen the channels inside pooling attention (MViT).

    Attributes:
        width: of the tokens that come in; doubled at the start of each later stage.
        num_heads: of the first stage; doubled likewise.
        depths: blocks of each stage.
        grid: of the tokens that come in, (h,w) or (t,h,w), for which relative positions are stored.
        q_stride: by which the grid shrinks at the start of each later stage, per axis.
        kv_stride: by which keys and values of the first stage are pooled; divided by `q_stride` on the way.
        kernel: side of the pooling convolutions.
        mlp_ratio: hidden width of the feed-forward parts over their input's.
        q_pool_always: pool queries in every block, not only where the grid shrinks (v2).
        relative: decomposed relative positions (v2).
        residual_pool: add the pooled queries to what attention returns (v2).
        residual_pool_prefix: also to the special tokens' (timm does, the video models do not).
        widen: which part of a block doubles the channels: "attention" (v2) or "mlp" of the block before (v1).
    """

    type: Literal["mvit"] = "mvit"
    width: int
    num_heads: int
    depths: tuple[int, ...]
    grid: tuple[int, ...]
    q_stride: tuple[int, ...]
    kv_stride: tuple[int, ...]
    kernel: int = 3
    mlp_ratio: float = 4.0
    q_pool_always: bool = True
    relative: bool = True
    residual_pool: bool = True
    residual_pool_prefix: bool = False
    widen: Literal["attention", "mlp"] = "attention"
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    drop_path: float = 0.0
    dropout: float = 0.0

    @property
    def out_width(self) -> int:
        """Width of the tokens that come out."""
        return self.width * 2 ** (len(self.depths) - 1)

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)


@dataclass(frozen=True, kw_only=True)
class ConvNextConfig:
    """Depthwise convolutions and MLPs with response normalisation on a shrinking grid (ConvNeXt V2).

    Attributes:
        widths: channels of each stage; the first is that of the tokens that come in.
        depths: blocks of each stage.
        kernel: side of the depthwise convolutions.
    """

    type: Literal["convnext"] = "convnext"
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernel: int = 7
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    drop_path: float = 0.0

    @property
    def width(self) -> int:
        """Width of the tokens that come in."""
        return self.widths[0]

    @property
    def out_width(self) -> int:
        """Width of the tokens that come out."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Attention inside windows that shift from block to block, on a shrinking grid (Swin).

    Attributes:
        width: of the tokens that come in; doubled at the start of each later stage.
        num_heads: of each stage.
        depths: blocks of each stage.
        window: side of a window in tokens; a smaller grid is one window.
        mlp_ratio: hidden width of the feed-forward parts over their input's.
    """

    type: Literal["swin"] = "swin"
    width: int
    num_heads: tuple[int, ...]
    depths: tuple[int, ...]
    window: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5
    activation: Activation = "gelu"
    drop_path: float = 0.0
    dropout: float = 0.0

    @property
    def out_width(self) -> int:
        """Width of the tokens that come out."""
        return self.width * 2 ** (len(self.depths) - 1)

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)


AnyCoreConfig = CoreConfig | CaitConfig | MixerConfig | MvitConfig | ConvNextConfig | SwinConfig
