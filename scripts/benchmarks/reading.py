"""What the processes of benchmarks/pictures.py run: one pass of one side's own reader, with one worker.

Counted is the CPU time of process and worker together, from making the reader until its worker has ended.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, which both sides normalise with
STD_RGB = (0.26862954, 0.26130258, 0.27577711)
Batches = Iterator[tuple[Tensor, Tensor]]


def main() -> None:
    """Nothing; prints {"samples", "rate": samples per CPU second, "mean": of all pixels, 0..255}."""
    side, work, folder, samples, batch = (json.loads(word) for word in sys.argv[1:])
    torch.set_num_threads(1)
    read: Callable[..., Callable[[], Batches]] = {"ours": our_reader, "peer": peer_reader}[side]
    batches = read(work, folder, samples, batch)
    begun, count, total = cpu_seconds(), 0, 0.0
    for values, tokens in batches():
        assert len(values) == len(tokens)
        count += len(values)
        total += _mean(values) * len(values)
    gc.collect()  # the peer's worker ends with its loader
    print(json.dumps({"samples": count, "rate": count / (cpu_seconds() - begun), "mean": total / count}))


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def our_reader(work: str, folder: str, samples: int, batch: int) -> Callable[[], Batches]:
    """Our loader: "train" (random crops), "evaluate" (exact resize, every sample once) or "cached"."""
    from mmvit.data.image import ImageAugment, ImagePreprocess
    from mmvit.data.loader import make_loader, read_all
    from mmvit.data.text_clip import ClipTokenizer

    same: dict[str, Any] = {"batch_size": batch, "workers": 1, "tokenizer": ClipTokenizer()}
    exact = ImagePreprocess(resize="shortest_crop")

    def batches() -> Batches:
        if work == "evaluate":
            loader = read_all(folder, fields=("image", "text"), preprocess=exact, **same)
        elif work == "train":
            augment = ImageAugment(flip=0.0)
            loader = make_loader(
                folder, num_batches=samples // batch, preprocess=exact, augment=augment, **same
            )
        else:
            fields = ("image_embedding", "text")
            loader = make_loader(
                folder, num_batches=samples // batch, fields=fields, pad_to="longest", **same
            )
        with loader:
            for found in loader:
                values = found.image if found.image is not None else found.image_embedding
                assert values is not None
                assert found.text is not None
                yield values, found.text

    return batches


def peer_reader(work: str, folder: str, samples: int, batch: int) -> Callable[[], Batches]:
    """open_clip_train's reader of shards with open_clip's own transform and tokenizer."""  # noqa: D403
    import open_clip
    from open_clip_train.data import get_wds_dataset

    train = work == "train"
    transform = open_clip.image_transform(224, is_train=train, mean=MEAN_RGB, std=STD_RGB)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    told = Namespace(
        train_data=f"{folder}/photos-{{000000..000001}}.tar",
        val_data=f"{folder}/photos-{{000000..000001}}.tar",
        train_num_samples=samples,
        val_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=batch,
        workers=1,
        world_size=1,
        seed=0,
    )

    def batches() -> Batches:
        data = get_wds_dataset(told, transform, is_train=train, floor=True, tokenizer=tokenizer)
        yield from data.dataloader

    return batches


def _mean(values: Tensor) -> float:
    """Mean of a batch of pictures in 0..255, from bytes or from normalised numbers; a look at every pixel."""
    if values.ndim != 4 or values.dtype == torch.uint8:
        return float(values.float().mean())
    channels = values.mean((0, 2, 3)) * torch.tensor(STD_RGB) + torch.tensor(MEAN_RGB)
    return float(channels.mean()) * 255
