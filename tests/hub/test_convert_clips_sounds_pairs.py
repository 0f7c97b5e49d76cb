"""transformers' VideoMAE, AST, ViTMAE, OWL-ViT and open_clip's CoCa: every class and spelling of them."""

import copy

import open_clip
import pytest
import torch
import transformers
from torch import nn

from mmvit.hub import from_open_clip, from_transformers
from tests.parity.case import randomise

CORE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
VIDEO = CORE | {
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 24,
    "num_labels": 3,
}
SOUND = CORE | {"max_length": 60, "num_mel_bins": 36, "num_labels": 3}


def close(a: torch.Tensor, b: torch.Tensor, limit: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert b.std() > 0.01
    assert (a - b).abs().max() < limit


def videomae(kind: str, **fields) -> nn.Module:
    return randomise(getattr(transformers, kind)(transformers.VideoMAEConfig(**VIDEO | fields)))


@pytest.mark.parametrize("normed", [False, True])
@torch.no_grad()
def test_videomae_encoders(normed, tmp_path):
    peer = videomae("VideoMAEModel", use_mean_pooling=not normed)
    clips = torch.randn(2, 3, 4, 16, 16)
    peer.save_pretrained(tmp_path)
    for source in (peer, tmp_path):
        tower = from_transformers(source)
        assert tower.config.core.norm_last == normed
        close(tower.forward_tokens(clips).values, peer(clips.transpose(1, 2)).last_hidden_state)


@torch.no_grad()
def test_videomae_pre_training_gives_its_encoder_and_names_what_it_leaves():
    peer = videomae("VideoMAEForPreTraining", use_mean_pooling=False)
    tower = from_transformers(peer)
    clips = torch.randn(2, 3, 4, 16, 16)
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[:, [1, 2, 5]] = True
    seen = peer.videomae(clips.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state
    keep = torch.tensor([[0, 3, 4, 6, 7]] * 2)
    close(tower.forward_tokens(clips, keep).values, seen)
    assert {n.split(".")[0] for n in tower.report.left_out} == {"encoder_to_decoder", "mask_token", "decoder"}


@torch.no_grad()
def test_videomae_classifiers_in_both_spellings(tmp_path):
    peer = videomae("VideoMAEForVideoClassification")
    clips = torch.randn(2, 3, 4, 16, 16)
    close(from_transformers(peer, head=True)(clips), peer(clips.transpose(1, 2)).logits)
    state = {  # as transformers 4 kept the biases
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
        for name, value in peer.state_dict().items()
    }
    peer.save_pretrained(tmp_path)
    from safetensors.torch import save_file

    save_file(state, tmp_path / "model.safetensors")
    model = from_transformers(tmp_path, head=True)
    close(model(clips), peer(clips.transpose(1, 2)).logits)
    pooled = peer.fc_norm(peer.videomae(clips.transpose(1, 2)).last_hidden_state.mean(1))
    close(from_transformers(tmp_path).features(clips), pooled)
    wrong = videomae("VideoMAEForVideoClassification", use_mean_pooling=False)
    with pytest.raises(ValueError, match="expected use_mean_pooling=True"):
        from_transformers(wrong)


@torch.no_grad()
def test_ast_in_memory_and_in_files(tmp_path):
    peer = randomise(transformers.ASTForAudioClassification(transformers.ASTConfig(**SOUND)))
    x = torch.randn(2, 60, 36)
    peer.save_pretrained(tmp_path)
    for source in (peer, tmp_path):
        close(from_transformers(source, head=True)(x), peer(x).logits)
    bare = peer.audio_spectrogram_transformer
    tower = from_transformers(bare)
    assert tower.config.pool == "cls_dist"
    close(tower.features(x), bare(x).pooler_output)
    close(tower.forward_tokens(x).values, bare(x).last_hidden_state)


@torch.no_grad()
def test_mae_encoder_out_of_its_pre_training(tmp_path):
    fields = {k: v for k, v in VIDEO.items() if k not in ("num_frames", "num_labels")}
    peer = randomise(
        transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**fields | {"image_size": 32}, mask_ratio=0.5)
        )
    )
    pixels, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    peer.save_pretrained(tmp_path)
    seen = peer.vit(pixels, noise=noise).last_hidden_state
    for source in (peer, tmp_path):
        tower = from_transformers(source)
        keep = noise.argsort(1)[:, :8]
        close(tower.forward_tokens(pixels, keep).values, seen)
    assert {n.split(".")[0] for n in tower.report.left_out} == {"decoder"}


@pytest.mark.parametrize("kind", ["OwlViT", "Owlv2"])
@torch.no_grad()
def test_owl_detectors_give_their_towers(kind, tmp_path):
    vision = CORE | {"image_size": 32, "patch_size": 8}
    text = CORE | {"vocab_size": 60, "max_position_embeddings": 8, "eos_token_id": 59, "bos_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, projection_dim=32)
    peer = randomise(getattr(transformers, f"{kind}ForObjectDetection")(config))
    pixels, ids = (
        torch.randn(2, 3, 32, 32),
        torch.tensor([[1, 7, 9, 59, 0, 0, 0, 0], [1, 5, 4, 3, 8, 11, 2, 59]]),
    )
    peer.save_pretrained(tmp_path)
    inner = peer.owlvit if kind == "OwlViT" else peer.owlv2
    for source in (peer, tmp_path):
        pair = from_transformers(source, head=False)
        tokens = inner.vision_model.post_layernorm(inner.vision_model(pixels).last_hidden_state)
        close(pair.image.forward_tokens(pixels).values, tokens)
        close(pair.text(ids, ids > 0), inner.get_text_features(ids).pooler_output)
        merged = pair.image.forward_tokens(pixels).values
        merged = peer.layer_norm(merged[:, 1:] * merged[:, :1])
        close(merged.reshape(2, 4, 4, 32), peer.image_embedder(pixels)[0])
    assert {n.split(".")[0] for n in pair.report.left_out} >= {"layer_norm", "class_head", "box_head"}
    assert torch.equal(pair.logit_scale, inner.logit_scale)


VISION = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}


def coca(width: int, late: bool = True) -> nn.Module:
    vision = VISION | {
        "width": width,
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 4,
    }
    peer = open_clip.CoCa(
        embed_dim=32,
        vision_cfg=vision | {"output_tokens": True},
        text_cfg=TEXT | {"embed_cls": True, "output_tokens": True},
        multimodal_cfg=TEXT | {"layers": 1},
    )
    peer.text.correct_cls_mask = not late  # no configuration of open_clip sets it
    return randomise(peer)


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    mask = torch.arange(12) <= torch.tensor([11, 6, 2])[:, None]
    return torch.where(mask, torch.randint(1, 49, (3, 12)), 0), mask


# The width of the image tower; at 32, that of the queries, open_clip keeps q, k and v in one matrix.
@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize("late", [True, False])
@torch.no_grad()
def test_coca_with_the_mask_as_released_and_as_meant(width, late):
    peer = coca(width, late)
    pair = from_open_clip(peer)
    assert pair.config.text.class_last == ("shifted" if late else "masked")
    pixels, (ids, mask) = torch.randn(2, 3, 32, 32), texts()
    close(pair.image(pixels), peer.encode_image(pixels, normalize=False))
    close(pair.text(ids, mask), peer.encode_text(ids, normalize=False))
    answers = pair.image.pool.answers(pair.image.forward_tokens(pixels))
    close(answers[:, 0], pair.image.features(pixels))
    close(answers[:, 1:], peer.visual(pixels)[1])
    assert {n.split(".")[0] for n in pair.report.left_out} == {"text_decoder"}


@torch.no_grad()
def test_a_class_token_behind_the_text_needs_the_whole_context():
    pair = from_open_clip(coca(64))
    ids, mask = texts()
    with pytest.raises(
        ValueError, match="padded to 7 tokens.*a class token behind the text reads position 12"
    ):
        pair.text(ids[1:, :7], mask[1:, :7])
    full = from_open_clip(coca(64, late=False))
    other = torch.where(mask, ids, 17)
    assert torch.equal(full.text(ids, mask), full.text(other, mask)), "a masked class token sees no padding"
    assert not torch.equal(pair.text(ids, mask), pair.text(other, mask)), "the shifted one sees one"


@torch.no_grad()
def test_average_pooling_with_its_norm_behind_it():
    fields = {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}
    text = TEXT | {"pool_type": "last", "no_causal_mask": True}
    peer = randomise(open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=VISION | fields, text_cfg=text))
    pair = from_open_clip(peer)
    pixels, (ids, mask) = torch.randn(2, 3, 32, 32), texts()
    close(pair.image(pixels), peer.encode_image(pixels))
    close(pair.text(ids, mask), peer.encode_text(ids))
    assert (pair.config.image.pool, pair.config.image.core.norm_first) == ("mean_norm", False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("EVA02-B-16", "cannot convert a timm Eva image side.*'open_clip:NAME'"),
        ("PE-Core-B-16", "cannot convert a timm Eva image side"),
        ("convnext_base", "cannot convert a timm ConvNeXt image side"),
        ("ViTamin-S", "expected a plain VisionTransformer"),
        ("RN50", "ModifiedResNet"),
    ],
)
def test_image_sides_without_a_converter_are_refused(name, message):
    config = copy.deepcopy(open_clip.get_model_config(name))
    custom = config.pop("custom_text", False)
    config["text_cfg"] |= {"layers": 1, "vocab_size": 50}
    with torch.device("meta"):
        peer = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    with pytest.raises(ValueError, match=message):
        from_open_clip(peer)
