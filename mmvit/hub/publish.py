"""A saved model onto a hub, in one commit: its own files and nothing else, with a card that describes it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from mmvit.errors import need
from mmvit.hub.card import card_text, missing_facts
from mmvit.hub.folder import load, save
from mmvit.hub.remote import FILES, PREFIX, check_name, plain_errors

log = logging.getLogger(__name__)


def push(
    m: Any,
    repo_id: str,
    *,
    card: dict[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """The address of the commit that put the model onto a hub; `mmvit.load("hf-hub:" + repo_id)` reads it.

    Args:
        m: a folder of ours, or what `mmvit.load` or `hub.load` gave. A folder's README.md that was edited by
            hand goes out as it stands, unless `card` is given.
        repo_id: owner/name; made where it does not exist.
        card: facts added to the model's own, e.g. `{"license": "apache-2.0", "intended_use": "..."}`.
        private: whether a new repository is visible to its owner only.
        token: None = the one that `hf auth login` kept, or HF_TOKEN.
        revision: branch to commit to, made where it does not exist; None = main.
        message: of the commit.
        endpoint: address of the hub, None = HF_ENDPOINT or huggingface.co.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a damaged folder, no licence, or a name that is no owner/name.
        PermissionError: the hub refuses this token.
        ConnectionError: the hub cannot be reached or is broken.
    """
    check_name(repo_id)
    hub = need("huggingface_hub")
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(m, str | os.PathLike):
            files = _of_folder(Path(m), repo_id, card)
        else:
            facts = {**m.config.get("card", {}), **(card or {})}
            folder = Path(scratch) / repo_id.partition("/")[2]
            save(m.model, folder, preprocess=m.preprocess, tokenizer=m.tokenizer, card=facts)
            files = _of_folder(folder, repo_id, None)
        _check_card(files)
        operations = [hub.CommitOperationAdd(path_in_repo=n, path_or_fileobj=v) for n, v in files.items()]
        api = hub.HfApi(endpoint=endpoint, token=token)
        with plain_errors(repo_id, endpoint):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            done = api.create_commit(
                repo_id,
                operations,
                commit_message=message or f"mmvit model {_config(files)['fingerprint'][:16]}",
                revision=revision,
            )
    return str(done.commit_url)


def _of_folder(folder: Path, repo_id: str, card: dict[str, Any] | None) -> dict[str, str | bytes]:
    """Name in the repository -> path or content, of a folder that is whole."""
    loaded = load(folder)
    files: dict[str, str | bytes] = {n: str(folder / n) for n in FILES if (folder / n).is_file()}
    others = [p.name for p in folder.iterdir() if p.name not in files and p.name != "tokenizer"]
    if others:
        log.warning("%s: not sent, no part of the model: %s", folder, ", ".join(sorted(others)))
    config = loaded.config | {"card": {**loaded.config.get("card", {}), **(card or {})}}
    if card:
        files["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    written = card_text(folder.name, loaded.config, loaded.model).encode()
    if card or "README.md" not in files or _content(files, "README.md") == written:  # nobody edited it
        name, source = repo_id.partition("/")[2], PREFIX + repo_id
        files["README.md"] = card_text(name, config, loaded.model, source=source).encode()
    return files


def _check_card(files: dict[str, str | bytes]) -> None:
    """Nothing; what a reader would miss is logged.

    Raises:
        ValueError: no licence in the card's metadata.
    """
    missing = missing_facts(_config(files).get("card", {}))
    data = need("huggingface_hub").ModelCard(_content(files, "README.md").decode()).data
    if not data.get("license"):
        raise ValueError(
            'the card states no licence, so nobody may use the model: pass card={"license": "apache-2.0"} '
            "or another one"
        )
    missing = [fact for fact in missing if fact != "license"]
    if missing:
        log.warning('the card does not state %s: pass card={"%s": ...}', ", ".join(missing), missing[0])


def _config(files: dict[str, str | bytes]) -> dict[str, Any]:
    return json.loads(_content(files, "config.json"))


def _content(files: dict[str, str | bytes], name: str) -> bytes:
    value = files.get(name, b"")
    return value if isinstance(value, bytes) else Path(value).read_bytes()
