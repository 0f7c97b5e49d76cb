"""What is compared of run folders: rows, weights, states, the samples of each step; and kills at random."""

import json
import random

import torch


def rows(out):
    """metrics.jsonl without the clock's and the memory's numbers."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("perf/", "time"))} for row in found]


def same(one, two):
    """Whether nested containers of tensors and numbers are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def assert_equal(out, whole):
    """Rows, weights, running mean, optimizer and generators of two runs are equal."""
    assert rows(out) == rows(whole)
    step = max(path.name for path in (whole / "checkpoints").iterdir())
    last = [run / "checkpoints" / step for run in (out, whole)]
    files = [json.loads((run / "manifest.json").read_text())["files"] for run in last]
    for name in ("model.safetensors", "average.safetensors"):
        assert files[0][name] == files[1][name], name
    assert same(*(torch.load(run / "state.pt", weights_only=True) for run in last))
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (out, whole)]
    assert weights[0] == weights[1]


def random_kills(options_of, never_stopped, folder, forked, seed, wanted):
    """Kills runs after random times until `wanted` kills have struck; each goes on from the last.

    A run that comes through first is compared, and the next ones get less time: machines differ.
    """
    rng, struck, longest, out = random.Random(seed), 0, 1.2, folder / "run0"
    while struck < wanted:
        status, said = forked(options_of(out), kill={"after": rng.uniform(0.0, longest)})
        if status == [-9]:
            struck += 1
            continue
        assert status == [0], said
        assert_equal(out, never_stopped)
        longest, out = 0.7 * longest, folder / f"run{int(out.name[3:]) + 1}"
        assert longest > 0.01, f"{struck} of {wanted} kills struck"
    status, said = forked(options_of(out))
    assert status == [0], said
    assert_equal(out, never_stopped)


def keys_of(file, world):
    """Position -> keys of the global batch, as the ranks of the last attempt at it got them."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found: dict[int, dict[int, list]] = {}
    for line in lines:
        found.setdefault(line["position"], {})[line["rank"]] = line["keys"]
    return {k: sum((parts[r] for r in range(world(k))), []) for k, parts in found.items()}
