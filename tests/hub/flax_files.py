"""big_vision's parameter trees without flax: random ones, our weights as such, old dialects, and slow maths.

Nothing here uses the converter: `vit`, `text` and `mixer` compute from the file's arrays with einsum, kernel
by kernel, so that an axis turned wrongly in writing and reading alike is still seen.
"""

import math
from pathlib import Path

import numpy as np
from torch import nn

Tree = dict[str, np.ndarray]


def random_encoder(rng, where: str, depth: int, width: int, heads: int, hidden: int) -> Tree:
    """The blocks of an encoder and its norm, all values random."""
    tree: Tree = {}
    for i in range(depth):
        block = f"{where}/encoderblock_{i}"
        tree |= random_norm(rng, f"{block}/LayerNorm_0", width)
        tree |= random_attention(rng, f"{block}/MultiHeadDotProductAttention_0", width, heads)
        tree |= random_norm(rng, f"{block}/LayerNorm_1", width)
        tree |= random_mlp(rng, f"{block}/MlpBlock_0", width, hidden)
    return tree | random_norm(rng, f"{where}/encoder_norm", width)


def random_norm(rng, where: str, width: int) -> Tree:
    return {f"{where}/scale": 1 + draw(rng, width), f"{where}/bias": draw(rng, width)}


def random_attention(rng, where: str, width: int, heads: int) -> Tree:
    tree: Tree = {}
    for name in ("query", "key", "value"):
        tree[f"{where}/{name}/kernel"] = draw(rng, width, heads, width // heads)
        tree[f"{where}/{name}/bias"] = draw(rng, heads, width // heads)
    tree[f"{where}/out/kernel"] = draw(rng, heads, width // heads, width)
    tree[f"{where}/out/bias"] = draw(rng, width)
    return tree


def random_mlp(rng, where: str, width: int, hidden: int) -> Tree:
    return random_dense(rng, f"{where}/Dense_0", width, hidden) | random_dense(
        rng, f"{where}/Dense_1", hidden, width
    )


def random_dense(rng, where: str, width: int, out: int) -> Tree:
    return {f"{where}/kernel": draw(rng, width, out), f"{where}/bias": draw(rng, out)}


def draw(rng, *shape: int) -> np.ndarray:
    return (0.3 * rng.standard_normal(shape)).astype(np.float32)


def random_vit(rng, *, cls: bool = True, pool: str = "tok", rows: int = 9, width: int = 16) -> Tree:
    """An image tower of two blocks, 4 heads of 4, patches of 4 pixels."""
    tree: Tree = {
        "embedding/kernel": draw(rng, 4, 4, 3, width),
        "embedding/bias": draw(rng, width),
        "pos_embedding": draw(rng, 1, rows, width),
        **random_encoder(rng, "Transformer", 2, width, 4, 24),
    }
    if cls:
        tree["cls"] = draw(rng, 1, 1, width)
    if pool == "map":
        tree["MAPHead_0/probe"] = draw(rng, 1, 1, width)
        tree |= random_attention(rng, "MAPHead_0/MultiHeadDotProductAttention_0", width, 4)
        tree |= random_norm(rng, "MAPHead_0/LayerNorm_0", width)
        tree |= random_mlp(rng, "MAPHead_0/MlpBlock_0", width, 24)
    return tree


def random_text(rng, *, width: int = 12, length: int = 5, embed: int = 16) -> Tree:
    """A text tower of two blocks and 3 heads with a head."""
    return {
        "Embed_0/embedding": draw(rng, 20, width),
        "pos_embedding": draw(rng, 1, length, width),
        **random_encoder(rng, "Encoder_0", 2, width, 3, 20),
        **random_dense(rng, "head", width, embed),
    }


def random_mixer(rng, *, tokens: int = 9, width: int = 16) -> Tree:
    """A Mixer of two blocks for 9 tokens, with a classifier."""
    tree = {"stem/kernel": draw(rng, 4, 4, 3, width), "stem/bias": draw(rng, width)}
    for i in range(2):
        tree |= random_norm(rng, f"MixerBlock_{i}/LayerNorm_0", width)
        tree |= random_norm(rng, f"MixerBlock_{i}/LayerNorm_1", width)
        tree |= random_mlp(rng, f"MixerBlock_{i}/token_mixing", tokens, 7)
        tree |= random_mlp(rng, f"MixerBlock_{i}/channel_mixing", width, 24)
    return tree | random_norm(rng, "pre_head_layer_norm", width) | random_dense(rng, "head", width, 5)


# ---- slow maths, float64 ----


def norm(p: Tree, where: str, x: np.ndarray) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p[f"{where}/scale"] + p[f"{where}/bias"]


def dense(p: Tree, where: str, x: np.ndarray) -> np.ndarray:
    return np.einsum("...i,io->...o", x, p[f"{where}/kernel"]) + p[f"{where}/bias"]


def mlp(p: Tree, where: str, x: np.ndarray) -> np.ndarray:
    h = dense(p, f"{where}/Dense_0", x)
    h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    return dense(p, f"{where}/Dense_1", h)


def attention(p: Tree, where: str, queries: np.ndarray, x: np.ndarray) -> np.ndarray:
    q, k, v = (
        np.einsum("nd,dhk->nhk", given, p[f"{where}/{name}/kernel"]) + p[f"{where}/{name}/bias"]
        for name, given in (("query", queries), ("key", x), ("value", x))
    )
    scores = np.einsum("qhk,nhk->hqn", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("hqn,nhk->qhk", weights, v)
    return np.einsum("qhk,hkd->qd", out, p[f"{where}/out/kernel"]) + p[f"{where}/out/bias"]


def encoder(p: Tree, where: str, x: np.ndarray) -> np.ndarray:
    depth = sum(name.endswith("LayerNorm_0/scale") and name.startswith(where) for name in p)
    for i in range(depth):
        block = f"{where}/encoderblock_{i}"
        y = norm(p, f"{block}/LayerNorm_0", x)
        x = x + attention(p, f"{block}/MultiHeadDotProductAttention_0", y, y)
        x = x + mlp(p, f"{block}/MlpBlock_0", norm(p, f"{block}/LayerNorm_1", x))
    return norm(p, f"{where}/encoder_norm", x)


def patches(p: Tree, layer: str, picture: np.ndarray) -> np.ndarray:
    """Tokens (N,D) of a picture (H,W,3), row by row."""
    kernel = p[f"{layer}/kernel"]
    side = kernel.shape[0]
    rows = [
        np.einsum("hwc,hwcd->d", picture[y : y + side, x : x + side], kernel)
        for y in range(0, picture.shape[0], side)
        for x in range(0, picture.shape[1], side)
    ]
    return np.stack(rows) + p[f"{layer}/bias"]


def vit(tree: Tree, picture: np.ndarray) -> np.ndarray:
    """Features (D,) of a picture (H,W,3) by an image tower's tree in the newest names."""
    p = {name: value.astype(np.float64) for name, value in tree.items()}
    x = patches(p, "embedding", picture) + p["pos_embedding"][0]
    if "cls" in p:
        x = np.concatenate([p["cls"][0], x])
    x = encoder(p, "Transformer", x)
    if "MAPHead_0/probe" in p:
        y = attention(p, "MAPHead_0/MultiHeadDotProductAttention_0", p["MAPHead_0/probe"][0], x)
        return (y + mlp(p, "MAPHead_0/MlpBlock_0", norm(p, "MAPHead_0/LayerNorm_0", y)))[0]
    return x[0] if "cls" in p else x.mean(0)


def text(tree: Tree, ids: list[int]) -> np.ndarray:
    """Embedding (E,) of token ids by a text tower's tree: every token sees all, the last one is read."""
    p = {name: value.astype(np.float64) for name, value in tree.items()}
    x = p["Embed_0/embedding"][ids] + p["pos_embedding"][0]
    return dense(p, "head", encoder(p, "Encoder_0", x)[-1])


def mixer(tree: Tree, picture: np.ndarray) -> np.ndarray:
    """Logits (C,) of a picture (H,W,3) by a Mixer's tree."""
    p = {name: value.astype(np.float64) for name, value in tree.items()}
    x = patches(p, "stem", picture)
    for i in range(2):
        block = f"MixerBlock_{i}"
        x = x + mlp(p, f"{block}/token_mixing", norm(p, f"{block}/LayerNorm_0", x).T).T
        x = x + mlp(p, f"{block}/channel_mixing", norm(p, f"{block}/LayerNorm_1", x))
    return dense(p, "head", norm(p, "pre_head_layer_norm", x).mean(0))


# ---- dialects ----


def numbered_through(tree: Tree) -> Tree:
    """Before linen: LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3."""
    pairs = {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1", "MlpBlock_0": "MlpBlock_3"}
    out = {}
    for name, value in tree.items():
        if "encoderblock_" in name:
            name = name.replace("LayerNorm_1", "LayerNorm_2")
            for new, old in pairs.items():
                name = name.replace(new, old)
        out[name] = value
    return out


def stacked(tree: Tree) -> Tree:
    """All blocks in one, with a leading axis."""
    out = {name: value for name, value in tree.items() if "encoderblock_" not in name}
    for name in tree:
        if "encoderblock_0/" in name:
            depth = sum(n.endswith(name.split("encoderblock_0/")[1]) and "encoderblock_" in n for n in tree)
            layers = [tree[name.replace("encoderblock_0/", f"encoderblock_{i}/")] for i in range(depth)]
            out[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    return out


def inlined(tree: Tree) -> Tree:
    """The parts of the attention pooling at the top."""
    return {name.removeprefix("MAPHead_0/"): value for name, value in tree.items()}


def under(tree: Tree, root: str) -> Tree:
    return {root + name: value for name, value in tree.items()}


def biases_with_four_axes(tree: Tree) -> Tree:
    return {n: v.reshape(1, 1, 1, -1) if v.ndim == 1 and "bias" in n else v for n, v in tree.items()}


def positions_at(tree: Tree, place: str) -> Tree:
    return {place if name == "pos_embedding" else name: value for name, value in tree.items()}


def phases(tree: Tree) -> Tree:
    """A Mixer in the names of its first release."""
    out = {}
    for name, value in tree.items():
        name = name.replace("MixerBlock_", "Mixer/encoderblock_").replace("stem/", "embedding/")
        name = name.replace("pre_head_layer_norm", "Mixer/encoder_norm")
        if "_mixing/" in name:
            for n in (0, 1):
                for part in ("kernel", "bias"):
                    name = name.replace(f"_mixing/Dense_{n}/{part}", f"_mixing_phase_0/{part}{n + 1}")
            value = value[:, None] if value.ndim == 2 else value[None]
        out[name] = value
    return out


# ---- our weights as a tree ----


def write_core(core: nn.Module, where: str) -> Tree:
    """The tree of one of our encoders."""
    state = {name: value.numpy() for name, value in core.state_dict().items()}
    heads, tree = core.num_heads, {}
    for i in range(core.depth):
        ours, theirs = f"blocks.{i}.", f"{where}/encoderblock_{i}/"
        width = state[f"{ours}norm1.weight"].shape[0]
        for n, name in ((0, "norm1"), (1, "norm2")):
            tree[f"{theirs}LayerNorm_{n}/scale"] = state[f"{ours}{name}.weight"]
            tree[f"{theirs}LayerNorm_{n}/bias"] = state[f"{ours}{name}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_0"
        weights = np.split(state[f"{ours}attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            tree[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            tree[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        tree[f"{attention}/out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(heads, -1, width)
        tree[f"{attention}/out/bias"] = state[f"{ours}attn.proj.bias"]
        for n in (0, 1):
            tree[f"{theirs}MlpBlock_0/Dense_{n}/kernel"] = state[f"{ours}mlp.fc{n + 1}.weight"].T
            tree[f"{theirs}MlpBlock_0/Dense_{n}/bias"] = state[f"{ours}mlp.fc{n + 1}.bias"]
    tree[f"{where}/encoder_norm/scale"] = state["norm.weight"]
    tree[f"{where}/encoder_norm/bias"] = state["norm.bias"]
    return tree


def write_image(tower: nn.Module) -> Tree:
    """The tree of one of our image towers without pooling of its own."""
    tree = {
        "embedding/kernel": tower.patch_embed.proj.weight.detach().numpy().transpose(2, 3, 1, 0),
        "embedding/bias": tower.patch_embed.proj.bias.detach().numpy(),
        "pos_embedding": tower.pos_embed.detach().numpy(),
        **write_core(tower.core, "Transformer"),
    }
    return tree if tower.cls_token is None else tree | {"cls": tower.cls_token.detach().numpy()}


def write_text(tower: nn.Module) -> Tree:
    """The tree of one of our text towers with a head."""
    return {
        "Embed_0/embedding": tower.tok_embed.weight.detach().numpy(),
        "pos_embedding": tower.pos_embed.detach().numpy(),
        **write_core(tower.core, "Encoder_0"),
        "head/kernel": tower.head.weight.detach().numpy().T,
        "head/bias": tower.head.bias.detach().numpy(),
    }


def save(tree: Tree, path: Path) -> Path:
    np.savez(path, **tree)
    return path
