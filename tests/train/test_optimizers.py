"""Optimizers against NumPy written out step by step; groups by explicit rules."""

import numpy as np
import pytest
import torch
from torch import nn

from mmvit.errors import UserError
from mmvit.train.adafactor import Adafactor, factored_axes
from mmvit.train.freeze import freeze
from mmvit.train.lion import Lion
from mmvit.train.optim import OptimConfig, build_groups, build_optimizer, decaying, set_rate


def gradients(shape, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) * (1 + i) for i in range(steps)]


def run(optimizer, parameter, grads):
    for g in grads:
        parameter.grad = torch.from_numpy(g).clone()
        optimizer.step()
    return parameter.detach().numpy()


def bf16(x):
    return torch.from_numpy(np.asarray(x, np.float32)).bfloat16().float().numpy()


@pytest.mark.parametrize("shape", [(7,), (40, 24), (24, 40), (48, 33), (64, 64), (2, 40, 48), ()])
def test_adafactor_equals_numpy(shape):
    theta0 = np.asarray(np.random.default_rng(5).normal(size=shape), np.float32)
    grads = [np.asarray(g, np.float32) for g in gradients(shape, 5)]
    p = nn.Parameter(torch.from_numpy(theta0.copy()))
    got = run(Adafactor([p], lr=0.01, weight_decay=0.3, beta2_cap=0.95), p, grads)
    theta, m, v, rows, cols = theta0.astype(np.float64), np.zeros(shape), 0.0, 0.0, 0.0
    order = np.argsort(shape, kind="stable")
    factored = len(shape) >= 2 and shape[order[-2]] >= 32
    for i, g in enumerate(grads):
        beta2 = min(0.95, 1 - (i + 1) ** -0.8)
        g = g.astype(np.float64)
        square = g * g + 1e-30
        if factored:
            d0, d1 = int(order[-1]), int(order[-2])
            rows = beta2 * rows + (1 - beta2) * square.mean(d0, keepdims=True)
            cols = beta2 * cols + (1 - beta2) * square.mean(d1, keepdims=True)
            u = g * (rows / rows.mean(d1, keepdims=True)) ** -0.5 * cols**-0.5
        else:
            v = beta2 * v + (1 - beta2) * square
            u = g / np.sqrt(v)
        exact = 0.9 * m + 0.1 * u
        m = bf16(exact)
        theta = theta - 0.01 * (exact + 0.3 * theta)
    assert (factored_axes(shape) is not None) == factored
    np.testing.assert_allclose(got, theta, rtol=0, atol=2e-4)


def test_adafactor_first_step_is_a_tenth_of_the_sign():
    p = nn.Parameter(torch.zeros(5))
    got = run(Adafactor([p], lr=1.0), p, [np.array([3.0, -2.0, 1e-3, -5.0, 7.0], np.float32)])
    np.testing.assert_allclose(got, [-0.1, 0.1, -0.1, 0.1, -0.1], atol=1e-6)


def test_adafactor_keeps_little_state():
    p = nn.Parameter(torch.zeros(256, 128))
    optimizer = Adafactor([p])
    run(optimizer, p, gradients((256, 128), 1))
    size = sum(v.numel() * v.element_size() for v in optimizer.state[p].values() if torch.is_tensor(v))
    assert size == 2 * 256 * 128 + 4 * (256 + 128)


def test_lion_equals_numpy():
    theta = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    p = nn.Parameter(torch.from_numpy(theta.copy()))
    grads = gradients((4, 3), 4)
    got = run(Lion([p], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1), p, grads)
    m = np.zeros((4, 3))
    for g in grads:
        theta = theta - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * theta)
        m = 0.99 * m + 0.01 * g
    np.testing.assert_allclose(got, theta, atol=1e-6)


def test_adamw_equals_numpy_with_the_decay_scaled_by_the_rate():
    linear = nn.Linear(3, 4)
    frozen = freeze(linear, [(".*", 1.0)])
    config = OptimConfig(lr=0.01, weight_decay=0.5, beta1=0.9, beta2=0.98, eps=1e-6)
    optimizer = build_optimizer(linear, frozen, config)
    theta = linear.weight.detach().numpy().copy()
    m = v = 0.0
    for i, g in enumerate(gradients((4, 3), 3)):
        linear.weight.grad, linear.bias.grad = torch.from_numpy(g), torch.zeros(4)
        set_rate(optimizer, 0.5)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        direction = (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.98 ** (i + 1))) + 1e-6)
        theta = theta - 0.005 * (direction + 0.5 * theta)
    np.testing.assert_allclose(linear.weight.detach().numpy(), theta, atol=1e-6)


def test_adam_equals_numpy_with_a_large_epsilon():
    linear = nn.Linear(3, 4)
    config = OptimConfig(name="adam", lr=0.01, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=0.1)
    optimizer = build_optimizer(linear, freeze(linear, [(".*", 1.0)]), config)
    assert type(optimizer) is torch.optim.Adam
    theta = linear.weight.detach().numpy().copy()
    m = v = 0.0
    for i, g in enumerate(gradients((4, 3), 3)):
        linear.weight.grad, linear.bias.grad = torch.from_numpy(g), torch.zeros(4)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta - 0.01 * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 0.1)
    np.testing.assert_allclose(linear.weight.detach().numpy(), theta, atol=1e-6)


def test_adam_takes_no_weight_decay_and_names_are_checked():
    linear = nn.Linear(3, 4)
    frozen = freeze(linear, [(".*", 1.0)])
    with pytest.raises(UserError, match=r"--optim.weight-decay is 0.1, and adam .* set it to 0"):
        build_optimizer(linear, frozen, OptimConfig(name="adam"))
    with pytest.raises(UserError, match="adamw, adam, adafactor, lion or sgd, got 'rmsprop'"):
        build_optimizer(linear, frozen, OptimConfig(name="rmsprop"))


def test_sgd_equals_numpy_with_momentum_and_the_decay_in_the_gradient():
    linear = nn.Linear(3, 4)
    config = OptimConfig(name="sgd", lr=0.1, weight_decay=0.2, beta1=0.9)
    optimizer = build_optimizer(linear, freeze(linear, [(".*", 1.0)]), config)
    theta, bias, m = linear.weight.detach().numpy().copy(), linear.bias.detach().clone(), 0.0
    for g in gradients((4, 3), 4):
        linear.weight.grad, linear.bias.grad = torch.from_numpy(g), torch.zeros(4)
        set_rate(optimizer, 0.5)
        optimizer.step()
        m = 0.9 * m + g + 0.2 * theta
        theta = theta - 0.05 * m
    np.testing.assert_allclose(linear.weight.detach().numpy(), theta, atol=1e-6)
    assert torch.equal(linear.bias.detach(), bias), "biases do not decay"


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Embedding(9, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Module()
        self.head.register_parameter("weight", nn.Parameter(torch.ones(6, 4)))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


def test_only_kernels_decay():
    assert decaying(Parts()) == {
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    }


def test_the_real_towers_decay_their_kernels_and_nothing_else():
    from mmvit.models.presets import create_model

    names = decaying(create_model("siglip_base_patch16_224", **{"image.depth": 1, "text.depth": 1}))
    assert {n.split(".")[-1] for n in names} == {"weight"}
    assert not [n for n in names if "norm" in n or "embed" in n and "patch_embed" not in n or "probe" in n]
    for part in ("patch_embed.proj", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "head"):
        assert any(part in n for n in names), part


def test_multipliers_by_pattern():
    module = Parts()
    frozen = freeze(module, [("table.*", None), ("head.*", 0.5), (".*", 1.0)])
    config = OptimConfig(
        lr=1.0, weight_decay=0.2, lr_multipliers=("conv\\..*=0.1",), decay_multipliers=("head.*=100",)
    )
    by_name = {name: g for g in build_groups(module, frozen, config) for name in g["names"]}
    assert "table.weight" not in by_name
    assert by_name["conv.weight"]["peak"] == pytest.approx(0.1)
    assert by_name["conv.weight"]["weight_decay"] == pytest.approx(0.2)
    assert by_name["head.weight"]["peak"] == 0.5
    assert by_name["head.weight"]["weight_decay"] == pytest.approx(20.0)
    assert by_name["conv.bias"]["weight_decay"] == 0
    assert by_name["logit_scale"]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("entry", "words"),
    [("conv", "PATTERN=FACTOR"), ("conv=x", "PATTERN=FACTOR"), ("nothing=2", "matches no")],
)
def test_wrong_multipliers(entry, words):
    module = Parts()
    with pytest.raises(UserError, match=words):
        build_groups(module, freeze(module, [(".*", 1.0)]), OptimConfig(lr_multipliers=(entry,)))


def test_nothing_trainable():
    module = Parts()
    with pytest.raises(UserError, match="nothing is trainable"):
        build_groups(module, freeze(module, [(".*", None)]), OptimConfig())
