"""The task: lock letters, locked towers, cached and live features, what the loss reports."""

import math

import pytest
import torch

from mmvit.errors import UserError
from mmvit.losses import contrastive_loss
from mmvit.models.presets import create_model
from mmvit.models.towers import bare, with_head
from mmvit.tasks.contrastive import ContrastiveTask
from mmvit.tasks.lock import Lock
from mmvit.train.freeze import freeze
from mmvit.types import Batch


def pair(**changes):
    torch.manual_seed(0)
    fields = {"image_size": 16, "patch_size": 8, "vocab_size": 40, "context_length": 6, **changes}
    return create_model("lit_mu", **fields)


def batch(size=6, **changes):
    g = torch.Generator().manual_seed(1)
    fields = {
        "keys": [str(i) for i in range(size)],
        "image": torch.randint(0, 256, (size, 3, 16, 16), generator=g, dtype=torch.uint8),
        "text": torch.randint(0, 40, (size, 6), generator=g),
        "text_mask": torch.ones(size, 6, dtype=torch.bool),
        "group": torch.tensor([0, 1, 0, 2, 3, 4][:size]),
    }
    return Batch(**{**fields, **changes})


@pytest.mark.parametrize("letters", ["Lu", "LU", "LL", "Uu", "UU", "UL", "uu", "uU", "uL"])
def test_letters_lock_towers_but_not_heads_and_scalars(letters):
    task = ContrastiveTask(pair(embed_dim=8), lock=letters)
    frozen = freeze(task, task.lock.rules())
    for name, value in frozen.multipliers.items():
        side = name.split(".")[1]
        locked = side in ("image", "text") and letters[side == "text"] == "L" and ".head." not in name
        assert (value is None) == locked, name
    assert str(task.lock) == letters


def test_letters_are_validated():
    for wrong in ("L", "LX", "lit", "", "ll"):
        with pytest.raises(UserError, match="two letters"):
            Lock.parse(wrong)
    Lock.parse("LU").check(True, True)
    Lock.parse("uu").check(False, False)
    with pytest.raises(UserError, match="'L' of the image tower needs pretrained"):
        Lock.parse("Lu").check(False, False)
    with pytest.raises(UserError, match="'U' of the text tower needs pretrained"):
        Lock.parse("LU").check(True, False)
    with pytest.raises(UserError, match="starts the text tower from scratch"):
        Lock.parse("Lu").check(True, True)


@pytest.mark.parametrize("embed_dim", [None, 8])
def test_cached_features_give_the_loss_and_gradients_of_pixels(embed_dim):
    changes = {} if embed_dim is None else {"embed_dim": embed_dim}
    results = []
    for cached in (False, True):
        task = ContrastiveTask(pair(**changes), lock="Lu", duplicates="positive").train()
        freeze(task, task.lock.rules())
        given = batch()
        if cached:
            features = task.model.image.features(given.image)
            given = batch(image=None, image_embedding=features)
        out = task(given)
        out["loss"].backward()
        grads = {n: p.grad for n, p in task.named_parameters()}
        assert all((g is None) == (n.startswith("model.image") and "head" not in n) for n, g in grads.items())
        results.append((out["loss"], grads))
    assert torch.equal(results[0][0], results[1][0])
    for name, grad in results[0][1].items():
        assert grad is None or torch.equal(grad, results[1][1][name])


def test_two_training_forwards_of_a_locked_tower_are_equal():
    model = pair(**{"image.dropout": 0.5, "image.drop_path": 0.5, "image.depth": 3})
    task = ContrastiveTask(model, lock="Lu")
    freeze(task, task.lock.rules())
    task.train()
    task.model.image.train()
    first, second = task.precompute(batch()), task.precompute(batch())
    assert torch.equal(first.image_embedding, second.image_embedding)
    assert first.image is None
    assert not first.image_embedding.requires_grad
    unlocked = ContrastiveTask(pair(), lock="Uu")
    assert unlocked.precompute(batch()).image is not None


def test_text_gradients_under_lock_equal_those_without():
    grads = []
    for letters in ("Lu", "uu"):
        task = ContrastiveTask(pair(), lock=letters)
        freeze(task, task.lock.rules())
        task(batch())["loss"].backward()
        grads.append({n: p.grad for n, p in task.named_parameters() if ".text." in n})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=0, atol=1e-6)


def test_a_locked_text_tower_learns_its_head_only():
    task = ContrastiveTask(pair(**{"text.dropout": 0.5}), lock="uL").train()
    freeze(task, task.lock.rules())
    given = batch()
    assert torch.equal(task.embed(given)[1], task.embed(given)[1])
    task(given)["loss"].backward()
    learned = {n for n, p in task.named_parameters() if p.grad is not None and ".text." in n}
    assert learned == {"model.text.head.weight", "model.text.head.bias"}


def test_loss_and_metrics():
    task = ContrastiveTask(pair(), duplicates="mask")
    given = batch()
    out = task(given)
    z_image, z_text = task.embed(given)
    want = contrastive_loss(z_image, z_text, task.model.logit_scale, same=given.group, duplicates="mask")
    torch.testing.assert_close(out["loss"], want)
    assert out["logit_scale"].item() == pytest.approx(10.0)
    assert 0 <= out["in_batch_top1"] <= 1
    assert task.loss_parameters() == [task.model.logit_scale]
    with torch.no_grad():
        task.model.logit_scale.fill_(-3.0)
    task.after_step()
    assert task.model.logit_scale.item() == -3.0  # this preset has no clamp


def test_the_sigmoid_loss_wants_the_bias():
    with pytest.raises(ValueError, match="needs the model's logit_bias"):
        ContrastiveTask(pair(), kind="sigmoid")
    model = pair(logit_bias_init=-10.0, logit_scale_max=math.log(100))
    with pytest.raises(ValueError, match="no use"):
        ContrastiveTask(model)
    task = ContrastiveTask(model, kind="sigmoid")
    out = task(batch())
    assert out["loss"].item() == pytest.approx(10.0, abs=1.0)
    assert out["logit_bias"].item() == -10.0
    assert len(task.loss_parameters()) == 2


def test_a_batch_that_lacks_a_side():
    with pytest.raises(ValueError, match="needs text and an image or its cached embedding"):
        ContrastiveTask(pair())(batch(image=None))


def test_another_head_on_the_same_weights():
    tower = pair().image
    new = with_head(tower, 12, center=True)
    assert new.embed_dim == 12
    assert new.head.mean.shape == (32,)
    pixels = batch().image
    torch.testing.assert_close(new.features(pixels), tower.features(pixels))
    back = bare(new)
    assert back.config == tower.config
    assert all(torch.equal(v, back.state_dict()[n]) for n, v in tower.state_dict().items())
    assert with_head(tower, None) is tower
    text = with_head(pair().text, 12)
    assert text.head.weight.shape == (12, 32)


def test_a_peers_tower_keeps_its_module():
    from mmvit.models.foreign import ForeignImageTower

    tower = ForeignImageTower.wrap("timm:resnet18", image_size=(32, 32)).eval()
    new = with_head(tower, 8, center=True).eval()
    assert new.module is tower.module
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(new.features(pixels), tower.features(pixels))
    assert new(pixels).shape == (2, 8)
    task = ContrastiveTask(create_model("lit_mu", image_size=16, patch_size=8, vocab_size=40), lock="Lu")
    task.model.image = tower
    freeze(task, task.lock.rules())
    before = {n: b.clone() for n, b in tower.named_buffers()}
    task.train()
    task.precompute(batch(image=pixels.repeat(3, 1, 1, 1)))
    assert all(torch.equal(b, before[n]) for n, b in tower.named_buffers())
