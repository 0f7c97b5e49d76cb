"""The evaluation programs on clips and sounds, against the API and arithmetic; mistakes are one line."""

import json

import pytest
import torch
from PIL import Image

import mmvit
from mmvit.cli.kept import kept_file
from mmvit.data.shards import ShardIndex
from mmvit.data.write import ShardWriter
from mmvit.evaluators import vatt as while_training
from tests.eval.media_case import MOTIONS, PREPROCESS, THINGS, clip, tone


def read_everything(clips):
    index = ShardIndex.open(str(clips))
    return [index.read(i) for i in range(index.samples)]


def recall(score, right, k):
    top = score.topk(k).indices
    return right.gather(1, top).any(1).double().mean().item()


@pytest.fixture
def measured(program, vatt, clips, tmp_path):
    """measured("retrieval", …) -> (result objects by pair or one, stdout)."""

    def run(name, *options, data=clips):
        out = tmp_path / f"{name}.json"
        code, stdout, stderr = program(
            f"eval/{name}.py", "--model", vatt, "--data", data, "--out", out, *options
        )
        assert code == 0, stderr
        found = json.loads(out.read_text())
        return ({one["pair"]: one for one in found} if isinstance(found, list) else found), stdout

    return run


def test_every_pair_equals_the_api(measured, vatt, clips):
    found, stdout = measured("retrieval", "--group-by", "sample")
    assert list(found) == ["audio-video", "video-text", "audio-text"]
    assert "audio → video" in stdout
    assert "MedR" in stdout
    assert "audio-video: 11 of 11 rows of audio equal one of another group, and ties" in stdout
    m, raws = mmvit.load(vatt), read_everything(clips)
    ears, words = [r for r in raws if "wav" in r], [r for r in raws if "txt" in r]
    both = [r for r in ears if "txt" in r]
    sides = {
        "audio-video": (ears, "va", {"audio": [r["wav"] for r in ears], "video": [r["mp4"] for r in ears]}),
        "video-text": (words, "vt", {"video": [r["mp4"] for r in words], "text": captions(words)}),
        "audio-text": (both, "vt", {"audio": [r["wav"] for r in both], "text": captions(both)}),
    }
    assert [len(rows) for rows, _, _ in sides.values()] == [11, 11, 10]
    for pair, (rows, space, inputs) in sides.items():
        (a, xs), (b, ys) = inputs.items()
        score = m.encode(**{b: ys}, space=space) @ m.encode(**{a: xs}, space=space).T
        metrics, protocol = found[pair]["metrics"], found[pair]["protocol"]
        assert (found[pair]["n"], protocol["space"], protocol["group_by"]) == (len(rows), space, "sample")
        if "audio" in inputs:  # three clips share a tone: its sounds tie, and ties count against the model
            assert metrics["audio_retrieval_recall@1"] <= 2 / len(rows)
            continue
        right = torch.eye(len(rows), dtype=torch.bool)
        assert metrics["video_retrieval_recall@5"] == pytest.approx(recall(score, right, 5))
        assert metrics["text_retrieval_recall@1"] == pytest.approx(recall(score.T, right, 1))
        assert metrics["text_retrieval_chance@5"] == pytest.approx(5 / 11)
        assert metrics["text_retrieval_chance_mean_rank"] == pytest.approx(6)


def captions(raws):
    return [raw["txt"].decode() for raw in raws]


def test_groups_of_a_pair_and_one_row_of_each(measured, vatt, clips):
    found, _ = measured("retrieval", "--pairs", "audio-video:label,video-text", "--distinct", "audio")
    m, raws = mmvit.load(vatt), [r for r in read_everything(clips) if "wav" in r]
    labels = [json.loads(r["json"])["label"] for r in raws]
    first = [labels.index(name) for name in dict.fromkeys(labels)]
    video = m.encode(video=[r["mp4"] for r in raws], space="va")
    audio = m.encode(audio=[raws[i]["wav"] for i in first], space="va")
    right = torch.tensor([[labels[i] == label for label in labels] for i in first])
    one = found["audio-video"]
    assert one["protocol"]["rows"] == {"audio": 4, "video": 11}
    assert one["metrics"]["video_retrieval_recall@1"] == pytest.approx(recall(audio @ video.T, right, 1))
    assert one["metrics"]["audio_retrieval_recall@1"] == pytest.approx(recall(video @ audio.T, right.T, 1))
    assert one["metrics"]["audio_retrieval_chance@1"] == pytest.approx(1 / 4)
    assert one["metrics"]["video_retrieval_chance@1"] == pytest.approx((3 + 3 + 2 + 3) / 4 / 11)
    assert found["video-text"]["protocol"]["group_by"] == "text"


def test_windows_are_averaged_as_the_api_does(measured, vatt, clips):
    one, _ = measured("retrieval", "--pairs", "video-text", "--views", "3")
    m, raws = mmvit.load(vatt), [r for r in read_everything(clips) if "txt" in r]
    right = torch.eye(11, dtype=torch.bool)
    scores = {
        views: m.encode(text=captions(raws)) @ m.encode(video=[r["mp4"] for r in raws], views=views).T
        for views in (1, 3)
    }
    assert not torch.allclose(scores[1], scores[3], atol=1e-3)
    for k in (1, 5):
        assert one["metrics"][f"video_retrieval_recall@{k}"] == pytest.approx(recall(scores[3], right, k))


def test_pictures_are_middle_frames_where_there_are_no_others(measured, vatt, clips):
    found, _ = measured("retrieval", "--pairs", "image-text,audio-image:label", "--group-by", "sample")
    m, raws = mmvit.load(vatt), [r for r in read_everything(clips) if "txt" in r]
    frames = [PREPROCESS.video(r["mp4"])[:, 2].permute(1, 2, 0).numpy() for r in raws]
    score = m.encode(text=captions(raws)) @ m.encode(image=[Image.fromarray(f) for f in frames]).T
    metrics = found["image-text"]["metrics"]
    right = torch.eye(11, dtype=torch.bool)
    assert metrics["image_retrieval_recall@5"] == pytest.approx(recall(score, right, 5))
    assert found["audio-image"]["n"] == 11
    assert found["audio-image"]["protocol"]["space"] == "va"


def test_kept_rows_change_nothing_and_spare_the_towers(measured, tmp_path, monkeypatch):
    options = ["--pairs", "audio-video:label,audio-text:label", "--cache", tmp_path / "kept"]
    plain, _ = measured("retrieval", *options)
    monkeypatch.setattr("mmvit.cli.media.embed_media", lambda *_, **__: pytest.fail("embedded again"))
    again, _ = measured("retrieval", *options)
    assert [one["metrics"] for one in again.values()] == [one["metrics"] for one in plain.values()]
    monkeypatch.undo()
    other, _ = measured("retrieval", *options, "--views", "2")
    assert other["audio-video"]["metrics"] != plain["audio-video"]["metrics"]


def test_sounds_of_one_length_are_not_taken_for_each_other(tmp_path):
    kept = []
    for split, hz in (("test_a", 300), ("test_b", 900)):
        writer = ShardWriter(tmp_path / split / "sounds", samples_per_shard=5)
        writer.write("one", {"wav": tone(hz)})
        writer.finish()
        (shard,) = ShardIndex.open(str(tmp_path / split)).shards
        kept.append((shard.bytes, kept_file(tmp_path, str(tmp_path / split), "model", "fp32")))
    assert kept[0][0] == kept[1][0], "names and sizes do not tell them apart"
    assert kept[0][1] != kept[1][1]


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """Three clips without sound, one of them without a caption."""
    folder = tmp_path_factory.mktemp("silent") / "test_silent"
    writer = ShardWriter(folder / "clips", samples_per_shard=5)
    for number, motion in enumerate(MOTIONS):
        members = {"mp4": clip((220, 30, 30), motion), "json": {"label": "red", "motion": motion}}
        writer.write(motion, members | ({"txt": f"red {motion}"} if number else {}))
    writer.finish()
    return folder


def test_clips_that_turn_out_to_be_silent_are_still_found_by_words(measured, vatt, silent):
    found, stdout = measured("retrieval", data=silent)
    assert (found["pair"], found["n"]) == ("video-text", 2)
    assert "audio" not in stdout
    m = mmvit.load(vatt)
    recalls = while_training.recall_of_pairs(m.model, m.tokenizer, str(silent), preprocess=PREPROCESS)
    assert {name.split("_")[0] for name in recalls} == {"video-text", "text-video"}


def test_recall_while_training_is_that_of_the_program(measured, vatt, clips, monkeypatch):
    monkeypatch.setattr(while_training, "_TEXTS", 4)  # texts go through the tower in parts
    found, _ = measured("retrieval", "--dedup-captions")
    m = mmvit.load(vatt)
    recalls = while_training.recall_of_pairs(m.model, m.tokenizer, str(clips), preprocess=PREPROCESS)
    words = found["video-text"]["metrics"]
    for k in (1, 5):
        assert recalls[f"text-video_recall@{k}"] == pytest.approx(words[f"video_retrieval_recall@{k}"])
        assert recalls[f"video-text_recall@{k}"] == pytest.approx(words[f"text_retrieval_recall@{k}"])


def test_a_clip_without_a_caption_is_alone_in_its_group(measured):
    named, _ = measured("zero_shot", "--label", "motion", "--interval", "text")
    assert (named["acc1_interval"]["groups"], named["n"]) == (12, 12)
    probed, _ = measured("probe", "--label", "motion", "--group-by", "text", "--folds", "3")
    assert (probed["protocol"]["groups"], probed["protocol"]["groups_split"]) == (12, 0)


def test_motions_are_named_as_the_api_names_them(measured, vatt, clips):
    options = ["--label", "motion", "--templates", "motion", "--interval", "label"]
    found, stdout = measured("zero_shot", *options)
    assert "video by motion" in stdout
    m, raws = mmvit.load(vatt), read_everything(clips)
    classes = sorted(MOTIONS)
    bank = mmvit.ZeroShotClassifier(m, classes, ["{}", "something {}", "a thing {}"])
    truth = torch.tensor([classes.index(json.loads(r["json"])["motion"]) for r in raws])
    right = bank.logits([r["mp4"] for r in raws], modality="video").argmax(1) == truth
    metrics = found["metrics"]
    assert metrics["acc1"] == pytest.approx(right.double().mean().item())
    assert metrics["chance_acc1"] == pytest.approx(1 / 3)
    assert metrics["mean_per_class_recall"] == pytest.approx(metrics["acc1"])
    assert {name: row["n"] for name, row in found["per_class"].items()} == dict.fromkeys(classes, 4)
    for number, name in enumerate(classes):
        share = right[truth == number].double().mean().item()
        assert found["per_class"][name]["recall"] == pytest.approx(share)
    spread = found["acc1_interval"]
    assert (spread["groups"], spread["by"]) == (4, "label")
    assert 0 <= spread["low"] <= metrics["acc1"] <= spread["high"] <= 1
    assert (found["modality"], found["space"], found["n"]) == ("video", "vt", 12)


def test_sounds_are_named_and_the_silent_clip_is_left_out(measured):
    found, _ = measured("zero_shot", "--modality", "audio", "--templates", "sound")
    assert (found["n"], found["metrics"]["classes"]) == (11, 4)
    assert found["per_class"]["blue"]["n"] == 2


def test_a_probe_hears_tones_and_folds_keep_things_apart(measured):
    sounds, stdout = measured("probe", "--modality", "audio", "--folds", "3")
    assert sounds["metrics"]["acc1"] == 1  # four tones, each three times over
    assert sounds["metrics"]["folds"] == 3
    assert "audio by label" in stdout
    motions, _ = measured("probe", "--label", "motion", "--group-by", "label", "--folds", "4")
    assert motions["modality"] == "video"
    assert motions["protocol"]["groups_split"] == 0
    assert motions["metrics"]["chance_acc1"] == pytest.approx(1 / 3)
    assert motions["metrics"]["n"] == 12


def test_a_probe_leaves_out_labels_that_few_samples_have(measured, clips):
    found, _ = measured("probe", "--modality", "audio", "--folds", "9", "--min-samples", "3")
    assert set(found["per_class"]) == set(THINGS) - {"blue"}  # one of its three clips is silent
    assert (found["n"], found["protocol"]["labels_left_out"]) == (9, 1)
    several, _ = measured("probe", "--train", clips, "--label", "tags", "--min-samples", "4")
    assert (several["metrics"]["classes"], several["n"]) == (3, 12)  # motions, each of four things
    assert several["protocol"]["labels_left_out"] == 4
    everything, _ = measured("probe", "--folds", "3")
    assert everything["protocol"]["labels_left_out"] == 0


def test_a_probe_from_training_to_test_shards(measured, clips):
    found, _ = measured("probe", "--train", clips, "--views", "2", "--crops", "3", "--agg", "probs")
    assert found["metrics"]["acc1"] == 1
    assert found["metrics"]["majority_acc1"] == pytest.approx(1 / 4)
    assert set(found["per_class"]) == set(THINGS)
    low_rank, _ = measured("probe", "--train", clips, "--head", "low_rank")
    assert low_rank["metrics"]["acc1"] == 1
    several, stdout = measured("probe", "--train", clips, "--label", "tags")
    assert several["metrics"]["classes"] == 7
    assert several["metrics"]["map"] > several["metrics"]["chance_map"]
    assert "mAP" in stdout


def test_report_shows_the_blocks(measured, program, vatt, tmp_path):
    found, _ = measured("retrieval", "--pairs", "audio-video:label,video-text")
    named, _ = measured("zero_shot", "--label", "motion")
    results = tmp_path / "all.json"
    results.write_text(json.dumps([*found.values(), named]))
    run = vatt.parent
    code, _, stderr = program(
        "eval/report.py", "--runs", run, "--results", results, "--out", tmp_path / "r.html"
    )
    assert code == 0, stderr
    page = (tmp_path / "r.html").read_text()
    for text in ("test_clips · audio-video", "test_clips · video by motion", "video → audio", "MedR"):
        assert text in page


MISTAKES = {
    "no such pair": ("retrieval", ["--pairs", "audio-vidoe"], "did you mean video"),
    "no pair": ("retrieval", ["--pairs", "audio"], "expected two modalities"),
    "one side twice": ("retrieval", ["--pairs", "audio-audio"], "expected two modalities"),
    "no such space": ("retrieval", ["--pairs", "video-text", "--space", "va"], "valid: vt"),
    "no such field": ("retrieval", ["--pairs", "audio-video:colour"], "field 'colour'"),
    "several captions": ("retrieval", ["--captions", "all", "--group-by", "colour"], "field 'colour'"),
    "bad factory": ("retrieval", ["--pairs", "video-text", "--index", "IVFx"], "IVFx"),
    "bad views": ("retrieval", ["--views", "0"], "views=0"),
    "no such label": ("zero_shot", ["--label", "colour"], "field 'colour'"),
    "label and group": ("probe", ["--group-by", "label", "--folds", "4"], "never in training"),
    "every label is rare": ("probe", ["--min-samples", "4"], "no sample has a 'label' that 4 have"),
    "too many folds": ("probe", ["--folds", "40"], "40 folds of 12 groups"),
    "folds not stated": ("probe", ["--folds", "fold"], "have none"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(program, vatt, clips, tmp_path, mistake):
    name, options, said = MISTAKES[mistake]
    code, _, stderr = program(
        f"eval/{name}.py", "--model", vatt, "--data", clips, "--out", tmp_path / "o.json", *options
    )
    assert code == 2
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in stderr


def test_pictures_only_and_towers_that_read_no_words(program, model, shards, vatt, clips, tmp_path):
    out = ["--out", tmp_path / "o.json"]
    code, _, stderr = program("eval/retrieval.py", "--model", model, "--data", clips, *out)
    assert (code, "has no image" in stderr) == (2, True)
    code, _, stderr = program(
        "eval/retrieval.py", "--model", vatt, "--data", shards, "--pairs", "audio-video", *out
    )
    assert code == 2
    assert "no audio or video that both have" in stderr
    code, stdout, stderr = program("eval/retrieval.py", "--model", vatt, "--data", shards, *out)
    assert code == 0, stderr
    assert "text → image" in stdout  # in the columns of image-text pairs
    words = ["--model", model, "--data", clips, "--modality", "image"]
    code, _, stderr = program("eval/probe.py", *words, *out)
    assert (code, "no image that both have" in stderr) == (2, True)
    code, _, stderr = program("eval/probe.py", "--model", model, "--data", shards, *out)
    assert code == 0, stderr
