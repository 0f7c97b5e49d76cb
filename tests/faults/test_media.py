"""Odd media among good ones: counted, used or refused, by any way of reading; nothing opened but the file."""

import os
import random
import signal
import socket
import threading
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
import torch

import mmvit
from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess, ClipReader
from mmvit.data.loader import make_loader, read_all
from mmvit.data.media import Container
from mmvit.data.pixels import BadSample
from mmvit.data.validate import validate
from mmvit.data.video import VideoPreprocess
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError
from mmvit.tasks.vatt import VattTask
from tests.api.media import random_model, save_model, tokenizer
from tests.faults import media_files as files
from tests.faults.case import CAPTION
from tests.faults.cases_media import CASES, CLIP, CLIPS, SOUND, SOUNDS, is_good, is_grey, is_loud

WINDOW = ClipPreprocess(
    video=VideoPreprocess(size=(32, 32), frames=8, fps=8.0),
    audio=AudioPreprocess(sample_rate=files.RATE, samples=2560),
)
GOOD = {CLIP: {"mkv": files.clip(), "txt": CAPTION}, SOUND: {"wav": files.wav(), "txt": CAPTION}}
# The test run makes errors of warnings; these cases are to be met as a user meets them.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def task():
    """A small model of video, audio and text with its loss."""
    return VattTask(random_model(), {"va": 1.0, "vt": 1.0, "at": 1.0}, num_candidates=1)


def write(folder, cases, good=4):
    """Shards in which the cases stand among good samples."""
    with ShardWriter(folder / "s", 7) as writer:
        for i in range(max(good, len(cases))):
            if i < good:
                writer.write(f"good{i:02d}", GOOD[cases[0].fields])
            if i < len(cases):
                writer.write(f"odd{i:02d}", cases[i].members())
    return str(folder)


def parts(batch):
    """(key, video or None, audio or None) of each row."""
    for i, key in enumerate(batch.keys):
        found = []
        for name in ("video", "audio"):
            values, mask = getattr(batch, name), getattr(batch, f"{name}_mask")
            found.append(None if values is None or (mask is not None and not mask[i]) else values[i])
        yield key, *found


def check(case, batches, without=""):
    for batch in batches:
        for key, video, audio in parts(batch):
            if key.startswith("odd"):
                case.check(video, audio)
                assert {"video": video, "audio": audio}.get(without) is None
            else:
                is_good(video, audio) if case.fields == CLIP else is_loud(video, audio)


def loss_is_finite(task, batch):
    task.zero_grad()
    out = task(batch)
    out["loss"].backward()
    assert all(torch.isfinite(value).all() for value in out.values()), out
    assert all(torch.isfinite(p.grad).all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.fault)
def test_a_fault_costs_its_own_sample_and_no_other(case, tmp_path, told, only_indexes, task, capfd):
    urls = write(tmp_path / "shards", [case])
    options = {"fields": case.fields, "clip": WINDOW, "batch_size": 5, "tokenizer": tokenizer()}
    ways = ((), ("video", "audio")) if case.fields == CLIP else ((),)
    with only_indexes():
        for may_lack in ways:
            reason = "" if may_lack and case.lacks else case.reason
            without = case.lacks if may_lack else ""
            with read_all(urls, **options, optional=may_lack) as everything:
                batches = list(everything)
            keys = [key for batch in batches for key in batch.keys]
            assert [key for key in keys if key != "odd00"] == [f"good{i:02d}" for i in range(4)]
            assert ("odd00" in keys) == (not reason)
            assert everything.skipped == ({reason: 1} if reason else {})
            check(case, batches, without)
            loader = make_loader(urls, num_batches=2, max_bad_rate=1.0, optional=may_lack, **options)
            with loader:
                batches = list(loader)
            check(case, batches, without)
            assert set(loader.skipped) == ({reason} if reason else set())
            assert loader.drawn == 10 + loader.skipped.total()
            for batch in batches if case.fields == CLIP else ():
                loss_is_finite(task, batch)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "Warning" not in said
    told(case.fault, *case.row)


@pytest.mark.parametrize(("cases", "start"), [(CLIPS, "fork"), (SOUNDS, "fork")], ids=["clips", "sounds"])
def test_all_of_them_for_any_number_of_workers(cases, start, tmp_path):
    """The same batches and the same counts; nobody waits for ever."""
    urls = write(tmp_path / "all", cases, good=12)
    options = {"fields": cases[0].fields, "clip": WINDOW, "batch_size": 6, "max_bad_rate": 1.0}
    seen = []
    for workers in (0, 1, 2):
        loader = make_loader(urls, num_batches=8, workers=workers, start_method=start, **options)
        with loader:
            rows = [(key, video, audio) for batch in loader for key, video, audio in parts(batch)]
        with read_all(urls, workers=workers, start_method=start, **options) as everything:
            keys = [key for batch in everything for key in batch.keys]
        seen.append(([row[0] for row in rows], loader.skipped, loader.drawn, keys, everything.skipped))
    assert seen[0] == seen[1] == seen[2]
    assert sum(key.startswith("good") for key in seen[0][3]) == 12
    assert set(seen[0][4]) == {case.reason for case in cases if case.reason}
    assert seen[0][4].total() == sum(bool(case.reason) for case in cases)


def test_the_validator_lives_through_all_of_them(tmp_path):
    report = validate(write(tmp_path / "all", CLIPS))
    assert report.samples == len(CLIPS) + 4
    assert not report.ok


@pytest.mark.parametrize("front", [True, False], ids=["index in front", "index at the end"])
def test_an_mp4_cut_anywhere_gives_an_answer_or_a_reason(front):
    data, rng = files.mp4(front=front), random.Random(0)
    reader = ClipReader(preprocess=WINDOW, optional=("video", "audio"), random_start=True)
    answers, reasons = 0, set()
    for length in (0, 1, 8, len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))):
        try:
            found = reader({"__key__": b"k", "mp4": data[:length]}, {}, rng)
        except BadSample as bad:
            reasons.add(bad.reason)
            continue
        answers += 1
        is_grey(found.video)
        assert found.audio is None or found.audio.abs().max() <= 0.15, "what lies in the file, or silence"
    assert reasons <= {"media-empty", "media-unreadable", "video-truncated", "audio-truncated"}
    assert answers >= (10 if front else 1)


def test_more_bad_ones_than_allowed_end_with_one_line(tmp_path, told):
    bad = next(case for case in CLIPS if case.fault.startswith("text called"))
    urls = write(tmp_path / "shards", [bad] * 6, good=14)
    options = {"fields": CLIP, "clip": WINDOW, "batch_size": 20, "max_bad_rate": 0.1}
    lines = []
    for workers in (0, 2):
        with make_loader(urls, workers=workers, **options) as loader, pytest.raises(UserError) as error:
            list(loader)
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    assert "media-unreadable" in lines[0]
    told("more bad videos than --data.max-bad-rate", "one error", lines[0])


def test_nothing_but_bad_ones_ends_with_one_line(tmp_path):
    with ShardWriter(tmp_path / "shards" / "s", 9) as writer:
        for i in range(5):
            writer.write(f"odd{i}", {"mp4": b"no film", "txt": CAPTION})
    for workers in (0, 2):
        loader = make_loader(
            str(tmp_path / "shards"), fields=CLIP, clip=WINDOW, batch_size=2, workers=workers
        )
        with loader, pytest.raises(UserError, match="100 samples of shards in a row .*media-unreadable"):
            list(loader)


class Deadly(Container):
    """Dies where it decodes its first frame."""

    def _picture(self, frame):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_while_it_decodes_is_one_error(tmp_path, told, monkeypatch):
    urls = write(tmp_path / "shards", [CLIPS[0]])
    monkeypatch.setattr("mmvit.data.video.Container", Deadly)
    monkeypatch.setattr("mmvit.data.clip.Container", Deadly)
    loader = make_loader(
        urls, fields=CLIP, clip=WINDOW, batch_size=5, workers=2, start_method="fork", max_bad_rate=1.0
    )
    with loader, pytest.raises(UserError, match="a data worker died") as error:
        list(loader)
    assert "\n" not in str(error.value)
    told("video worker killed while it decodes", "one error", str(error.value))


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_three_hours_cost_their_window(form, told):
    """A frame a minute, each with its hour's grey; the file's frames are not gone through."""
    data = files.hours(form, "libx264")
    with Container(data) as container:
        assert container.seconds == pytest.approx(3 * 3600, abs=70)
        tracemalloc.start()
        video = WINDOW.video.window(container, 2 * 3600 + 100.0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert container.frames_decoded <= 4
    assert (video.float() - 160).abs().max() <= 4, "the third hour"
    assert peak < 4e6
    told("three hours of video", "used", "its window; no more is decoded")


def test_three_hours_of_sound_are_not_held():
    data = files.hours_of_silence()
    tracemalloc.start()
    found = WINDOW.audio(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    is_loud(None, found)
    assert peak < 3e6, "all samples would be 43 MB"


def test_no_file_makes_another_be_opened(tmp_path, monkeypatch):
    """Playlists and references are refused: no file beside them is read, no address is called."""
    other = tmp_path / "other.mov"
    other.write_bytes(files.clip("mov", sound=None))
    assert WINDOW.video(other).float().mean() == pytest.approx(files.GREY, abs=4), "it could be played"
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    address = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
    for target in (
        other,
        other.name,
        f"file://{other}",
        address,
        f"concat:{other}",
        f"subfile,,start,0,end,0,,:{other}",
    ):
        for make in (files.playlist, files.concatenation, files.session, files.elsewhere):
            data = make(target)
            path = tmp_path / "a.mp4"
            path.write_bytes(data)
            monkeypatch.chdir(tmp_path)
            for source in (data, path, "a.mp4"):
                with pytest.raises(BadSample) as bad:
                    WINDOW.video(source)
                assert bad.value.reason in ("media-unreadable", "video-truncated", "video-empty")
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a talk, 10:30.mp4", "http:clip.mp4", "concat:x|y.mp4", "pipe:0"):
        (tmp_path / name).write_bytes(files.mp4())
        assert (WINDOW.video(name).float() - files.GREY).abs().max() <= 4


def test_threads_that_decode_damaged_files_at_the_same_time_all_end():
    """As the API reads a list of files."""
    data, reasons = files.mp4(front=True), []

    def read(seed):
        rng = random.Random(seed)
        for _ in range(6):
            with suppress(BadSample):
                WINDOW.video(data[: rng.randrange(len(data))])
        reasons.append(seed)

    threads = [threading.Thread(target=read, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(reasons) == [0, 1, 2, 3]


def test_the_api_names_the_input_in_one_line(tmp_path):
    model = mmvit.load(save_model(tmp_path / "vatt"))
    for cases, modality in ((CLIPS, "video"), (SOUNDS, "audio")):
        good = files.clip() if modality == "video" else files.wav()
        bad = [c for c in cases if c.reason.startswith((modality, "media")) and len(c.members()) > 1]
        assert len(bad) >= 10
        for case in bad:
            odd = next(data for name, data in case.members().items() if name != "txt")
            with pytest.raises(ValueError, match=f"^{modality} 1: {case.reason}") as error:
                model.encode(**{modality: [good, odd]})
            assert "\n" not in str(error.value)
            assert " at 0x" not in str(error.value)
    forms = [files.wav(), files.clip(), (files.loud(), files.RATE), files.sound("FLAC")]
    z = model.encode(audio=forms)
    assert torch.allclose(z, z[:1].expand_as(z), atol=1e-3)


def test_sound_that_has_not_begun_is_silence_of_full_length():
    with Container(files.clip(sound_start=1.0)) as container:
        before = container.read(0, 4000)
        assert len(before) == 4000
        assert not before.any()
        assert len(container.read(6 * files.RATE, 4000)) == 0, "it has ended"


@pytest.mark.filterwarnings("error")
def test_sound_that_is_not_finite_says_nothing_but_its_reason():
    stereo = np.stack([files.loud() * np.inf, files.loud() * -np.inf], 1)
    film = files.clip(sound=np.ascontiguousarray(stereo.T), sound_codec="pcm_f32le")
    for data in (files.wav(stereo, subtype="FLOAT"), film):
        with pytest.raises(BadSample, match="audio-not-finite"):
            WINDOW.audio(data)
