"""A very small detector that learns to find coloured squares, so that pages show boxes that are right."""

import random

import torch
from PIL import Image, ImageDraw

from mmvit.data.image import ImagePreprocess, to_tensor
from mmvit.data.text import ClipTokenizer
from mmvit.hub.folder import save
from mmvit.losses.detection import detection_loss
from mmvit.models.config import DetectorConfig, ImageTowerConfig, TextTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.owl import OwlDetector

INKS = {"red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 60, 220)}
NAMES = [f"{ink} square" for ink in INKS]


def scene(things, size=(64, 64)):
    """A light picture of `size` (width, height) with squares: (ink, x0, y0, x1, y1) in its pixels."""
    picture = Image.new("RGB", size, (235, 235, 230))
    pen = ImageDraw.Draw(picture)
    for ink, *box in things:
        pen.rectangle([box[0], box[1], box[2] - 1, box[3] - 1], fill=INKS[ink])
    return picture


def draw_scene(rng):
    """One or two squares at random, apart from each other."""
    things = []
    for ink, half in zip(rng.sample(list(INKS), 2), (0, 32), strict=True):
        side = rng.randint(18, 28)
        x, y = half + rng.randint(0, 32 - side), rng.randint(0, 64 - side)
        things.append((ink, x, y, x + side, y + side))
    return things if rng.random() < 0.7 else things[: rng.randint(0, 1) + 1]


@torch.no_grad()
def told_apart(model, tokens):
    """The names' embeddings, orthogonal: the text tower's head is turned so that nothing need be learned."""
    old = model.encode_queries(tokens.ids, tokens.mask)
    turn = torch.eye(model.embed_dim)[:, : len(old)] @ torch.linalg.pinv(old.T)
    head = model.text.head
    head.weight.copy_(turn @ head.weight)
    head.bias.copy_(turn @ head.bias)
    return model.encode_queries(tokens.ids, tokens.mask)


def train(folder, steps=200, batch=16, seed=0, lr=4e-3):
    """Trains, saves to `folder` and returns the last loss."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    core = CoreConfig(width=64, depth=2, num_heads=4, mlp_dim=128)
    text = CoreConfig(width=32, depth=1, num_heads=2, mlp_dim=64, causal=True)
    config = DetectorConfig(
        image=ImageTowerConfig(core=core, image_size=(64, 64), patch_size=16, pool="cls"),
        text=TextTowerConfig(core=text, vocab_size=49408, context_length=16, embed_dim=32),
        box_bias="center",
    )
    model = OwlDetector(config)
    tokenizer = ClipTokenizer().with_context(16)
    tokens = tokenizer(NAMES).trim()
    queries = told_apart(model, tokens)
    model.text.requires_grad_(False)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    loss = torch.zeros(())
    for _ in range(steps):
        scenes = [draw_scene(rng) for _ in range(batch)]
        pixels = torch.stack([to_tensor(scene(things)) for things in scenes])
        targets = [
            {
                "labels": torch.tensor([[name.startswith(ink) for name in NAMES] for ink, *_ in things]),
                "boxes": torch.tensor([box for _, *box in things]) / 64,
            }
            for things in scenes
        ]
        candidates = model.encode_image(pixels)
        logits = model.score(candidates, queries)
        loss = detection_loss(logits, candidates.boxes, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
    preprocess = ImagePreprocess(size=(64, 64), resize="pad_corner", background=(128, 128, 128))
    save(model.eval(), folder, preprocess=preprocess, tokenizer=tokenizer)
    return loss.item()
