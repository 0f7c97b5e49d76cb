"""Motions are what their names say, reverses of each other where they should be, and survive encoding."""

import io
import random

import av
import numpy as np
import pytest
from corpus.clips import FPS, FRAMES, MOTIONS, RATE, SIZE, encode, frames, soundtrack
from corpus.sounds import wav_bytes
from PIL import Image

GROUND = np.full((SIZE, SIZE, 3), 180, np.uint8)


def cut():
    rgba = np.zeros((40, 30, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[:20, :, 0], rgba[20:, :, 2] = 255, 255
    return Image.fromarray(rgba)


def play(motion, seed=0):
    pictures, boxes = frames(cut(), motion, GROUND, random.Random(seed))
    x0, y0, x1, y1 = np.array(boxes, float).T
    return pictures, {"x": (x0 + x1) / 2, "y": (y0 + y1) / 2, "width": x1 - x0, "height": y1 - y0}


@pytest.mark.parametrize(
    ("motion", "what", "sign"),
    [
        ("moving left to right", "x", 1),
        ("moving right to left", "x", -1),
        ("rising", "y", -1),
        ("falling", "y", 1),
        ("growing", "height", 1),
        ("shrinking", "height", -1),
    ],
)
def test_a_steady_motion_changes_one_thing_in_one_direction(motion, what, sign):
    _, track = play(motion)
    change = sign * np.diff(track[what])
    assert (change >= 0).all()
    assert sign * (track[what][-1] - track[what][0]) > 25
    for other in {"x", "y"} - {what}:
        assert np.ptp(track[other]) <= 1


@pytest.mark.parametrize(
    ("motion", "reverse"),
    [("moving left to right", "moving right to left"), ("rising", "falling"), ("growing", "shrinking")],
)
def test_a_reversed_motion_has_the_same_frames_in_the_other_order(motion, reverse):
    forward, backward = play(motion)[0], play(reverse)[0]
    assert np.array_equal(forward, backward[::-1])
    assert not np.array_equal(forward, backward)


def test_clockwise_is_clockwise():
    def red_side(pictures, index):
        rows, columns = np.nonzero((pictures[index][..., 0] > 200) & (pictures[index][..., 2] < 60))
        return rows.mean(), columns.mean()

    still_row, still_column = red_side(play("spinning clockwise")[0], 0)
    row, column = red_side(play("spinning clockwise")[0], 4)  # about a quarter turn: the red top points right
    assert column > still_column + 5
    assert row > still_row + 5
    assert red_side(play("spinning counterclockwise")[0], 4)[1] < still_column - 5


def test_coming_and_going_motions_come_back():
    _, still = play("standing still")
    assert all(np.ptp(value) == 0 for value in still.values())
    _, bounce = play("bouncing")
    assert np.ptp(bounce["y"]) > 25
    assert ((np.diff(np.sign(np.diff(bounce["y"]))) != 0).sum()) >= 3
    _, shake = play("shaking")
    assert 8 < np.ptp(shake["x"]) < 30
    assert np.ptp(play("swinging")[1]["x"]) > 15


def test_boxes_hold_exactly_the_pixels_that_differ_from_the_ground():
    for motion in MOTIONS:
        pictures, boxes = frames(cut(), motion, GROUND, random.Random(3))
        for picture, (x0, y0, x1, y1) in zip(pictures, boxes, strict=True):
            rows, columns = np.nonzero((picture.astype(int) - 180).__abs__().max(axis=-1) > 90)
            assert (
                abs(
                    np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    - [x0, y0, x1, y1]
                ).max()
                <= 1
            )


def tone(seconds):
    return wav_bytes(np.sin(np.arange(int(seconds * RATE)) * 2 * np.pi * 440 / RATE).astype(np.float32), RATE)


def test_a_short_sound_is_heard_again_and_a_long_one_is_cut():
    track = soundtrack(tone(0.5))
    assert len(track) == FRAMES * RATE // FPS
    assert np.abs(track[RATE : RATE + 1600]).max() > 0.5
    assert np.abs(track[int(0.58 * RATE) : int(0.7 * RATE)]).max() == 0
    assert np.abs(soundtrack(tone(3.0))[-1600:]).max() > 0.5


def test_an_encoded_clip_has_all_frames_and_its_sound_and_is_reproducible():
    pictures, _ = play("rising")
    data = encode(pictures, soundtrack(tone(1.0)))
    assert data == encode(pictures, soundtrack(tone(1.0)))
    with av.open(io.BytesIO(data)) as file:
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(io.BytesIO(data)) as file:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
        assert file.streams.audio[0].rate == RATE
        assert file.streams.video[0].average_rate == FPS
    assert len(decoded) == FRAMES
    assert np.abs(np.stack(decoded).astype(int) - pictures).mean() < 6
    assert len(sound) / RATE == pytest.approx(2.0, abs=0.15)
    assert np.abs(sound).max() > 0.3
