"""A hub of models over the network: fetching a saved model by its name, and what its refusals mean.

Uses huggingface_hub, which reads HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmvit.errors import need

PREFIX = "hf-hub:"
# All that a saved model consists of; nothing else is fetched or sent.
FILES = (
    "config.json",
    "model.safetensors",
    "preprocess.json",
    "README.md",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/sentencepiece.model",
)


def fetch(spec: str, *, token: str | None = None, endpoint: str | None = None) -> Path:
    """The folder in the local cache that holds a hub's model, fetched where it is not there yet.

    Args:
        spec: "hf-hub:owner/name", or "hf-hub:owner/name@revision" for a branch, tag or commit.
        token: None = the one that `hf auth login` kept, or HF_TOKEN.
        endpoint: address of the hub, None = HF_ENDPOINT or huggingface.co.

    Raises:
        ValueError: not the name of a repository.
        FileNotFoundError: no such repository or revision, or offline and not in the cache.
        PermissionError: the hub refuses this token.
        ConnectionError: the hub cannot be reached or is broken.
    """
    name, _, revision = spec.removeprefix(PREFIX).partition("@")
    check_name(name)
    hub = need("huggingface_hub")
    with plain_errors(name, endpoint):
        return Path(
            hub.snapshot_download(
                name,
                revision=revision or None,
                token=token,
                endpoint=endpoint,
                allow_patterns=list(FILES),
            )
        )


def check_name(name: str) -> None:
    """Nothing; raises ValueError when `name` is not owner/name."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise ValueError(f"'{name}' is no repository: expected owner/name, e.g. ada/lit-small")


@contextmanager
def plain_errors(name: str, endpoint: str | None) -> Iterator[None]:
    """Turns the hub's refusals inside the block into one line each, see `fetch` for the classes."""
    errors, constants = need("huggingface_hub.errors"), need("huggingface_hub.constants")
    where = endpoint or constants.ENDPOINT
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ConnectionError(f"HF_HUB_OFFLINE is set: unset it to talk to {where}") from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"'{name}' has no such revision at {where}") from None
    except errors.HfHubHTTPError as error:
        raise _refused(error, name, where) from None
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, errors.HfHubHTTPError):
            raise _refused(cause, name, where) from None
        if constants.HF_HUB_OFFLINE or isinstance(cause, errors.OfflineModeIsEnabled):
            raise FileNotFoundError(
                f"'{name}' is not in the local cache and HF_HUB_OFFLINE is set: unset it to fetch it once"
            ) from None
        raise ConnectionError(f"cannot reach {where} for '{name}', which is not in the local cache") from None
    except errors.HTTPError as error:  # no answer at all
        raise ConnectionError(f"cannot reach {where}: {' '.join(str(error).split())[:200]}") from None


def _refused(error: OSError, name: str, where: str) -> OSError:
    """What an answer of the hub means for the one who asked."""
    status: int = error.response.status_code  # type: ignore[attr-defined]
    if status == 401:
        return PermissionError(
            f"{where} refuses this token for '{name}': run `hf auth login`, or pass token="
        )
    if status == 403:
        return PermissionError(f"{where}: this token may not do that to '{name}': use one with write access")
    if status == 404:
        return FileNotFoundError(f"{where} has no '{name}', or hides it from this token")
    said = getattr(error, "server_message", None) or str(error)
    return ConnectionError(f"{where} answered {status} for '{name}': {' '.join(said.split())[:200]}")
