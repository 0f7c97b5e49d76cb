"""A model goes onto a hub and comes back the same; the card is honest and valid; refusals are one line.

The hub is a stand-in on this machine that speaks what huggingface_hub sends (tests/hub/stand_in.py).
"""

import json
import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import mmvit
from mmvit import hub
from mmvit.data.image import ImagePreprocess
from mmvit.data.text import WordPieceTokenizer
from mmvit.hub import card
from mmvit.hub.card import card_text, missing_facts
from mmvit.hub.plain import KINDS, to_plain
from mmvit.hub.remote import fetch
from mmvit.models.config import (
    ClassifierConfig,
    CoreConfig,
    DualEncoderConfig,
    ImageTowerConfig,
    TextTowerConfig,
)
from mmvit.models.presets import build_model
from tests.hub import stand_in

CORE = CoreConfig(width=16, depth=1, num_heads=2, mlp_dim=32)
IMAGE = ImageTowerConfig(core=CORE, image_size=(16, 16), patch_size=8)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fox", "violin"]
PAIR = DualEncoderConfig(
    image=IMAGE, text=TextTowerConfig(core=CORE, vocab_size=len(WORDS), context_length=8, embed_dim=16)
)
FACTS = {
    "license": "apache-2.0",
    "data": ["toy/words"],
    "metrics": {"acc1": 0.25},
    "intended_use": "Telling foxes from violins.",
    "limitations": "Knows two words.",
}


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """A running stand-in that huggingface_hub takes for the hub, with an empty cache."""
    running, server = stand_in.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # xet has servers of its own; lfs is plain
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield running
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    tokenizer = WordPieceTokenizer("\n".join(WORDS).encode(), context_length=8)
    pictures = ImagePreprocess(size=(16, 16))
    hub.save(build_model(PAIR), tmp_path / "model", preprocess=pictures, tokenizer=tokenizer, card=FACTS)
    return tmp_path / "model"


def push(m, name="ada/fox", **arguments) -> str:
    return hub.push(m, name, **({"token": stand_in.TOKEN} | arguments))


def test_there_and_back(folder, remote) -> None:
    url = push(folder, endpoint=remote.endpoint, message="first")
    assert url.startswith(f"{remote.endpoint}/ada/fox/commit/")
    assert remote.messages == ["first"]
    back = mmvit.load("hf-hub:ada/fox")
    ours = mmvit.load(folder)
    assert back.fingerprint == ours.fingerprint
    assert back.tokenizer.fingerprint() == ours.tokenizer.fingerprint()
    assert torch.equal(back.encode(text=["a fox"]), ours.encode(text=["a fox"]))
    assert hub.load("hf-hub:ada/fox@main").fingerprint == ours.fingerprint
    tower, preprocess = hub.load_image_tower("hf-hub:ada/fox")
    assert torch.equal(tower.pos_embed, ours.model.image.pos_embed)
    assert preprocess == ours.preprocess


def test_nothing_but_the_model_is_sent_in_one_commit(folder, remote, caplog) -> None:
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / ".model.half-abc").mkdir()
    (folder / ".model.half-abc" / "model.safetensors").write_bytes(b"x")
    (folder / "tokenizer" / "notes.txt").write_text("private")
    push(folder)
    sent = remote.repos["ada/fox"]["main"]
    assert sorted(sent) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocess.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]
    assert sent["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert sum("/commit/" in r for r in remote.requests) == 1
    assert "not sent, no part of the model: .model.half-abc, optimizer.pt" in caplog.text
    assert b'mmvit.load("hf-hub:ada/fox")' in sent["README.md"]


def test_what_a_repository_holds_besides_is_not_fetched(folder, remote) -> None:
    push(folder)
    remote.repos["ada/fox"]["main"] |= {"pytorch_model.bin": b"evil", "tokenizer/setup.py": b"evil"}
    path = fetch("hf-hub:ada/fox")
    assert not [p for p in path.rglob("*") if p.is_file() and p.read_bytes() == b"evil"]
    assert hub.load(path).fingerprint == hub.load(folder).fingerprint


def test_a_loaded_model_with_more_facts_and_a_branch(folder, remote) -> None:
    push(folder)
    push(mmvit.load(folder), card={"license": "mit"}, revision="second", private=True)
    assert json.loads(remote.repos["ada/fox"]["second"]["config.json"])["card"] == FACTS | {"license": "mit"}
    assert b"license: apache-2.0" in remote.repos["ada/fox"]["main"]["README.md"]
    assert b"license: mit" in remote.repos["ada/fox"]["second"]["README.md"]
    assert hub.load("hf-hub:ada/fox@second").fingerprint == hub.load(folder).fingerprint


def test_a_card_written_by_hand_goes_out_as_it_stands(folder, remote) -> None:
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("Telling foxes from violins.", "Nothing at all."))
    push(folder)
    assert b"Nothing at all." in remote.repos["ada/fox"]["main"]["README.md"]
    push(folder, card={"license": "mit"})
    assert b"Telling foxes" in remote.repos["ada/fox"]["main"]["README.md"]


def test_private_repositories_are_seen_with_the_token_only(folder, remote) -> None:
    push(folder, private=True)
    assert fetch("hf-hub:ada/fox", token=stand_in.TOKEN).is_dir()
    with pytest.raises(FileNotFoundError, match="has no 'ada/hidden', or hides it from this token"):
        fetch("hf-hub:ada/hidden")


def test_a_model_without_licence_is_not_published(folder, remote) -> None:
    ours = hub.load(folder)
    parts = {"preprocess": ours.preprocess, "tokenizer": ours.tokenizer}
    hub.save(ours.model, folder, **parts)
    with pytest.raises(ValueError, match=r'states no licence.*card=\{"license": "apache-2.0"\}'):
        push(folder)
    assert not remote.requests, "the hub must not hear of it"


def test_a_damaged_folder_is_not_published(folder, remote) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        push(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        push(folder)
    assert not remote.requests


def test_missing_facts_are_named_and_not_invented(folder, remote, caplog) -> None:
    ours = hub.load(folder)
    parts = {"preprocess": ours.preprocess, "tokenizer": ours.tokenizer}
    hub.save(ours.model, folder, **parts, card={"license": "mit"})
    push(folder)
    assert 'does not state data, metrics, intended_use, limitations: pass card={"data": ...}' in caplog.text
    text = remote.repos["ada/fox"]["main"]["README.md"].decode()
    for line in ("No metrics were recorded.", "- data: not stated", "- None were stated. Measure it"):
        assert line in text
    assert "- It reads at most 8 tokens of a text" in text
    assert "- It sees pictures at 16x16 pixels" in text


REFUSALS = {
    "wrong token": ({"token": "hf_wrong"}, {}, PermissionError, "refuses this token for 'ada/fox': run `hf"),
    "not mine": ({"name": "stranger/fox"}, {}, PermissionError, "may not do that to 'stranger/fox'"),
    "broken hub": ({}, {"repos/create": 500}, ConnectionError, "answered 500 for 'ada/fox': .*disk of the"),
    "gone": ({}, {"preupload": 404}, FileNotFoundError, "has no 'ada/fox', or hides it"),
    "no name": ({"name": "fox"}, {}, ValueError, "'fox' is no repository: expected owner/name"),
    "a path": ({"name": "../fox"}, {}, ValueError, "'../fox' is no repository"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_line(case, folder, remote) -> None:
    arguments, remote.refuse, kind, message = REFUSALS[case]
    with pytest.raises(kind, match=message) as caught:
        push(folder, **arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or kind is ValueError


def nowhere() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_nobody_there(folder, remote) -> None:
    with pytest.raises(ConnectionError, match="cannot reach http://127.0.0.1:.*onnection refused"):
        push(folder, endpoint=nowhere())
    with pytest.raises(ConnectionError, match="cannot reach .* 'ada/fox', which is not in the local cache"):
        fetch("hf-hub:ada/fox", endpoint=nowhere())
    with pytest.raises(ValueError, match="'fox' is no repository"):
        mmvit.load("hf-hub:fox")


def test_offline_means_the_cache_and_nothing_else(folder, remote, monkeypatch) -> None:
    push(folder)
    mmvit.load("hf-hub:ada/fox")
    remote.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert mmvit.load("hf-hub:ada/fox").fingerprint == mmvit.load(folder).fingerprint
    with pytest.raises(FileNotFoundError, match="not in the local cache and HF_HUB_OFFLINE is set"):
        mmvit.load("hf-hub:ada/other")
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set: unset it"):
        push(folder)
    assert not remote.requests


def test_unknown_models_and_revisions(folder, remote) -> None:
    push(folder)
    with pytest.raises(FileNotFoundError, match="has no 'ada/other', or hides it"):
        mmvit.load("hf-hub:ada/other")
    with pytest.raises(FileNotFoundError, match="'ada/fox' has no such revision"):
        mmvit.load("hf-hub:ada/fox@nonsense")


def described(kind: str, config, facts: dict) -> str:
    model = build_model(config)
    plain = {"kind": kind, "model": to_plain(config), "card": facts, "fingerprint": "f" * 64}
    return card_text("fox: model", plain, model)


def test_the_metadata_is_what_hubs_read() -> None:
    facts = FACTS | {"evaluated_on": "Toy words (test)", "base_models": ["a/b", "../runs/x y", "null"]}
    made = huggingface_hub.ModelCard(described("dual_encoder", PAIR, facts))
    data = made.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["toy/words"]
    assert data["base_model"] == ["a/b", "null"], "what can be no repository stays in the text"
    (result,) = made.data.eval_results
    assert (result.metric_name, result.metric_value) == ("acc1", 0.25)
    assert (result.dataset_name, result.dataset_type) == ("Toy words (test)", "toy_words_test")
    assert result.task_type == "zero-shot-image-classification"
    assert "../runs/x y" in made.text
    other = huggingface_hub.ModelCard(described("dual_encoder", PAIR, {"license": "My own: see LICENSE"}))
    assert other.data.to_dict()["license"] == "other"
    assert other.data.to_dict()["license_name"] == "My own: see LICENSE"
    assert "model-index" not in other.content


def test_every_kind_that_can_be_saved_has_a_card() -> None:
    for table in (card._PIPELINES, card._KIND, card._INTENDED, card._USE):
        assert set(table) == {*KINDS, "video_pair", "audio_pair"}, (
            "pairs that hold no pictures have their own"
        )


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("image_tower", IMAGE),
        ("text_tower", PAIR.text),
        ("dual_encoder", PAIR),
        ("image_classifier", ClassifierConfig(tower=IMAGE, num_classes=3)),
    ],
)
def test_every_kind_has_every_section(kind, config) -> None:
    text = described(kind, config, {})
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Use", "Intended use", "Limitations", "Measured", "Training data", "Licence", "Facts"]
    assert ("tokens of a text" in text) == (kind in ("text_tower", "dual_encoder"))
    assert ("16x16 pixels" in text) == (kind != "text_tower")
    assert huggingface_hub.ModelCard(text).data.library_name == "mmvit"
    assert missing_facts({}) == ["license", "data", "metrics", "intended_use", "limitations"]
