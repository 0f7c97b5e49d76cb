"""What the processes of benchmarks/pairs.py run: one side of one case, as that side's own training does it.

Shape letters: B pairs, L tokens.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pairs import Case, Shape
from benchmarks.timing import Call, serve
from mmvit.data.batch import collate
from mmvit.data.loader import make_loader
from mmvit.data.text_clip import ClipTokenizer
from mmvit.types import Batch, Sample

CORPUS = Path(__file__).resolve().parents[2] / "data" / "corpus" / "train"
SOURCES = ("emoji", "clipart", "scenes")
WORDS = ("a", "the", "red", "small", "old", "two", "dogs", "house", "under", "tree", "near", "river", "with")
PEAK, DECAY, STEPS = 5e-4, 0.2, 10_000  # open_clip_train's defaults for a ViT; so many steps that none ends
CONTEXT, VOCABULARY = 77, 49408
_LAYER = {  # transformers' names -> ours
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def main() -> None:
    """Nothing; builds the side that the argument names and serves its call."""
    asked, folder = (json.loads(word) for word in sys.argv[1:])
    case = Case(**{**asked, "shape": Shape(**asked["shape"])})
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    peer = build_peer(case.shape).to(case.device)
    if case.work == "text":
        call, facts = text_side(case, peer)
    elif case.side == "ours":
        call, facts = our_step(case, peer, folder)
    else:
        call, facts = peer_step(case, peer)
    serve(call, facts, case.device)


def build_peer(shape: Shape) -> Any:
    """open_clip's CLIP of that shape with random weights; ours is converted from it."""
    import open_clip

    heads = shape.width // 64
    vision = {
        "layers": shape.depth,
        "width": shape.width,
        "head_width": 64,
        "patch_size": shape.patch_size,
        "image_size": shape.image_size,
    }
    words = {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": shape.width,
        "heads": heads,
        "layers": shape.depth,
    }
    return open_clip.CLIP(embed_dim=shape.width, vision_cfg=vision, text_cfg=words, output_dict=True)


def captions(count: int, full: bool = False) -> list[str]:
    """Captions drawn from the default corpus, or of random words where it was not built.

    Args:
        count: how many.
        full: so long that they fill the context.
    """
    rng = random.Random(0)
    folders = [str(CORPUS / name) for name in SOURCES if (CORPUS / name / "index.json").is_file()]
    if folders:
        with make_loader("::".join(folders), batch_size=count, fields=("text",), num_batches=1) as loader:
            found = list(next(iter(loader)).captions or [])
    else:
        found = [" ".join(rng.choices(WORDS, k=rng.randint(1, 18))) for _ in range(count)]
    return [" ".join(rng.choices(WORDS, k=CONTEXT)) for _ in found] if full else found


def our_batch(case: Case, trims: bool) -> Batch:
    """The batch as our loader hands it over: uint8 pixels, captions padded to the longest."""
    side = case.shape.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (case.shape.batch, 3, side, side), dtype=torch.uint8, generator=generator)
    said = captions(case.shape.batch, case.full)
    samples = [Sample(key=str(i), image=pixels[i], text=text, group=i) for i, text in enumerate(said)]
    return collate(samples, ClipTokenizer(), "longest" if trims else "context")


def our_step(case: Case, peer: Any, folder: str) -> tuple[Call, dict[str, Any]]:
    """(one training step as recipes/lit.py takes it, facts) from the peer's weights."""
    from mmvit.hub import from_open_clip
    from mmvit.tasks.contrastive import ContrastiveTask
    from mmvit.train.freeze import freeze
    from mmvit.train.optim import OptimConfig, build_optimizer
    from mmvit.train.prepare import prepare
    from mmvit.train.schedule import ScheduleConfig, build_schedule
    from mmvit.train.setup import TrainConfig, start
    from mmvit.train.step import train_step

    precision: Any = case.precision
    train = TrainConfig(
        steps=STEPS,
        batch_size=case.shape.batch,
        micro_batch=case.micro,
        compile=case.compile,
        precision=precision,
        threads=case.threads,
    )
    pair: Any = from_open_clip(peer)
    locked = case.work != "scratch"
    task = ContrastiveTask(pair, lock="Lu" if locked else "uu")
    # open_clip locks the image projection too.
    frozen = freeze(task, [*([("model.image.head.*", None)] if locked else []), *task.lock.rules()])
    optim = OptimConfig(lr=PEAK, weight_decay=DECAY)
    run = start(optim, train, folder, name="bench")
    engine = prepare(
        run, task, frozen, build_optimizer(task, frozen, optim), build_schedule(ScheduleConfig(), STEPS)
    )
    batch = our_batch(case, pair.text.ignores_padding)
    with torch.no_grad():
        value = task(batch.to(case.device))["loss"]
        if case.work == "cached":
            batch = task.precompute(batch.to(case.device)).to("cpu")
    facts = _facts(pair, value, batch.text)
    return lambda: train_step(engine, batch), facts


def peer_step(case: Case, peer: Any) -> tuple[Call, dict[str, Any]]:
    """(the body of open_clip_train.train.train_one_epoch for one batch, facts)."""
    import open_clip
    from open_clip_train.precision import get_autocast
    from open_clip_train.scheduler import cosine_lr

    if case.work == "locked":
        peer.lock_image_tower()
    optimizer = _peer_optimizer(peer)
    scheduler = cosine_lr(optimizer, PEAK, STEPS // 20, STEPS)
    criterion = open_clip.ClipLoss()
    autocast = get_autocast("amp_bf16" if case.precision == "bf16" else "fp32", device_type=case.device)
    images, texts = _peer_batch(case)
    peer.train()
    with torch.no_grad():
        value = criterion(**peer(images.to(case.device), texts.to(case.device)))
    done = 0

    def step() -> None:
        nonlocal done
        scheduler(done)
        x, y = images.to(case.device, non_blocking=True), texts.to(case.device, non_blocking=True)
        optimizer.zero_grad()
        with autocast():
            losses = criterion(**peer(x, y), output_dict=True)
            total = sum(losses.values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            peer.logit_scale.clamp_(0, math.log(100))
        done += 1

    return step, _facts(peer, value, texts)


def _peer_optimizer(peer: nn.Module) -> torch.optim.Optimizer:
    """AdamW as open_clip_train/main.py builds it."""

    def plain(name: str, p: Tensor) -> bool:
        return p.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))

    named = [(n, p) for n, p in peer.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if plain(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not plain(n, p)], "weight_decay": DECAY},
    ]
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), eps=1e-6)


def _peer_batch(case: Case) -> tuple[Tensor, Tensor]:
    """(pixels, token ids) as open_clip's loader hands them over: normalised float32, 77 tokens."""
    import open_clip

    batch = our_batch(case, trims=False)
    assert batch.image is not None
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    tokens = open_clip.tokenizer.SimpleTokenizer()(batch.captions, context_length=CONTEXT)
    return (batch.image.float() / 255 - mean) / std, tokens


def text_side(case: Case, peer: Any) -> tuple[Call, dict[str, Any]]:
    """(forward and backward of one text tower to its embedding, facts)."""
    from mmvit.hub import from_open_clip

    pair: Any = from_open_clip(peer)
    batch = our_batch(case, trims=case.side != "open_clip")
    assert batch.text is not None
    assert batch.text_mask is not None
    ids, mask = batch.text.to(case.device), batch.text_mask.to(case.device)
    if case.side == "ours":
        tower: nn.Module = pair.text
        embed: Callable[[], Tensor] = lambda: tower(ids, mask)  # noqa: E731
    elif case.side == "open_clip":
        del peer.visual
        tower, embed = peer, lambda: peer.encode_text(ids)
    else:
        tower = transformers_text(case.shape, pair)
        embed = lambda: tower(ids, attention_mask=mask.long()).text_embeds  # noqa: E731
    tower.to(case.device).train()
    with torch.no_grad():
        z = F.normalize(embed().float(), dim=-1)
        value = (z @ torch.linspace(-1, 1, z.shape[1], device=z.device)).square().mean()
    count = sum(p.numel() for n, p in tower.named_parameters() if n != "logit_scale")

    def call() -> None:
        tower.zero_grad(set_to_none=True)
        with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
            out = embed()
        out.float().square().mean().backward()

    return call, {**_facts(tower, value, ids), "parameters": count}


def transformers_text(shape: Shape, pair: Any) -> nn.Module:
    """A text tower of transformers' CLIP with the weights of our pair's."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        projection_dim=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.width // 64,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
    )
    model = CLIPTextModelWithProjection(config)
    ours = pair.text.state_dict()
    state = {
        "text_model.embeddings.token_embedding.weight": ours["tok_embed.weight"],
        "text_model.embeddings.position_embedding.weight": ours["pos_embed"][0],
        "text_projection.weight": ours["head.weight"],
    }
    for end in ("weight", "bias"):
        state[f"text_model.final_layer_norm.{end}"] = ours[f"core.norm.{end}"]
        for i in range(shape.depth):
            to, of = f"text_model.encoder.layers.{i}.", f"core.blocks.{i}."
            for name, part in zip("qkv", ours[f"{of}attn.qkv.{end}"].chunk(3), strict=True):
                state[f"{to}self_attn.{name}_proj.{end}"] = part
            for theirs, mine in _LAYER.items():
                state[f"{to}{theirs}.{end}"] = ours[f"{of}{mine}.{end}"]
    model.load_state_dict(state)
    return model


def _facts(model: nn.Module, value: Tensor, ids: Tensor | None) -> dict[str, Any]:
    assert ids is not None
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "value": value.item(), "text": "x".join(map(str, ids.shape))}
