"""Biases by distance in the sequence: T5's buckets and encoder, dropped tokens, dropouts, mistakes."""

import pytest
import torch

from mmvit.core.buckets import BucketBias, bucket_of
from mmvit.core.vit import ViT
from mmvit.types import Tokens

SMALL = {"width": 32, "depth": 3, "num_heads": 4, "mlp_dim": 48}
T5 = {
    "norm_type": "rms",
    "activation": "relu",
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "attn_scale": 1.0,
    "relative": "buckets",
    "relative_distance": 20,
}


def core(**fields):
    torch.manual_seed(0)
    made = ViT(**SMALL | {"relative": "buckets", "relative_distance": 20} | fields)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made.eval()


def test_known_buckets():
    offsets = torch.tensor([0, -1, -7, -8, -11, -64, -500, 1, 7, 8, 64, 500])
    wanted = [0, 1, 7, 8, 9, 15, 15, 17, 23, 24, 31, 31]
    assert bucket_of(offsets, 32, 64).tolist() == wanted


def test_it_is_transformers_t5_encoder():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=5,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_heads=4,
        relative_attention_max_distance=20,
        feed_forward_proj="relu",
    )
    peer = transformers.T5EncoderModel(config).eval()
    for p in peer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    state = {"norm.weight": peer.encoder.final_layer_norm.weight}
    first = peer.encoder.block[0].layer[0].SelfAttention
    state["relative.table"] = first.relative_attention_bias.weight
    for i, block in enumerate(peer.encoder.block):
        attention, feed = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        state |= {
            f"blocks.{i}.norm1.weight": block.layer[0].layer_norm.weight,
            f"blocks.{i}.norm2.weight": block.layer[1].layer_norm.weight,
            f"blocks.{i}.attn.qkv.weight": torch.cat(
                [attention.q.weight, attention.k.weight, attention.v.weight]
            ),
            f"blocks.{i}.attn.proj.weight": attention.o.weight,
            f"blocks.{i}.mlp.fc1.weight": feed.wi.weight,
            f"blocks.{i}.mlp.fc2.weight": feed.wo.weight,
        }
    ours = core(**T5)
    ours.load_state_dict(state)  # every tensor of ours has its place in the peer, and no bias is left
    x, mask = torch.randn(2, 40, 32), torch.ones(2, 40, dtype=torch.bool)
    mask[1, 25:] = False
    with torch.no_grad():
        theirs = peer(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
        mine = ours(Tokens(x, (39,), prefix=1, mask=mask)).values
    assert (mine - theirs)[mask].abs().max() < 1e-5


def test_one_token_equals_all():
    made, x = core(), torch.randn(2, 9, 32)
    tokens = Tokens(x, (8,), prefix=1)
    torch.testing.assert_close(made.forward_one(tokens, 3), made(tokens).values[:, 3], rtol=0, atol=1e-6)


def test_the_special_token_in_front_is_place_zero():
    bias = BucketBias(2, 32, 64)
    with_token = bias.places((5,), 1, None, torch.device("cpu")).rows
    without = bias.places((6,), 0, None, torch.device("cpu")).rows
    assert torch.equal(with_token, without)


def test_dropped_tokens_keep_their_distances():
    made, x = core(), torch.randn(2, 7, 32)
    keep = torch.tensor([[0, 2, 5], [1, 4, 5]])
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.int64), keep + 1], 1)
    some = Tokens(x.gather(1, rows[..., None].expand(-1, -1, 32)), (6,), prefix=1, kept=keep)
    mask = torch.zeros(2, 7, dtype=torch.bool).scatter(1, rows, True)
    whole = made(Tokens(x, (6,), prefix=1, mask=mask)).values
    wanted = whole.gather(1, rows[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(made(some).values, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("where", ["attn_dropout", "final_dropout", "dropout"])
def test_each_dropout_works_in_training_and_only_there(where):
    made, plain = core(**{where: 0.5}), core()
    tokens = Tokens(torch.randn(2, 9, 32), (8,), prefix=1)
    assert torch.equal(made(tokens).values, plain(tokens).values)
    made.train()
    assert not torch.allclose(made(tokens).values, made(tokens).values)


def test_final_dropout_is_behind_the_norm():
    made = core(final_dropout=0.5, relative=None).train()
    tokens = Tokens(torch.randn(4, 9, 32), (8,), prefix=1)
    dropped, whole = made(tokens).values, core(relative=None)(tokens).values
    kept = dropped != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * whole[kept], rtol=1e-5, atol=1e-5)


def test_attention_dropout_keeps_the_mean():
    torch.manual_seed(0)
    made = core(depth=1, attn_dropout=0.2, relative=None).train()
    tokens = Tokens(torch.randn(1, 9, 32), (8,), prefix=1)
    attended = made.blocks[0].attn
    mean = torch.stack([attended(tokens.values) for _ in range(600)]).mean(0)
    assert (mean - attended.eval()(tokens.values)).abs().max() < 0.35


def test_mistakes_name_the_option():
    with pytest.raises(ValueError, match="relative_buckets is 5 and relative_distance 64, expected an even"):
        BucketBias(2, 5, 64)
    with pytest.raises(ValueError, match="relative_distance 8, expected"):
        BucketBias(2, 32, 8)
    with pytest.raises(ValueError, match="relative is 'buckets' with grid None and causal=True"):
        core(causal=True)
    with pytest.raises(ValueError, match="norm_type is 'batch', expected one of layer, rms"):
        core(norm_type="batch")
