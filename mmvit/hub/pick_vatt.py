"""What recipes/vatt.py takes as --model.…: three towers with their spaces, and how to feed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.text import ClipTokenizer, Tokenizer, load_tokenizer
from mmvit.data.video import VideoPreprocess
from mmvit.errors import UserError
from mmvit.hub.folder import load
from mmvit.hub.pick import is_preset, option_values
from mmvit.hub.pick_media import pick_audio_tower, pick_video_tower
from mmvit.hub.preprocess import preprocess_of
from mmvit.models.config import VattConfig
from mmvit.models.presets import preset
from mmvit.models.vatt import Vatt


def pick_vatt(
    spec: str,
    *,
    tokenizer: str = "",
    options: Sequence[str] = (),
    video: str = "",
    audio: str = "",
    fps: float = 0.0,
    sample_rate: int = 0,
) -> tuple[Vatt, ClipPreprocess, Tokenizer]:
    """(model, preprocessing, tokenizer).

    Args:
        spec: a preset's name, or a folder of ours, which is taken as it is.
        tokenizer: a tokenizer's folder or "clip"; "" = the one in the folder.
        options: NAME=VALUE changes of a preset.
        video: a video tower in place of the preset's, as `pick_video_tower` takes it.
        audio: likewise.
        fps: at which clips are sampled; 0 = the video tower's own.
        sample_rate: of sounds, in Hz; 0 = the audio tower's own.

    Raises:
        UserError: neither a folder nor a preset, another kind of model, or no tokenizer for a preset.
    """
    try:
        if not is_preset(spec):
            model, fed, words = _saved(spec, tokenizer, (*options, *filter(None, (video, audio))))
            return model, _fed(fed.video, fed.audio, fps, sample_rate), words
        if not tokenizer:
            raise UserError(f"{spec} starts from scratch and needs --model.tokenizer: a folder, or clip")
        words = ClipTokenizer() if tokenizer == "clip" else load_tokenizer(tokenizer)
        fields = {"vocab_size": words.vocab_size, "context_length": words.context_length}
        config = preset(spec, **fields, **option_values(options))
        if not isinstance(config, VattConfig):
            raise UserError(f"--model.name {spec} is no model of video, audio and text: see vatt_*")
        towers: dict[str, Any] = {}
        seen = preprocess_of(config.video).video  # type: ignore[union-attr]
        heard = preprocess_of(config.audio).audio  # type: ignore[union-attr]
        if video:
            towers["video"], seen = pick_video_tower(video)
        if audio:
            towers["audio"], heard = pick_audio_tower(audio)
        return Vatt(config, **towers), _fed(seen, heard, fps, sample_rate), words
    except (ValueError, OSError) as error:
        raise UserError(f"--model.name {spec}: {error}") from None


def _saved(spec: str, tokenizer: str, changes: Sequence[str]) -> tuple[Vatt, ClipPreprocess, Tokenizer]:
    """A saved model with what lies beside it."""
    if changes or tokenizer:
        raise UserError(f"{spec} is a saved model: {changes[0] if changes else tokenizer} cannot change it")
    loaded = load(spec)
    if not isinstance(loaded.model, Vatt):
        raise UserError(f"{spec} holds a {loaded.config['kind']}, expected one that vatt.py saved")
    assert isinstance(loaded.preprocess, ClipPreprocess)
    assert loaded.tokenizer is not None
    return loaded.model, loaded.preprocess, loaded.tokenizer


def _fed(
    video: VideoPreprocess | None, audio: AudioPreprocess | None, fps: float, sample_rate: int
) -> ClipPreprocess:
    """How both towers are fed, at the rates that were asked for."""
    assert video is not None
    assert audio is not None
    if sample_rate and audio.features != "waveform" and sample_rate != audio.sample_rate:
        raise UserError(
            f"--data.sample-rate {sample_rate}: the {audio.features} features of this model are made at "
            f"{audio.sample_rate} Hz: leave it at 0"
        )
    return ClipPreprocess(
        video=replace(video, fps=fps or video.fps),
        audio=replace(audio, sample_rate=sample_rate or audio.sample_rate),
    )
