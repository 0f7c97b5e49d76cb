"""Video, sound and words through the loaders: masks, mixtures, candidates; the same whoever computes."""

import json

import numpy as np
import pytest
import torch

from mmvit.data.audio import AudioAugment, AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.loader import make_loader, read_all
from mmvit.data.video import ClipAugment, VideoPreprocess
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError

CLIP = ClipPreprocess(
    video=VideoPreprocess(size=(16, 16), frames=4, fps=4),
    audio=AudioPreprocess(sample_rate=8000, samples=8000),
)
ALL = ("video", "audio", "image", "candidates")
OPTIONAL = {"fields": ALL, "optional": ALL, "clip": CLIP}


@pytest.fixture(scope="module")
def sources(tmp_path_factory, movie, sound_bytes, picture, image_bytes) -> dict[str, str]:
    """Folders: clips (video, sound, words), mute (video, words), sounds, stills, talks (captions in time)."""
    root = tmp_path_factory.mktemp("media")
    folders = {}

    def write(name, samples):
        with ShardWriter(root / name / name, 5) as writer:
            for i, members in enumerate(samples):
                writer.write(f"{name}{i:03d}", members)
        folders[name] = str(root / name)

    def wave(i):
        return np.full(16_000, (i + 1) / 20, np.float32)

    def video(i, sound=True):
        heard = {"sound": wave(i), "rate": 8000, "sound_codec": "pcm_s16le"} if sound else {}
        return movie([10 * i + 20] * 20, form="matroska", **heard)

    write("clips", [{"mkv": video(i), "txt": f"clip {i}"} for i in range(9)])
    write("mute", [{"mkv": video(i, False), "txt": f"mute {i}"} for i in range(4)])
    write("sounds", [{"wav": sound_bytes(wave(i), 8000), "txt": f"sound {i}"} for i in range(7)])
    write("stills", [{"png": image_bytes(picture(20, 20, i))} for i in range(6)])  # without words
    said = [{"t": t, "text": f"said at {t}"} for t in range(0, 20, 2)]
    talk = {"start": 6.0, "end": 8.0, "captions": said}
    write("talks", [{"mkv": video(i), "json": talk} for i in range(3)])
    return folders


def same(a, b) -> None:
    for name in ("video", "video_mask", "audio", "audio_mask", "image", "candidates", "candidate_mask"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        assert left is None or torch.equal(left, right), name
    assert a.keys == b.keys
    assert a.position == b.position


def test_every_field_of_a_clip(sources, sentencepiece):
    with read_all(sources["clips"], batch_size=9, fields=("video", "audio", "text", "meta"), clip=CLIP,
                  tokenizer=sentencepiece) as loader:  # fmt: skip
        batch = next(iter(loader))
    assert batch.video.shape == (9, 3, 4, 16, 16)
    assert batch.audio.shape == (9, 8000)
    assert batch.video_mask is batch.audio_mask is None  # all have them
    for i, key in enumerate(batch.keys):
        number = int(key[-3:])
        assert batch.video[i].float().mean().item() == pytest.approx(10 * number + 20, abs=2)
        assert batch.audio[i].mean().item() == pytest.approx((number + 1) / 20, abs=1e-3)
        assert batch.captions[i] == f"clip {number}"
        assert batch.meta[i]["clip"] == {"start": 0.5, "seconds": 1.0, "total": 2.0}


def test_views_stand_in_front(sources):
    with read_all(
        sources["clips"], batch_size=2, fields=("video", "audio"), clip=CLIP, views=4, crops=3
    ) as loader:
        batch = next(iter(loader))
    assert batch.video.shape == (2, 12, 3, 4, 16, 16)
    assert batch.audio.shape == (2, 4, 8000)


def test_a_mixture_of_unlike_sources(sources, sentencepiece):
    urls = "::".join(sources[name] for name in ("clips", "sounds", "stills"))
    run = {"batch_size": 8, "weights": (2, 1, 1), "num_batches": 6, "num_candidates": 3, **OPTIONAL}
    with make_loader(urls, tokenizer=sentencepiece, **run) as loader:
        batches = list(loader)
        assert not loader.skipped
    for batch in batches:
        kinds = [key.rstrip("0123456789") for key in batch.keys]
        assert batch.video_mask.tolist() == [k == "clips" for k in kinds]
        assert batch.audio_mask.tolist() == [k in ("clips", "sounds") for k in kinds]
        assert batch.image_mask.tolist() == [k == "stills" for k in kinds]
        assert batch.candidate_mask.tolist() == [[k != "stills", False, False] for k in kinds]
        assert batch.candidates.shape == (8, 3, sentencepiece.context_length)
        assert batch.candidates_mask.any(dim=2).equal(batch.candidate_mask)
        assert not batch.video[~batch.video_mask].any()
        assert not batch.audio[~batch.audio_mask].any()
        assert not batch.image[~batch.image_mask].any()
        assert batch.text is None
        assert kinds.count("clips") == 4
        for key, mask, ids in zip(
            batch.keys, batch.candidates_mask[:, 0], batch.candidates[:, 0], strict=True
        ):
            name, number = key.rstrip("0123456789").rstrip("s"), int(key[-3:])
            words = sentencepiece([f"{name} {number}"])
            assert ids[mask].tolist() == ([] if name == "still" else words.ids[words.mask].tolist())


def test_shapes_do_not_depend_on_what_a_batch_holds(sources, sentencepiece):
    """Also a batch of stills only has video and sound, all masked: ranks must agree on what they compute."""
    urls = f"{sources['clips']}::{sources['stills']}"
    run = {"batch_size": 4, "weights": (1, 1), "pure_batches": True, "num_batches": 4, **OPTIONAL}
    with make_loader(urls, tokenizer=sentencepiece, **run) as loader:
        batches = list(loader)
    assert {batch.video.shape for batch in batches} == {(4, 3, 4, 16, 16)}
    assert {batch.audio.shape for batch in batches} == {(4, 8000)}
    assert {batch.image.shape for batch in batches} == {(4, 3, 16, 16)}
    assert sorted(int(batch.video_mask.sum()) for batch in batches) == [0, 0, 4, 4]


def test_fields_that_no_source_has_are_left_out(sources, sentencepiece, caplog):
    with make_loader(
        sources["sounds"], batch_size=4, tokenizer=sentencepiece, num_batches=1, **OPTIONAL
    ) as loader:
        batch = next(iter(loader))
    assert batch.video is batch.video_mask is batch.image is None
    assert batch.audio_mask.all()
    assert "no source has video" in caplog.text


def test_required_and_missing(sources):
    both = f"{sources['clips']}::{sources['mute']}"
    options = {"batch_size": 20, "fields": ("video", "audio"), "clip": CLIP}
    with read_all(both, **options) as loader:
        assert len(next(iter(loader))) == 9
        assert loader.skipped == {"audio-missing": 4}
    with read_all(both, **options, optional=("audio",)) as loader:
        batch = next(iter(loader))
    assert batch.audio_mask.sum() == 9
    assert batch.video_mask is None
    with pytest.raises(UserError, match="has no video"):
        read_all(sources["sounds"], batch_size=2, fields=("video", "audio"), clip=CLIP)
    with pytest.raises(UserError, match="needs clip=ClipPreprocess"):
        read_all(sources["clips"], batch_size=2, fields=("video",))
    with pytest.raises(UserError, match="needs a preprocessing of video"):
        read_all(sources["clips"], batch_size=2, fields=("video",), clip=ClipPreprocess(audio=CLIP.audio))
    with pytest.raises(UserError, match="optional field 'imge': did you mean image"):
        make_loader(sources["clips"], batch_size=2, fields=("image",), optional=("imge",))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_batches_for_any_workers_ranks_and_restart(sources, sentencepiece, workers):
    urls = f"{sources['clips']}::{sources['sounds']}"
    run = {"weights": (1, 1), "tokenizer": sentencepiece, "seed": 3, "batch_size": 6, **OPTIONAL,
           "clip_augment": ClipAugment(), "audio_augment": AudioAugment()}  # fmt: skip
    with make_loader(urls, num_batches=5, **run) as loader:
        alone = list(loader)
    with make_loader(urls, num_batches=5, workers=workers, **run) as loader:
        for a, b in zip(alone, loader, strict=True):
            same(a, b)
    with make_loader(urls, num_batches=2, start_position=alone[3].position, **run) as loader:
        for a, b in zip(alone[3:], loader, strict=True):
            same(a, b)
    for rank in range(2):
        with make_loader(urls, num_batches=3, rank=rank, world_size=2, **run) as loader:
            for a, b in zip(alone, loader, strict=False):
                same(a.rows(3 * rank, 3 * rank + 3), b)


def test_windows_are_drawn_anew_each_epoch(tmp_path, movie):
    with ShardWriter(tmp_path / "long" / "a", 5) as writer:
        writer.write("k", {"mp4": movie([5 * i for i in range(50)])})  # 5 seconds, one of them seen
    with make_loader(
        str(tmp_path / "long"), batch_size=1, fields=("video",), clip=CLIP, num_batches=8
    ) as loader:
        starts = {round(batch.video[0, 0, 0].float().mean().item() / 50, 1) for batch in loader}
    assert len(starts) > 4
    assert max(starts) <= 4.1


def test_candidates_are_the_captions_near_the_window(sources, sentencepiece):
    """The sample's second 0 is the source's second 6; its middle second is 7."""
    options = {
        "batch_size": 3,
        "fields": ("video", "candidates", "meta"),
        "clip": CLIP,
        "tokenizer": sentencepiece,
    }
    with read_all(sources["talks"], num_candidates=4, **options) as loader:
        batch = next(iter(loader))
    expected = ["said at 6", "said at 8", "said at 4", "said at 10"]
    assert torch.equal(batch.candidates[0], sentencepiece(expected).ids)
    assert batch.candidate_mask.all()
    assert batch.captions[0] == "said at 6"
    with read_all(sources["talks"], num_candidates=12, **options) as loader:
        batch = next(iter(loader))
    assert batch.candidate_mask.sum(dim=1).tolist() == [10] * 3
    assert not batch.candidates_mask[:, 10:].any()


def test_candidates_of_other_samples(tmp_path, movie, sentencepiece):
    talk = [
        {"start": 0.0, "end": 1.0, "text": "early"},
        {"t": 1.2, "text": "now"},
        {"t": 9, "text": " \u200b "},
    ]
    samples = [
        {"txt": "main", "json": {"texts": {"en": ["other", "main", "third"]}}},
        {"json": {"captions": talk}},
        {"json": {"captions": [{"t": "soon", "text": "x"}]}},
        {"json": {"captions": [{"t": 1, "text": ""}]}},
        {"json": {}},
        {"json": {"captions": ["no", "times"]}},
    ]
    with ShardWriter(tmp_path / "a" / "a", 9) as writer:
        for i, sample in enumerate(samples):
            writer.write(f"k{i}", {"mp4": movie([50] * 20), **sample})
    options = {"batch_size": 9, "fields": ("video", "candidates"), "clip": CLIP, "tokenizer": sentencepiece}
    with read_all(str(tmp_path / "a"), **options) as loader:
        batch = next(iter(loader))
        assert loader.skipped == {"json-unreadable": 1, "text-empty": 1, "text-missing": 2}
    assert batch.keys == ["k0", "k1"]
    assert batch.candidate_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 2 + [False] * 3]
    assert torch.equal(batch.candidates[0, :3], sentencepiece(["main", "other", "third"]).ids)
    assert torch.equal(batch.candidates[1, :2], sentencepiece(["now", "early"]).ids)
    with read_all(str(tmp_path / "a"), **options, optional=("candidates",)) as loader:
        batch = next(iter(loader))
        assert loader.skipped == {"json-unreadable": 1}
    assert batch.candidate_mask.any(dim=1).tolist() == [True, True, False, False, False]


def test_bad_files_are_counted_and_hold_nobody_up(tmp_path, movie):
    good = movie([100] * 20, form="matroska", sound=np.ones(16_000) * 0.1, rate=8000, sound_codec="pcm_s16le")
    nan = movie(
        [100] * 20, form="matroska", sound=np.full(16_000, np.nan), rate=8000, sound_codec="pcm_f32le"
    )
    with ShardWriter(tmp_path / "a" / "a", 20) as writer:
        for i in range(12):
            writer.write(f"k{i:02d}", {"mkv": [good, good[:300], nan, b"\0" * 50, b""][i % 5]})
    options = {"fields": ("video", "audio"), "clip": CLIP, "max_bad_rate": 1.0}
    seen = []
    for workers in (0, 2):
        with make_loader(
            str(tmp_path / "a"), batch_size=4, num_batches=6, workers=workers, **options
        ) as loader:
            keys = [key for batch in loader for key in batch.keys]
            seen.append((keys, dict(loader.skipped)))
    assert seen[0] == seen[1]
    assert set(seen[0][0]) <= {"k00", "k05", "k10"}
    assert set(seen[0][1]) == {"audio-not-finite", "media-unreadable", "media-empty"}


def test_sequences_of_pictures_with_a_sound_file(tmp_path, image_bytes, sound_bytes):
    from PIL import Image

    frames = {f"{i:03d}.png": image_bytes(Image.new("RGB", (16, 16), (10 * i,) * 3)) for i in range(8)}
    with ShardWriter(tmp_path / "a" / "a", 9) as writer:
        writer.write(
            "k", {**frames, "wav": sound_bytes(np.full(16_000, 0.5), 8000), "json": {"fps": 4}, "txt": "t"}
        )
        writer.write(
            "l", {"wav": sound_bytes(np.full(16_000, 0.5), 8000), "txt": "t", "fr.wav": b"not its sound"}
        )
    with read_all(
        str(tmp_path / "a"), batch_size=2, fields=("video", "audio"), clip=CLIP, optional=("video",)
    ) as loader:
        batch = next(iter(loader))
    assert batch.video[0].float().mean(dim=(0, 2, 3)).tolist() == [20, 30, 40, 50]  # the middle second
    assert batch.audio.mean(dim=1).tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert batch.video_mask.tolist() == [True, False]


def test_preprocessing_as_plain_data():
    again = ClipPreprocess.from_dict(json.loads(json.dumps(CLIP.to_dict())))
    assert again == CLIP
    assert again.fingerprint() == CLIP.fingerprint()
    assert again.image.size == (16, 16)
    other = ClipPreprocess(video=CLIP.video)
    assert ClipPreprocess.from_dict(other.to_dict()) == other
    assert other.fingerprint() != CLIP.fingerprint()
    for data, message in [
        ({"vide": None}, "did you mean video"),
        ({"video": {"frame": 3}}, "video.frame: did you mean frames"),
        ({"video": 3}, "video must be an object"),
        ({"video": None, "audio": None}, "needs a preprocessing"),
    ]:
        with pytest.raises(UserError, match=message):
            ClipPreprocess.from_dict(data)
