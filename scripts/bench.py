"""Speed against peers in the same run, on this machine: ratios that docs/benchmarks.md quotes.

    python scripts/bench.py                      all of them
    python scripts/bench.py --only attention     our attention against torch's fused kernel, training
    python scripts/bench.py --only vit           our core against timm, ViT-S/16, inference and training step
    python scripts/bench.py --only text          a MiniLM-sized text tower against transformers' BertModel

Each pair is timed in turn, A B A B …, and the median of the ratios is quoted: a busy machine slows both.
Times are CPU seconds of this process on CPUs and wall seconds on GPUs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmvit import create_model
from mmvit.core.attention import attend
from mmvit.errors import one_line
from mmvit.options import parse

Call = Callable[[], object]


@dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
        only: which comparisons; all when empty.
        device: cpu or cuda.
        threads: CPU threads.
        rounds: counted pairs of each comparison.
        batch_size: pictures of `vit`, captions of `text`.
    """

    only: tuple[Literal["attention", "vit", "text"], ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    rounds: int = 7
    batch_size: int = 16


def compare(title: str, ours: Call, peer: Call, config: Config) -> None:
    """Prints one row: medians in milliseconds, and the median of peer / ours (above 1: ours is faster)."""

    def spent(call: Call) -> float:
        if config.device == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if config.device == "cuda" else time.process_time
        begun = clock()
        call()
        if config.device == "cuda":
            torch.cuda.synchronize()
        return clock() - begun

    for call in (ours, peer):
        call()
    pairs = [(spent(ours), spent(peer)) for _ in range(config.rounds)]
    a, b = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    ratio = statistics.median(q / p for p, q in pairs)
    print(f"| {title} | {a:.1f} | {b:.1f} | {ratio:.2f}x |", flush=True)


def bench_attention(config: Config) -> None:
    """Forward and backward of softmax attention alone, heads 64 wide."""
    for dtype in (torch.bfloat16, torch.float32):
        for batch, heads, tokens in ((256, 6, 12), (256, 3, 37), (64, 6, 65), (32, 6, 197)):
            x = torch.randn(
                batch, tokens, 3, heads, 64, dtype=dtype, device=config.device, requires_grad=True
            )

            def run(f: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor = x) -> Call:
                return lambda: f(*x.permute(2, 0, 3, 1, 4).unbind(0)).sum().backward()

            title = f"attention {str(dtype)[6:]}, batch {batch}, {heads} heads, {tokens} tokens"
            compare(title, run(attend), run(F.scaled_dot_product_attention), config)


def bench_vit(config: Config) -> None:
    """ViT-S/16 at 224 pixels with a 1000-way head."""
    import timm

    pixels = torch.randn(config.batch_size, 3, 224, 224, device=config.device)
    pairs = [
        create_model("vit_small_patch16_224", num_classes=1000),
        timm.create_model("vit_small_patch16_224"),
    ]
    for half in (True, False):
        calls = [_step(model.to(config.device), (pixels,), half, config) for model in pairs]
        for kind in (0, 1):
            title = f"ViT-S/16 {'bfloat16' if half else 'float32'} {('inference', 'training step')[kind]}"
            compare(title, calls[0][kind], calls[1][kind], config)


def bench_text(config: Config) -> None:
    """Six blocks of width 384 on captions of 12 tokens, batch x 16."""
    from transformers import BertConfig, BertModel

    from mmvit.hub import from_transformers

    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    peer = BertModel(shape, add_pooling_layer=False)
    ids = torch.randint(1000, 30000, (config.batch_size * 16, 12), device=config.device)
    mask = torch.arange(12, device=config.device) < torch.randint(4, 13, (len(ids), 1), device=config.device)
    ours = from_transformers(peer)
    for half in (True, False):
        a = _step(ours.to(config.device), (ids, mask), half, config)
        b = _step(peer.to(config.device), (ids, mask), half, config)
        compare(f"text tower {'bfloat16' if half else 'float32'} training step", a[1], b[1], config)


def _step(model: nn.Module, inputs: tuple[Tensor, ...], half: bool, config: Config) -> tuple[Call, Call]:
    """(inference, forward + backward) of one model on one batch."""

    def forward() -> Tensor:
        with torch.autocast(config.device, torch.bfloat16, enabled=half):
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


BENCHES = {"attention": bench_attention, "vit": bench_vit, "text": bench_text}


@one_line
def main() -> None:
    """Runs the comparisons that are named, all when none is."""
    config = parse(Config, description=__doc__ or "")
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    print("| work | ours, ms | peer, ms | peer / ours |\n| --- | --- | --- | --- |")
    for name in config.only or BENCHES:
        BENCHES[name](config)


if __name__ == "__main__":
    main()
