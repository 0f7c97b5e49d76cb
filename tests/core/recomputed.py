"""What every core is held to: recomputing blocks in the backward pass changes no output and no gradient."""

import torch


def gradients(core, tokens):
    """name -> gradient, equal with and without checkpointing, dropout and skipped branches included."""
    results = []
    for on in (False, True):
        core.set_checkpointing(on)
        core.zero_grad()
        torch.manual_seed(1)
        out = core(tokens).values
        out.square().mean().backward()
        results.append((out.detach(), {n: p.grad.clone() for n, p in core.named_parameters()}))
    (plain, grads), (again, recomputed) = results
    assert torch.equal(plain, again)
    for name, grad in grads.items():
        assert torch.equal(grad, recomputed[name]), name
    return grads
