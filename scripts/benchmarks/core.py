"""Attention and a text core, each against a peer's of the same shape; no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Call, Options, Row, compare
from mmvit.core.attention import attend

# (batch, heads, tokens): captions, small pictures, larger ones.
SHAPES = ((256, 6, 12), (256, 3, 37), (64, 6, 65), (32, 6, 197))


def attention(options: Options) -> Iterator[Row]:
    """Rows of forward and backward of softmax attention alone, heads 64 wide."""
    for dtype in (torch.bfloat16, torch.float32):
        for batch, heads, tokens in ((4, 2, 12),) if options.small else SHAPES:
            x = torch.randn(
                batch, tokens, 3, heads, 64, dtype=dtype, device=options.device, requires_grad=True
            )

            def step(f: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor = x) -> Call:
                return lambda: f(*x.permute(2, 0, 3, 1, 4).unbind(0)).sum().backward()

            yield compare(
                f"attention {_name(dtype)}, batch {batch}, {heads} heads, {tokens} tokens",
                step(attend),
                step(F.scaled_dot_product_attention),
                options,
                peer_name="torch scaled_dot_product_attention",
            )


def text(options: Options) -> Iterator[Row]:
    """Rows of six blocks of width 384 on captions of 4 to 12 tokens, forward with backward."""
    from transformers import BertConfig, BertModel

    from mmvit.hub import from_transformers

    batch = 4 if options.small else 256
    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    peer = BertModel(shape, add_pooling_layer=False)
    ids = torch.randint(1000, 30000, (batch, 12), device=options.device)
    mask = torch.arange(12, device=options.device) < torch.randint(4, 13, (batch, 1), device=options.device)
    ours = from_transformers(peer)
    for half in (True, False):
        a = _calls(ours.to(options.device), (ids, mask), half, options)
        b = _calls(peer.to(options.device), (ids, mask), half, options)
        work = f"MiniLM-sized text core, {batch} captions, {_name(half)}, forward + backward"
        yield compare(work, a[1], b[1], options, peer_name="transformers BertModel")


def _calls(model: nn.Module, inputs: tuple[Tensor, ...], half: bool, options: Options) -> tuple[Call, Call]:
    """(inference, forward + backward) of one model on one batch."""

    def forward() -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=half):
            out = model(*inputs)
        return getattr(out, "last_hidden_state", out).float()

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            forward()

    def train() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        forward().square().mean().backward()

    return infer, train


def _name(kind: torch.dtype | bool) -> str:
    return "bf16" if kind in (torch.bfloat16, True) else "fp32"
