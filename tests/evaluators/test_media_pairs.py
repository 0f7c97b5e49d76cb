"""Samples that lack modalities, several windows, pairs of modalities: known answers and slow counts."""

import itertools

import numpy as np
import pytest
import torch

from mmvit.errors import UserError
from mmvit.evaluators.embed import Embedded, captions_of, merge
from mmvit.evaluators.media import embed_media, having
from mmvit.evaluators.pairs import PairOf, pair_retrieval, parse_pairs, possible_pairs, space_of
from mmvit.evaluators.retrieval import direction_metrics, rank_chance
from mmvit.evaluators.samples import drawn
from mmvit.evaluators.table import blocks, comparison_table
from mmvit.types import Batch

SPACES = {"video": ("vt", "va"), "image": ("vt", "va"), "audio": ("vt", "va"), "text": ("vt",)}


def batch(first, rows, video=None, audio=None, views=0):
    """A batch whose sample i holds i in every value, with masks for what is missing."""
    values = torch.arange(first, first + rows, dtype=torch.float32)
    front = (rows, views) if views else (rows,)
    made = Batch(
        keys=[f"k{i}" for i in range(first, first + rows)],
        meta=[{"__index__": i, "label": f"l{i % 2}"} for i in range(first, first + rows)],
        captions=[f"text {i}" if i % 3 else "" for i in range(first, first + rows)],
    )
    made.video = values.reshape(-1, *[1] * (len(front) + 3)).expand(*front, 3, 3, 2, 2).clone()
    made.audio = values.reshape(-1, *[1] * len(front)).expand(*front, 5).clone()
    if views:  # the views of a sample differ by 10
        step = 10 * torch.arange(views)
        made.video += step.reshape(1, -1, 1, 1, 1, 1)
        made.audio += step.reshape(1, -1, 1)
    made.video_mask = None if video is None else torch.tensor(video)
    made.audio_mask = None if audio is None else torch.tensor(audio)
    return made


def two_numbers(x):
    """(n,…) -> the mean as a point on a line: what is averaged before normalising shows."""
    mean = x.flatten(1).mean(1)
    return {"vt": torch.stack([mean, torch.ones_like(mean)], 1), "features": mean[:, None]}


def test_rows_of_samples_that_lack_a_modality_are_zero_and_said():
    batches = [
        batch(0, 3, video=[True, False, True], audio=[False, False, False]),
        batch(3, 2, audio=[True, False]),
    ]
    seen = []
    found = embed_media(batches, {"video": two_numbers, "audio": two_numbers}, progress=seen.append)
    assert found.present["video"].tolist() == [True, False, True, True, True]
    assert found.present["audio"].tolist() == [False, False, False, True, False]
    length = lambda i: (i**2 + 1) ** 0.5  # noqa: E731
    expected = [[i / length(i), 1 / length(i)] for i in range(5)]
    expected[1] = [0, 0]
    torch.testing.assert_close(found.embeddings["video.vt"], torch.tensor(expected))
    assert found.embeddings["audio.vt"].abs().sum(1).nonzero()[:, 0].tolist() == [3]
    assert found.embeddings["video.features"].shape == (5, 1, 1)
    assert found.captions == [[], ["text 1"], ["text 2"], [], ["text 4"]]
    assert seen == [3, 2]
    assert having(found, "video", "text").tolist() == [False, False, True, False, True]
    with pytest.raises(UserError, match="none of the 5 samples has audio and text"):
        having(found, "audio", "text")
    assert drawn(found, 3).present["video"].shape == (3,)


def test_windows_are_averaged_before_they_are_normalised():
    found = embed_media([batch(0, 2, views=3)], {"video": two_numbers}, stacked=True, at_once=4)
    # views of sample 1: 1, 11, 21 -> the mean point (11, 1), not the mean of three directions
    torch.testing.assert_close(found.embeddings["video.vt"][1], torch.tensor([11.0, 1.0]) / 122**0.5)
    assert found.embeddings["video.features"][:, :, 0].tolist() == [[0, 10, 20], [1, 11, 21]]


def test_pictures_are_middle_frames():
    one = batch(0, 2)
    one.video[:, :, 1] += 100  # of three frames
    found = embed_media([one], {"image": two_numbers}, still=True)
    assert found.embeddings["image.features"][:, 0, 0].tolist() == [100, 101]


def test_batches_of_any_size_give_the_same():
    whole = embed_media([batch(0, 5)], {"video": two_numbers})
    parts = embed_media([batch(0, 2), batch(2, 1), batch(3, 2)], {"video": two_numbers}, at_once=1)
    torch.testing.assert_close(whole.embeddings, parts.embeddings)


def test_a_rank_without_any_sound_merges():
    deaf = embed_media([batch(3, 2, audio=[False, False])], {"audio": two_numbers})
    other = embed_media([batch(0, 3)], {"audio": two_numbers})
    assert "audio.vt" not in deaf.embeddings
    assert merge([other, Embedded(torch.zeros(0), [], {}, [], [], {"bad": 2})]).skipped == {"bad": 2}
    whole = merge([deaf, other])
    assert whole.keys == ["k0", "k1", "k2", "k3", "k4"]
    assert whole.present["audio"].tolist() == [True, True, True, False, False]
    assert torch.equal(whole.embeddings["audio.vt"][:3], other.embeddings["audio.vt"])
    assert not whole.embeddings["audio.vt"][3:].any()


def test_captions_with_times_are_not_taken_for_texts():
    one = batch(1, 1)
    one.meta[0]["captions"] = [{"t": 0.5, "text": "said"}]
    assert captions_of(one) == [["text 1"]]
    one.meta[0]["captions"] = ["a", "b"]
    assert captions_of(one) == [["a", "b"]]


def samples(n=6):
    """n samples with equal embeddings on both sides: everything finds its own."""
    rows = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return Embedded(
        torch.arange(n),
        [f"k{i}" for i in range(n)],
        {"audio.va": rows, "video.va": 2 * rows, "video.vt": rows},
        [[f"text {i}"] for i in range(n)],
        [{"label": f"l{i % 2}"} for i in range(n)],
        present={"audio": torch.arange(n) != 1},
    )


def test_pairs_find_their_own_and_leave_out_who_lacks_a_side():
    found = pair_retrieval(samples(), PairOf("audio", "video", "sample"), "va")
    assert (found.n, found.rows) == (5, (5, 5))
    for side in ("audio", "video"):
        assert found.metrics[f"{side}_retrieval_recall@1"] == 1
        assert found.metrics[f"{side}_retrieval_median_rank"] == 1
        assert found.metrics[f"{side}_retrieval_chance@1"] == pytest.approx(1 / 5, rel=1e-12)
        assert found.metrics[f"{side}_retrieval_chance_mean_rank"] == 3
    texts = {f"text {i}": samples().embeddings["video.vt"][i] for i in range(6)}
    words = pair_retrieval(
        samples(),
        PairOf("video", "text", "text"),
        "vt",
        encode=lambda asked: torch.stack([texts[text] for text in asked]),
    )
    assert (words.n, words.metrics["text_retrieval_recall@1"]) == (6, 1)
    label = pair_retrieval(samples(), PairOf("audio", "video", "label"), "va", distinct=["audio"])
    assert label.rows == (2, 5)
    assert found.shared == {"audio": 0, "video": 0}
    twins = samples()
    twins.embeddings["audio.va"][[2, 3, 4]] = twins.embeddings["audio.va"][
        0
    ].clone()  # 0, 2, 4 are l0, 3 is l1
    assert pair_retrieval(twins, PairOf("audio", "video", "label"), "va").shared == {"audio": 4, "video": 0}
    twins.embeddings["audio.va"][3] = -twins.embeddings["audio.va"][0]
    assert pair_retrieval(twins, PairOf("audio", "video", "label"), "va").shared == {"audio": 0, "video": 0}
    near = pair_retrieval(samples(), PairOf("audio", "video", "sample"), "va", index="flat")
    assert near.approximate == {}


def test_pairs_and_spaces_are_chosen():
    names = [pair.name for pair in possible_pairs(SPACES, ("video", "audio", "text"), "text")]
    assert names == ["audio-video", "video-text", "audio-text"]
    names = [pair.name for pair in possible_pairs(SPACES, ("image", "audio", "video", "text"), "text")]
    assert names == ["audio-video", "video-image", "video-text", "audio-image", "audio-text", "image-text"]
    assert possible_pairs({"video": ("",)}, ("video", "text"), "text") == []
    pairs = parse_pairs("audio-video:label, video-text", "text")
    assert [(pair.name, pair.group_by) for pair in pairs] == [
        ("audio-video", "label"),
        ("video-text", "text"),
    ]
    assert [space_of(pair, SPACES) for pair in pairs] == ["va", "vt"]
    assert space_of(pairs[0], SPACES, "vt") == "vt"
    assert space_of(PairOf("image", "text", "text"), {"image": ("",), "text": ("",)}) == ""
    with pytest.raises(ValueError, match="valid: vt"):
        space_of(pairs[1], SPACES, "va")
    with pytest.raises(ValueError, match="the model has no audio"):
        space_of(pairs[0], {"video": ("vt",)})
    for words in ("audio", "audio-audio", "a-b-c", ""):
        with pytest.raises(ValueError, match="expected two modalities"):
            parse_pairs(words, "text")
    with pytest.raises(ValueError, match="did you mean audio"):
        parse_pairs("adio-video", "text")


@pytest.mark.parametrize("positives", [1, 2, 3])
def test_chance_of_ranks_is_the_mean_over_all_orders(positives):
    pool = 7
    best = [min(places) + 1 for places in itertools.combinations(range(pool), positives)]
    group_c = torch.tensor([0] * positives + list(range(1, pool - positives + 1)))
    found = rank_chance(torch.tensor([0]), group_c)
    assert found["chance_mean_rank"] == pytest.approx(np.mean(best))
    assert found["chance_median_rank"] == np.quantile(best, 0.5, method="inverted_cdf")


@pytest.mark.parametrize("pool", [12, 144, 204, 297, 300, 1000])
def test_half_of_an_even_pool_is_half_whatever_the_rounding(pool):
    found = rank_chance(torch.arange(3), torch.arange(pool))
    assert found["chance_median_rank"] == (pool + 1) // 2


def test_chance_of_ranks_mixes_queries_and_leaves_out_those_without_an_answer():
    group_q, group_c = torch.tensor([0, 0, 1, 9]), torch.tensor([0, 1, 1, 1, 2, 3])
    found = rank_chance(group_q, group_c)
    assert found["chance_mean_rank"] == pytest.approx((7 / 2 + 7 / 2 + 7 / 4) / 3)
    g = torch.Generator().manual_seed(0)
    ranks = [
        direction_metrics(torch.randn(4, 5, generator=g), torch.randn(6, 5, generator=g), group_q, group_c)
        for _ in range(400)
    ]
    assert np.mean([m["mean_rank"] for m in ranks]) == pytest.approx(found["chance_mean_rank"], abs=0.25)


def result(task, metrics, **more):
    base = {"model": "runs/a/model", "dataset": "corpus", "split": "test", "n": 9}
    return base | {"task": task, "metrics": metrics} | more


def test_every_pair_and_every_field_has_its_own_block():
    ranks = {"audio_retrieval_recall@1": 0.5, "audio_retrieval_median_rank": 3.0}
    lucky = {"audio_retrieval_chance@1": 0.125, "audio_retrieval_chance_median_rank": 4.0}
    by_motion = {"modality": "video", "label": "motion"}
    pictures = {"image_retrieval_recall@1": 0.1, "image_retrieval_n": 9}
    results = [
        result("zero_shot_retrieval", ranks | lucky, pair="audio-video"),
        result("zero_shot_classification", {"acc1": 0.25, "classes": 12}, **by_motion),
        result("linear_probe", {"acc1": 0.75, "classes": 12, "majority_acc1": 0.1}, **by_motion),
        result("zero_shot_retrieval", pictures, pair="image-text"),
    ]
    other = result("zero_shot_retrieval", {"audio_retrieval_median_rank": 2.0}, pair="audio-video")
    found = blocks([*results, other | {"model": "runs/b/model"}])
    assert [block.split for block in found] == [
        "corpus test · audio-video",
        "corpus test · video by motion",
        "corpus test",
    ]
    assert found[0].best()[3] == 2.0  # of ranks the smallest
    lines = comparison_table(results, terminal=False).split("\n")
    assert lines[1].split() == ["│", "video", "→", "audio"]
    assert lines[3].split() == ["a", "│", "50.0", "3.0"]
    assert lines[4].split() == ["chance", "│", "12.5", "4.0"]
    assert lines[6] == "corpus test · video by motion: 9 samples, 12 classes; percent"
    assert lines[9].split() == ["a", "│", "25.0", "│", "75.0"]
    assert lines[10].split() == ["chance", "│", "–", "│", "10.0"]
    labels = ("label", "motion", "color")
    for modality in ({"modality": "video"}, {}):  # pictures go without a word
        named = [
            result("zero_shot_classification", {"acc1": i / 4, "classes": 4}, label=label, **modality)
            for i, label in enumerate(labels)
        ]
        assert [block.rows[0][1][0] for block in blocks(named)] == [0, 25, 50]
