"""A slow reference of our own against the cct_* presets: no library that can be installed has the family."""

import re
from functools import partial

from torch import Tensor, nn

from mmvit.hub.convert.from_cct import from_cct
from mmvit.models.presets import list_models
from tests.parity.case import Case
from tests.parity.slow_cct import SlowCct

# depth: heads, MLP ratio, width
SIZES = {2: (2, 1, 128), 4: (2, 1, 128), 6: (4, 2, 256), 7: (4, 2, 256), 14: (6, 3, 384)}
NOTE = "peer: tests/parity/slow_cct.py, written from the paper, under the repository's names"


def build(name: str) -> SlowCct:
    depth, kernel, convolutions, side = map(int, re.findall(r"\d+", name))
    return SlowCct(depth, *SIZES[depth], kernel, convolutions, side, sine=name.endswith("_sine"))


def convert(name: str, peer: SlowCct) -> nn.Module:
    return from_cct(peer.repository_state(), name, head=True)


def outputs(peer: SlowCct, x: Tensor) -> dict[str, Tensor]:
    tokens = peer.forward_tokens(x)
    pooled = peer.pool(tokens)
    return {"tokens": tokens, "pooled": pooled, "logits": peer.classify(pooled)}


def resize(peer: SlowCct, shape: tuple[int, ...]) -> SlowCct:
    peer.goal = (peer.tokens_along(shape[2]), peer.tokens_along(shape[3]))
    return peer


def _case(name: str) -> Case:
    side = int(re.findall(r"\d+", name)[3])
    return Case(
        preset=name,
        peer="slow reference",
        build=partial(build, name),
        convert=partial(convert, name),
        outputs=outputs,
        shape=(2, 3, side, side),
        other=(1, 3, side // 2, 3 * side // 4),
        resize=resize,
        note=NOTE,
    )


CASES = [_case(name) for name in list_models("cct_*")]
