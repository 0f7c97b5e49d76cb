"""Peers' towers of clips and sounds in our models: fed as their own library feeds them, saved, picked."""

import json
import shutil

import pytest
import torch
import transformers

from mmvit import hub
from mmvit.data.audio import AudioPreprocess
from mmvit.data.clip import ClipPreprocess
from mmvit.data.text import WordTokenizer
from mmvit.data.video import VideoPreprocess
from mmvit.errors import UserError
from mmvit.hub.pick import pick_tower
from mmvit.hub.pick_media import pick_audio_tower, pick_video_tower
from mmvit.models.config import VattConfig, WordTowerConfig
from mmvit.models.core_config import CoreConfig
from mmvit.models.vatt import Vatt
from tests.hub.test_convert_clap import AUDIO
from tests.hub.test_convert_clips_sounds_pairs import SOUND, VIDEO
from tests.parity.case import randomise

SECOND = torch.randn(16_000, generator=torch.Generator().manual_seed(0)) / 10


def videomae() -> torch.nn.Module:
    return randomise(transformers.VideoMAEModel(transformers.VideoMAEConfig(**VIDEO)))


def ast() -> torch.nn.Module:
    return randomise(transformers.ASTModel(transformers.ASTConfig(**SOUND)))


def clap() -> torch.nn.Module:
    config = transformers.ClapAudioConfig(**AUDIO | {"spec_size": 64, "num_mel_bins": 16})
    return randomise(transformers.ClapAudioModelWithProjection(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """What transformers saves: model and feature extractor."""
    extractors = {
        "videomae": transformers.VideoMAEImageProcessor(size={"shortest_edge": 16}),
        "ast": transformers.ASTFeatureExtractor(num_mel_bins=36, max_length=60, mean=-4.0, std=3.0),
        "clap": transformers.ClapFeatureExtractor(
            feature_size=16, max_length_s=2, frequency_min=50, truncation="rand_trunc"
        ),
    }
    found = {}
    for name, peer in (("videomae", videomae()), ("ast", ast()), ("clap", clap())):
        folder = tmp_path_factory.mktemp(name)
        peer.save_pretrained(folder)
        extractors[name].save_pretrained(folder)
        found[name] = str(folder)
    return found


@pytest.mark.parametrize("samples", [16_000, 9840, 5000, 300])
def test_ast_hears_what_its_own_extractor_gives(folders, samples):
    tower, preprocess = pick_audio_tower(f"transformers:{folders['ast']}")
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folders["ast"])
    sound = torch.cat([SECOND, SECOND])[:samples]
    if samples < 400:  # no whole window: silence of the spectrogram, where the extractor fails
        theirs = torch.full((60, 36), 4.0 / 6.0)
    else:
        theirs = extractor(sound.numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"][0]
    ours = preprocess((sound, 16_000), start=0.0)
    assert (ours - theirs).abs().max() < 1e-4
    assert (tower.config.mean, tower.config.std) == ((-4.0,), (6.0,))


@pytest.mark.parametrize("seconds", [2.0, 1.5, 0.6])
@torch.no_grad()
def test_clap_hears_what_its_own_extractor_gives(folders, seconds):
    tower, preprocess = pick_audio_tower(f"transformers:{folders['clap']}")
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folders["clap"])
    t = torch.arange(int(seconds * 48_000)) / 48_000
    sound = 0.5 * torch.sin(2 * torch.pi * (200 * t + 1500 * t * t))
    theirs = extractor(sound.numpy(), sampling_rate=48_000, return_tensors="pt")["input_features"][0]
    ours = preprocess((sound, 48_000))
    assert ours.shape == preprocess.shape == (201, 16)
    assert (ours - theirs[0]).abs().max() < 1e-3  # decibels
    assert tower.config.embed_dim is None
    assert (tower(ours[None]) - clap().audio_model(theirs[None]).pooler_output).abs().max() < 1e-4


def test_videomae_sees_every_fourth_frame_at_its_own_size(folders):
    tower, preprocess = pick_video_tower(f"transformers:{folders['videomae']}")
    assert preprocess == VideoPreprocess(size=(16, 16), frames=4, fps=7.5, interpolation="bilinear")
    processor = transformers.VideoMAEImageProcessor.from_pretrained(folders["videomae"])
    assert tower.config.mean == tuple(processor.image_mean)


def together(folders) -> tuple[Vatt, ClipPreprocess]:
    video, see = pick_video_tower(f"transformers:{folders['videomae']}")
    audio, hear = pick_audio_tower(f"transformers:{folders['ast']}")
    core = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=16)
    config = VattConfig(
        video=video.config,
        audio=audio.config,
        text=WordTowerConfig(core=core, vocab_size=20),
        shared=False,
        va_dim=8,
        vt_dim=4,
    )
    return Vatt(config, video=video, audio=audio).eval(), ClipPreprocess(video=see, audio=hear)


@torch.no_grad()
def test_peers_towers_stand_in_our_model_and_come_back_out_of_its_folder(folders, tmp_path):
    model, preprocess = together(folders)
    clips, sounds = torch.randn(2, 3, 4, 16, 16), torch.randn(2, 60, 36)
    peer = videomae()(clips.transpose(1, 2)).last_hidden_state.mean(1)
    assert (model.video(clips) - peer).abs().max() < 1e-5
    assert (model.audio(sounds) - ast()(sounds).pooler_output).abs().max() < 1e-5
    assert model.encode_video(clips)["vt"].shape == (2, 4)
    hub.save(model.video, tmp_path / "video", preprocess=ClipPreprocess(video=preprocess.video))
    hub.save(model.audio, tmp_path / "audio", preprocess=ClipPreprocess(audio=preprocess.audio))
    video, see = pick_video_tower(str(tmp_path / "video"))
    audio, hear = pick_audio_tower(str(tmp_path / "audio"))
    assert torch.equal(video(clips), model.video(clips))
    assert torch.equal(audio(sounds), model.audio(sounds))
    assert (see, hear) == (preprocess.video, preprocess.audio)


def test_a_converted_tower_is_saved_with_how_it_is_fed(folders, tmp_path):
    for name in ("ast", "clap", "videomae"):
        tower = hub.from_transformers(folders[name])
        hub.save(tower, tmp_path / name)
        assert hub.load(tmp_path / name).preprocess == tower.preprocess


def test_presets_come_with_what_their_family_was_trained_on():
    tower, preprocess = pick_audio_tower("htsat_tiny")
    assert (preprocess.features, preprocess.sample_rate, preprocess.shape) == ("clap", 48_000, (1001, 64))
    assert (tower.config.embed_dim, tower.embed_dim) == (None, 768)
    assert isinstance(preprocess, AudioPreprocess)


def test_an_extractor_of_other_windows_than_ours_is_refused(folders, tmp_path):
    shutil.copytree(folders["clap"], tmp_path / "clap")
    file = tmp_path / "clap" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hop_length": 320}))
    with pytest.raises(UserError, match=r"are \(1024, 320\), expected \(1024, 480\) at 48000 Hz"):
        pick_audio_tower(f"transformers:{tmp_path / 'clap'}")


def test_a_model_of_several_gives_each_of_its_towers(folders, tmp_path):
    model, preprocess = together(folders)
    hub.save(
        model, tmp_path / "m", preprocess=preprocess, tokenizer=WordTokenizer([f"w{i}" for i in range(18)])
    )
    video, see = pick_video_tower(str(tmp_path / "m"))
    audio, hear = pick_audio_tower(str(tmp_path / "m"))
    assert (see, hear) == (preprocess.video, preprocess.audio)
    for ours, theirs in ((video, model.video), (audio, model.audio)):
        assert ours.config == theirs.config
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": 0.4}, r"clip_size is \(3, 16, 16\), expected multiples of patch_size=\(2, 8, 8\)"),
        ({"image_size": 20}, r"clip_size is \(4, 20, 20\), expected multiples"),
    ],
)
def test_a_size_or_length_that_cannot_be_cut_is_refused_before_a_run(folders, tmp_path, change, said):
    hub.save(hub.from_transformers(folders["videomae"]), tmp_path / "video")
    tower, preprocess, pretrained = pick_tower(str(tmp_path / "video"), image_size=24, seconds=0.8)
    assert (preprocess.video.shape, pretrained) == ((3, 6, 24, 24), True)
    with pytest.raises(UserError, match=f"tower .*video: the preprocessing does not fit the tower: {said}"):
        pick_tower(str(tmp_path / "video"), **change)


def test_a_tower_of_the_other_kind_is_refused(folders):
    with pytest.raises(UserError, match="video tower .*: it is a AudioTower, expected VideoTower"):
        pick_video_tower(f"transformers:{folders['ast']}")
    with pytest.raises(UserError, match="no folder or preset 'videomai"):
        pick_video_tower("videomai_base")
