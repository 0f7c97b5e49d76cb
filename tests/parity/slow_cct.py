"""CCT written down a second time, slowly and apart from mmvit: the peer of a family that no library has.

Parameters carry the names of the Compact-Transformers repository.
Source: CCT (arXiv:2104.05704) and that repository.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SlowCct(nn.Module):
    """The classifier in plain operations, head by head; sizes as in the repository's model names.

    Args:
        depth, heads, ratio, width: of the transformer; ratio is the MLP's hidden width over the width.
        kernel, convolutions: of the tokenizer.
        side: of the picture for which the learned positions are stored.
        classes: of the classifier.
        sine: fixed positions.
    """

    def __init__(self, depth, heads, ratio, width, kernel, convolutions, side, classes=10, sine=False):
        super().__init__()
        self.depth, self.heads, self.convolutions, self.sine = depth, heads, convolutions, sine
        self.kernel, self.stride, self.padding = kernel, max(1, kernel // 2 - 1), max(1, kernel // 2)
        self.grid = self.goal = (self.tokens_along(side),) * 2
        shapes = {}
        for c in range(convolutions):
            out = width if c == convolutions - 1 else 64
            shapes[f"tokenizer.conv_layers.{c}.0.weight"] = (out, 64 if c else 3, kernel, kernel)
        if not sine:
            shapes["classifier.positional_emb"] = (1, self.grid[0] ** 2, width)
        for i in range(depth):
            block = f"classifier.blocks.{i}."
            for name in ("pre_norm", "norm1"):
                shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
            shapes[f"{block}self_attn.qkv.weight"] = (3 * width, width)
            for name, rows, columns in (
                ("self_attn.proj", width, width),
                ("linear1", ratio * width, width),
                ("linear2", width, ratio * width),
            ):
                shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        shapes |= {"classifier.norm.weight": (width,), "classifier.norm.bias": (width,)}
        shapes |= {"classifier.attention_pool.weight": (1, width), "classifier.attention_pool.bias": (1,)}
        shapes |= {"classifier.fc.weight": (classes, width), "classifier.fc.bias": (classes,)}
        self.values = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter((torch.ones if "norm" in name else torch.zeros)(shape))
                for name, shape in shapes.items()
            }
        )

    def tokens_along(self, side: int) -> int:
        """Tokens along one axis of a picture."""
        for _ in range(self.convolutions):
            side = (side + 2 * self.padding - self.kernel) // self.stride + 1
            side = (side + 2 - 3) // 2 + 1
        return side

    def repository_state(self) -> dict[str, Tensor]:
        """The tensors under the repository's names; it stores fixed positions too."""
        state = {name.replace("/", "."): value.data for name, value in self.values.items()}
        return state | ({"classifier.positional_emb": self.positions()} if self.sine else {})

    def positions(self) -> Tensor:
        """(1,N,D) of the present grid."""
        h, w = self.goal
        D = self.values["classifier/norm/weight"].shape[0]
        if self.sine:
            table = torch.empty(1, h * w, D)
            for p in range(h * w):
                for i in range(D):
                    angle = p / 10_000 ** (2 * (i // 2) / D)
                    table[0, p, i] = math.cos(angle) if i % 2 else math.sin(angle)
            return table
        table = self.values["classifier/positional_emb"]
        if self.goal == self.grid:
            return table
        maps = table.reshape(1, *self.grid, D).permute(0, 3, 1, 2)
        maps = F.interpolate(maps, size=self.goal, mode="bilinear", align_corners=False)
        return maps.permute(0, 2, 3, 1).reshape(1, h * w, D)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """(B,N,D) after the final norm."""
        for c in range(self.convolutions):
            kernel = self.values[f"tokenizer/conv_layers/{c}/0/weight"]
            x = F.conv2d(x, kernel, stride=self.stride, padding=self.padding)
            x = F.max_pool2d(x.clamp(min=0), 3, 2, 1)
        x = x.flatten(2).transpose(1, 2) + self.positions()
        for i in range(self.depth):
            block = f"classifier/blocks/{i}/"
            x = x + self.attention(self.norm(x, f"{block}pre_norm"), f"{block}self_attn")
            x = self.norm(x, f"{block}norm1")
            hidden = self.linear(x, f"{block}linear1")
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + self.linear(hidden, f"{block}linear2")
        return self.norm(x, "classifier/norm")

    def pool(self, tokens: Tensor) -> Tensor:
        """(B,D) of tokens (B,N,D): their mean, weighted by a softmax of scores."""
        scores = self.linear(tokens, "classifier/attention_pool")[..., 0].exp()
        weights = scores / scores.sum(1, keepdim=True)
        return sum(weights[:, n, None] * tokens[:, n] for n in range(tokens.shape[1]))

    def classify(self, pooled: Tensor) -> Tensor:
        """(B,C) logits."""
        return self.linear(pooled, "classifier/fc")

    def attention(self, x: Tensor, name: str) -> Tensor:
        """Self-attention, one head after the other."""
        D = x.shape[-1]
        size = D // self.heads
        q, k, v = (x @ part.T for part in self.values[f"{name}/qkv/weight"].split(D))
        heads = []
        for h in range(self.heads):
            here = slice(h * size, (h + 1) * size)
            scores = torch.einsum("bnk,bmk->bnm", q[..., here], k[..., here]) / math.sqrt(size)
            scores = (scores - scores.amax(-1, keepdim=True)).exp()
            heads.append(torch.einsum("bnm,bmk->bnk", scores / scores.sum(-1, keepdim=True), v[..., here]))
        return self.linear(torch.cat(heads, -1), f"{name}/proj")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.values[f"{name}/weight"].T + self.values[f"{name}/bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.values[f"{name}/weight"] + self.values[f"{name}/bias"]
