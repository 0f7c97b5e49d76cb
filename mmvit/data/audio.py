"""Sound -> (S,) waveform or (T,M) spectrogram, float32: `AudioPreprocess`; `AudioAugment` for training.

Shape letters: S samples, T frames, M mel bands, V views.
Source: VATT (arXiv:2104.11178) appendix A.2.1; AST (arXiv:2104.01778); SpecAugment (arXiv:1904.08779).
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmvit.data.pixels import BadSample
from mmvit.data.spectrogram import FEATURES
from mmvit.data.video import spread
from mmvit.data.waveform import Sound, cut, open_sound
from mmvit.errors import UserError, nearest

_PADS = ("silence", "spectrogram", "repeat")


@dataclass(frozen=True, kw_only=True)
class AudioPreprocess:
    """What happens to a sound before a tower hears it; the same for training, evaluation and the API.

    The mean over channels, resampled, cut to a window of `samples`; then, unless features="waveform", a
    spectrogram.

    Attributes:
        features: "waveform", or a recipe of `spectrogram.FEATURES`: "fbank" (Kaldi's, for AST and its kin),
            "log_mel" (VATT's) ….
        sample_rate: in Hz, what sounds are resampled to.
        samples: S, length of the window.
        mel_bins: M.
        frames: "fbank": T that the spectrogram is padded or cut to; None = as many as the window has.
        mean, std: of the log-mel plane: "fbank" gives (x - mean) / (2 std); the defaults are AudioSet's.
        remove_mean: "fbank": subtract the waveform's mean first.
        frequency_min, frequency_max: "clap": the range of the mel bands in Hz.
        pad: what fills the window behind the end of a short sound: "silence" (zeros of the waveform),
            "spectrogram" ("fbank": zeros of the log-mel plane, as AST does) or "repeat" (the sound again, as
            often as it fits whole, then silence).
    """

    features: str = "waveform"
    sample_rate: int = 48_000
    samples: int = 153_600
    mel_bins: int = 128
    frames: int | None = None
    mean: float = -4.2677393
    std: float = 4.5689974
    remove_mean: bool = True
    frequency_min: float = 50.0
    frequency_max: float = 14_000.0
    pad: Literal["silence", "spectrogram", "repeat"] = "silence"

    def __post_init__(self) -> None:
        known = ("waveform", *FEATURES)
        if self.features not in known:
            raise UserError(f"features={self.features!r}: {nearest(self.features, known)}")
        if self.pad not in _PADS:
            raise UserError(f"pad={self.pad!r}: {nearest(self.pad, _PADS)}")
        if self.features != "fbank" and (self.pad == "spectrogram" or self.frames is not None):
            raise UserError(
                f"pad='spectrogram' and frames need features='fbank', this is {self.features!r}: "
                "use pad='silence' and samples"
            )
        if self.samples < 1 or self.sample_rate < 1000 or self.mel_bins < 1 or self.std <= 0:
            raise UserError(
                f"samples={self.samples}, mel_bins={self.mel_bins} and std={self.std} must be above 0, "
                f"sample_rate={self.sample_rate} at least 1000"
            )

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.samples / self.sample_rate

    @property
    def shape(self) -> tuple[int, ...]:
        """(S,) or (T,M) of the result."""
        if self.features == "waveform":
            return (self.samples,)
        return FEATURES[self.features].shape(self)

    @property
    def blank(self) -> float:
        """What masked cells are filled with, see `spectrogram.Features`."""
        return 0.0 if self.features == "waveform" else FEATURES[self.features].blank(self)

    def __call__(
        self,
        audio: Any,
        start: float | None = None,
        *,
        augment: AudioAugment | None = None,
        rng: random.Random | None = None,
    ) -> Tensor:
        """(S,) or (T,M) float32 of one window.

        Args:
            audio: bytes, a path, or (waveform (S,) or (S,channels), rate in Hz); a video gives its own sound.
            start: second at which the window begins; None = the window in the middle.
            augment: noise and masks; all chance comes from `rng`.
            rng: needed by `augment`.

        Raises:
            BadSample: it cannot be decoded.
            UserError: a path that cannot be read, or another type.
        """
        with open_sound(audio) as sound:
            return self.window(sound, start, augment=augment, rng=rng)

    def views(self, audio: Any, windows: int) -> Tensor:
        """(V,S) or (V,T,M) float32 of evenly spaced windows."""
        with open_sound(audio) as sound:
            starts = spread(sound.seconds, self.seconds, windows)
            return torch.stack([self.window(sound, start) for start in starts])

    def window(
        self,
        sound: Sound,
        start: float | None = None,
        *,
        augment: AudioAugment | None = None,
        rng: random.Random | None = None,
    ) -> Tensor:
        """As calling, of a sound that is open."""
        if sound.seconds <= 0:
            raise BadSample("audio-empty", "0 samples")
        if start is None:
            start = spread(sound.seconds, self.seconds, 1)[0]
        waveform = cut(sound, start, self.samples, self.sample_rate)
        if not len(waveform) and start == 0:
            raise BadSample("audio-empty", "0 samples")
        if augment is not None:
            waveform = augment.noisy(waveform, rng or random.Random(0))
        if self.pad == "repeat" and 0 < len(waveform) < self.samples:
            waveform = waveform.repeat(self.samples // len(waveform))
        if self.pad != "spectrogram":
            waveform = F.pad(waveform, (0, self.samples - len(waveform)))
        if self.features == "waveform":
            return waveform
        spectrogram = FEATURES[self.features].compute(waveform, self)
        return (
            spectrogram if augment is None else augment.mask(spectrogram, self.blank, rng or random.Random(0))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to preprocess.json."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class AudioAugment:
    """Noise and masks of training, drawn for every sample.

    Attributes:
        noise: standard deviation of added Gaussian noise, as a fraction of the largest |x| of the window.
        frequency_mask: widest band of mel bins that is blanked, exclusive; 0 = off.
        time_mask: widest stretch of frames that is blanked, exclusive; 0 = off.

    Source: VATT's public code (noise 0.01); SpecAugment, one mask an axis as AST uses it.
    """

    noise: float = 0.01
    frequency_mask: int = 0
    time_mask: int = 0

    def __post_init__(self) -> None:
        if self.noise < 0 or self.frequency_mask < 0 or self.time_mask < 0:
            raise UserError(f"audio augmentation must not be negative: {self}")

    def noisy(self, waveform: Tensor, rng: random.Random) -> Tensor:
        """The waveform (n,) with noise."""
        if not self.noise or not len(waveform):
            return waveform
        drawn = np.random.default_rng(rng.getrandbits(64)).standard_normal(len(waveform), dtype=np.float32)
        return waveform + torch.from_numpy(drawn) * (self.noise * waveform.abs().max())

    def mask(self, spectrogram: Tensor, blank: float, rng: random.Random) -> Tensor:
        """The spectrogram (T,M) with one stretch of frames and one band blanked."""
        spectrogram = spectrogram.clone()
        for axis, widest in enumerate((self.time_mask, self.frequency_mask)):
            size = spectrogram.shape[axis]
            width = rng.randrange(min(widest, size)) if widest else 0
            begin = rng.randint(0, size - width)
            spectrogram.narrow(axis, begin, width).fill_(blank)
        return spectrogram
