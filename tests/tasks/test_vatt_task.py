"""The task: terms, rows that lack modalities, stills, DropToken, locked towers, micro-batches."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from mmvit.errors import UserError
from mmvit.losses import mil_nce_loss
from mmvit.models.config import (
    AudioTowerConfig,
    VattConfig,
    VideoTowerConfig,
    WaveformTowerConfig,
    WordTowerConfig,
)
from mmvit.models.core_config import CoreConfig, SwinConfig
from mmvit.models.stem_config import FrameStemConfig
from mmvit.models.vatt import Vatt
from mmvit.tasks.vatt import VattTask, kept_tokens
from mmvit.train.freeze import freeze
from mmvit.train.step import Engine, Trainable, train_step
from mmvit.types import Batch

P = 3
CORE = CoreConfig(width=16, depth=2, num_heads=2, mlp_dim=32)


def model(shared=True, spaces="fac"):
    torch.manual_seed(0)
    core, after = CORE, 16 if shared else None
    towers = {
        "core": core,
        "class_token": True,
        "class_position": False,
        "class_std": 0.25,
        "position": "axes",
        "position_norm": True,
        "pre_projection": shared,
        "post_projection": after,
    }
    words = WordTowerConfig(core=core, vocab_size=40, word_width=12, context_length=6, post_projection=after)
    return Vatt(
        VattConfig(
            video=VideoTowerConfig(clip_size=(4, 16, 16), patch_size=(2, 8, 8), **towers),
            audio=WaveformTowerConfig(samples=128, patch_size=16, **towers),
            text=words,
            va_dim=12,
            vt_dim=8,
            shared=shared,
            spaces=spaces,
        )
    )


def task_of(shared=True, spaces="fac", **options):
    return VattTask(model(shared, spaces), num_candidates=P, **options).double().train()


def batch(size=8, *, video=True, audio=True, image=False, text=True, seed=0):
    """Of each modality True (all rows), False (no field), or the rows that have it."""
    g = torch.Generator().manual_seed(seed)
    drawn = {
        "video": torch.randint(0, 256, (size, 3, 4, 16, 16), generator=g, dtype=torch.uint8),
        "audio": torch.randn(size, 128, generator=g),
        "image": torch.randint(0, 256, (size, 3, 16, 16), generator=g, dtype=torch.uint8),
    }
    ids = torch.randint(1, 40, (size, P, 6), generator=g)
    fields = {}
    for name, rows in (("video", video), ("audio", audio), ("image", image)):
        if rows is not False:
            there = member(rows, size)
            fields[name] = drawn[name] * there.view(-1, *[1] * (drawn[name].ndim - 1))
            fields[f"{name}_mask"] = None if rows is True else there
    if text is not False:
        real = (torch.rand(size, P, generator=g) > 0.4) | (torch.arange(P) == 0)
        real &= member(text, size)[:, None]
        fields |= {"candidates": ids * real[..., None], "candidate_mask": real}
        fields["candidates_mask"] = real[..., None].repeat(1, 1, 6)
    keys = [f"{seed}-{i}" for i in range(size)]
    return Batch(keys=keys, group=torch.arange(size) // 2, position=seed * size, **fields)


def member(rows, size):
    return torch.ones(size, dtype=torch.bool) if rows is True else torch.isin(torch.arange(size), rows)


def rows(*numbers):
    return torch.tensor(numbers)


def stepped(task, given):
    """(metrics, gradients by name) of a forward and backward."""
    task.zero_grad()
    out = task(given)
    out["loss"].backward()
    return out, {n: None if p.grad is None else p.grad.clone() for n, p in task.named_parameters()}


@pytest.mark.parametrize("spaces", ["fac", "joint"])
@pytest.mark.parametrize("shared", [True, False])
def test_terms_are_the_losses_of_the_models_embeddings(shared, spaces):
    task = task_of(shared, spaces, keep_rate=1, audio_keep_rate=1, weights={"vt": 2, "va": 1, "at": 0.5})
    task.eval()
    given = batch()
    given.group = torch.arange(8)  # rows of one group are no rivals
    out = task(given)
    video, audio = task.model.encode_video(given.video), task.model.encode_audio(given.audio.double())
    text = task.model.encode_text(given.candidates.flatten(0, 1), given.candidates_mask.flatten(0, 1))
    texts = text["vt"].unflatten(0, (8, P))
    want = {
        "va": mil_nce_loss(video["va"], audio["va"][:, None]),
        "vt": mil_nce_loss(video["vt"], texts, candidates=given.candidate_mask),
        "at": mil_nce_loss(audio["vt"], texts, candidates=given.candidate_mask),
    }
    for term, value in want.items():
        torch.testing.assert_close(out[f"loss_{term}"], value, rtol=0, atol=1e-10)
    total = (2 * want["vt"] + want["va"] + 0.5 * want["at"]) / 3.5
    torch.testing.assert_close(out["loss"], total, rtol=0, atol=1e-10)
    scores = video["va"] @ audio["va"].T
    assert out["va_top1"] == (scores.argmax(1) == torch.arange(8)).double().mean()
    assert out["va_top1_audio"] == (scores.argmax(0) == torch.arange(8)).double().mean()
    assert {n for n in out if n.startswith("rows")} == {"rows_video", "rows_audio", "rows_text"}


def test_the_total_does_not_depend_on_what_a_batch_lacks():
    task = task_of()
    out = task(batch(audio=rows(), text=True))
    assert out["loss_va"] == 0
    assert out["rows_audio"] == 0
    torch.testing.assert_close(out["loss"], out["loss_vt"] / 2)


WEIGHTS = [
    dict.fromkeys(names, 1.0) for n in (1, 2, 3) for names in itertools.combinations(("va", "vt", "at"), n)
]


@pytest.mark.parametrize("spaces", ["fac", "joint"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: "+".join(w))
def test_every_parameter_gets_a_gradient_except_the_idle_ones(weights, shared, spaces):
    task = task_of(shared, spaces, weights=weights)
    frozen = freeze(task, [*((pattern, None) for pattern in task.idle()), (".*", 1.0)])
    assert not frozen.unused
    _, grads = stepped(task, batch())
    learns = set(frozen.trainable())
    assert {n for n, g in grads.items() if g is not None} == learns & set(grads)
    names = {n.split(".")[1] for n in learns}
    assert names >= {"spaces"}
    assert any(".core." in n for n in learns)


SETS = {
    "all": {},
    "no audio field": {"audio": False},
    "no row with audio": {"audio": rows()},
    "no text field": {"text": False},
    "no row with text": {"text": rows()},
    "pictures only": {"video": False, "audio": False, "image": True},
    "no visual side": {"video": False, "audio": True},
    "mixed": {"video": rows(0, 1, 2), "image": rows(2, 3, 4), "audio": rows(0, 4, 5), "text": rows(1, 2, 6)},
    "nothing": {"video": rows(), "audio": rows(), "text": rows()},
}


@pytest.mark.parametrize("given", SETS.values(), ids=SETS)
@pytest.mark.parametrize("shared", [True, False])
def test_the_same_parameters_are_touched_whatever_a_batch_lacks(given, shared):
    task = task_of(shared)
    out, grads = stepped(task, batch(**given))
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert all(value.isfinite() for value in out.values())
    if given.get("audio") is False:
        assert not any(
            g.any() for n, g in grads.items() if n.startswith("model.audio.") and ".core." not in n
        )


def test_rows_without_a_modality_change_nothing():
    """The same numbers with further rows that hold nothing, whatever lies in them."""
    task = task_of(weights={"va": 1, "vt": 1, "at": 1})
    few = batch(6)
    more = batch(8, video=rows(*range(6)), audio=rows(*range(6)), text=rows(*range(6)))
    for name in ("video", "audio", "candidates", "candidates_mask", "candidate_mask"):
        getattr(more, name)[:6] = getattr(few, name)
    more.candidate_mask[6:] = False
    more.audio[6:] = float("nan")
    (out, grads), (other, others) = stepped(task, few), stepped(task, more)
    for name in ("loss", "loss_va", "loss_vt", "loss_at", "va_top1", "vt_top1_text"):
        torch.testing.assert_close(other[name], out[name], rtol=0, atol=1e-10)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=0, atol=1e-10)


def test_a_picture_is_a_still_clip_and_a_clip_goes_before_it():
    task = task_of(keep_rate=1)
    given = batch(video=rows(0, 1, 2, 3), image=rows(3, 4, 5, 6, 7))
    video, *_ = task.embed(given)
    clips = task.model.video(given.video[:4])
    stills = task.model.video(given.image[4:, :, None].expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(video, torch.cat([clips, stills]), rtol=0, atol=1e-12)
    assert task(given)["rows_video"] == 1


def test_the_kept_tokens_depend_on_seed_position_and_key_only():
    kept = kept_tokens(["a", "b", "a"], "0:64:video", 20, 0.5)
    assert kept.shape == (3, 10)
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept, kept_tokens(["b", "a"], "0:64:video", 20, 0.5)[[1, 0, 1]])
    for other in ("0:64:audio", "0:128:video", "1:64:video"):
        assert not torch.equal(kept, kept_tokens(["a", "b", "a"], other, 20, 0.5))
    assert all(len(set(row.tolist())) == 10 and row.max() < 20 for row in kept)
    counts = torch.bincount(kept_tokens([str(i) for i in range(2000)], "x", 20, 0.25).flatten())
    assert counts.sum() == 2000 * 5
    assert (counts - 500).abs().max() < 100
    assert kept_tokens(["a"], "x", 3, 0.1).shape == (1, 1)


def test_dropping_is_repeatable_and_off_in_evaluation(monkeypatch):
    task, given = task_of(), batch()
    seen = []
    inner = type(task.model.video).tokens

    def tokens(self, x, keep=None, **more):
        seen.append(None if keep is None else tuple(keep.shape))
        return inner(self, x, keep, **more)

    monkeypatch.setattr(type(task.model.video), "tokens", tokens)
    first, second = task.embed(given), task.embed(given)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert seen[:2] == [(8, 4)] * 2 or (8, 4) in seen[:2]
    position, given.position = given.position, 8
    assert not torch.equal(task.embed(given)[0], first[0])
    given.position = position
    seen.clear()
    task.eval()
    out = task.embed(given)
    assert set(seen) == {None}
    task.train()
    task.keep_rates = {"video": 1.0, "audio": 1.0}
    for a, b in zip(task.embed(given), out, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_one_subset_for_the_whole_batch():
    task, given = task_of(shared_drop=True), batch(image=rows(7), video=rows(0, 1))
    given.video[1], given.keys = given.video[0], [*"abcdefgh"]
    video = task.embed(given)[0]
    assert torch.equal(video[0], video[1])
    assert not torch.equal(*task_of().embed(given)[0][:2])


@pytest.mark.parametrize("locked", ["video", "audio", "text"])
def test_a_locked_tower_takes_no_gradients_and_sees_all_tokens(locked):
    task = task_of(shared=False)
    freeze(task, [(rf"model\.{locked}\..*", None), (".*", 1.0)])
    task.train()
    given = batch()
    embeddings = dict(zip(task.modalities, task.embed(given), strict=True))
    assert {n for n, e in embeddings.items() if not e.requires_grad} == {locked}
    given.position += 8
    again = dict(zip(task.modalities, task.embed(given), strict=True))
    assert torch.equal(again[locked], embeddings[locked])
    _, grads = stepped(task, given)
    assert all((g is None) == n.startswith(f"model.{locked}.") for n, g in grads.items())


def test_a_frozen_table_of_words():
    task = task_of()
    freeze(task, [(r"model\.text\.tok_embed\..*", None), (".*", 1.0)])
    _, grads = stepped(task, batch())
    assert [n for n, g in grads.items() if g is None] == ["model.text.tok_embed.weight"]


def test_equal_groups_can_be_left_out():
    given = batch()
    out = [task_of(duplicates=mode)(given)["loss_va"] for mode in ("negative", "mask")]
    assert out[1] < out[0]
    given.group = torch.arange(8)
    torch.testing.assert_close(task_of(duplicates="mask")(given)["loss_va"], out[0])


def test_plain_captions_are_single_candidates():
    given = batch()
    one = Batch(keys=given.keys, video=given.video, audio=given.audio, position=given.position)
    one.text, one.text_mask = given.candidates[:, 0], given.candidates_mask[:, 0]
    given.candidate_mask = given.candidate_mask & (torch.arange(P) == 0)
    torch.testing.assert_close(task_of()(one)["loss"], task_of()(given)["loss"])


def test_a_caption_without_a_word_is_no_text():
    given = batch()
    one = Batch(keys=given.keys, video=given.video, audio=given.audio)
    one.text, one.text_mask = given.candidates[:, 0], given.candidates_mask[:, 0].clone()
    one.text_mask[2] = False
    given.candidate_mask = given.candidate_mask & (torch.arange(P) == 0)
    given.candidate_mask[2] = False
    assert task_of()(one)["rows_text"] == 7 / 8
    torch.testing.assert_close(task_of()(one)["loss_vt"], task_of()(given)["loss_vt"])


def test_more_and_fewer_texts_than_candidates():
    given = batch()
    wide = VattTask(model(), num_candidates=5).double()
    torch.testing.assert_close(wide(given)["loss_vt"], task_of()(given)["loss_vt"])
    two = VattTask(model(), num_candidates=2).double()
    cut = batch()
    cut.candidate_mask = cut.candidate_mask & (torch.arange(P) < 2)
    torch.testing.assert_close(two(given)["loss_vt"], task_of()(cut)["loss_vt"])


def engine_of(task, micro):
    frozen = freeze(task, [(".*", 1.0)])
    optimizer = torch.optim.SGD([{"params": list(task.parameters()), "peak": 0.1}], lr=0.1, weight_decay=0.0)

    class Sound:
        def check(self, step, out, batch, suspect):
            return {n: float(v) for n, v in out.items() if n != "finite"}

    accelerator = Accelerator(cpu=True)
    module = Trainable(task, frozen)
    return Engine(accelerator, task, module, optimizer, frozen, lambda t: 1.0, Sound(), 0.0, micro)


@pytest.mark.parametrize("given", ["all", "mixed", "no row with audio"])
@pytest.mark.parametrize("spaces", ["fac", "joint"])
def test_micro_batches_are_exact(given, spaces):
    """Norms over the batch, dropped tokens and negatives included."""
    runs = []
    for micro in (0, 3):
        task = task_of(spaces=spaces)
        engine = engine_of(task, micro)
        steps = [train_step(engine, batch(seed=s, **SETS[given])) for s in range(2)]
        runs.append((steps, task.state_dict()))
    for row, other in zip(runs[0][0], runs[1][0], strict=True):
        assert other == pytest.approx(row, abs=1e-9)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][name], value, rtol=0, atol=1e-9)


def test_what_the_step_asks_of_a_task():
    task, given = task_of(), batch()
    assert task.precompute(given) is given
    spaces = {id(p) for p in task.model.spaces.parameters()}
    assert {id(p) for p in task.loss_parameters()} == spaces
    assert task.chance(4) == pytest.approx(2.07944, abs=1e-5)
    assert task.after_step() is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = VattTask(model(), num_candidates=P).train()(given)
    assert out["loss"].dtype == torch.float32
    wide = F.normalize(task.embed(given)[0], dim=-1)
    assert wide.isfinite().all()


SILENT = FrameStemConfig(skip_silence=True)
WHOLE = {
    "stem leaves out silence by itself": {"stem": SILENT, "position": "sincos1d_whisper"},
    "core computes whole grids only": {
        "core": SwinConfig(width=16, num_heads=(2,), depths=(1,), window=2),
        "patch_size": 4,
        "patch_stride": (4, 4),
        "position": "none",
    },
}


@pytest.mark.parametrize("why", WHOLE)
def test_towers_that_cannot_drop_tokens_say_so(why):
    fields = {"core": CORE, "class_token": False, "position_resample": "crop", "pool": "mean"} | WHOLE[why]
    heard = AudioTowerConfig(spectrogram_size=(16, 8), **fields)
    whole = dataclasses.replace(model(shared=False).config, audio=heard)
    given = batch()
    given.audio = torch.randn(8, 16, 8) * (torch.arange(16) < 6)[:, None]
    message = f"the audio tower's {why}, and 0.5 .* set --loss.audio-keep-rate to 1"
    with pytest.raises(UserError, match=message):
        VattTask(Vatt(whole), num_candidates=P).train()(given)
    assert VattTask(Vatt(whole), num_candidates=P, audio_keep_rate=1).train()(given)["loss"].isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"av": 1}}, "weights name the terms va, vt, at, got 'av'"),
        ({"weights": {"va": 0}}, "at least 0 and one is above, got {'va': 0}"),
        ({"weights": {"va": 1, "vt": -1}}, "at least 0"),
        ({"weights": {"va": float("nan")}}, "at least 0"),
        ({"keep_rate": 0.0}, "keep_rate is the share of tokens that stay, above 0 to 1, got 0.0"),
        ({"audio_keep_rate": 1.5}, "audio_keep_rate is the share .* got 1.5"),
        ({"duplicates": "positive"}, "duplicates is 'negative' or 'mask', got 'positive'"),
        ({"num_candidates": 0}, "num_candidates is at least 1, got 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VattTask(model(), **options)
