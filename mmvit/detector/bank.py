"""Queries that were embedded once and are kept: names, embeddings, kinds; in memory or as a folder.

Shape letters: C queries, T prompts a query, E embedding width.
The folder: bank.json (names, kinds, templates, fingerprints) and embeddings.safetensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from mmvit.errors import nearest
from mmvit.hub.convert.files.read import read_safetensors
from mmvit.hub.fingerprint import weights_fingerprint
from mmvit.hub.whole import whole_folder

Ensemble = Literal["embed", "logit", "prob"]
ENSEMBLES: tuple[str, ...] = ("embed", "logit", "prob")
_FORMAT, _SCHEMA = "mmvit-queries", 1
_FACTS = ("names", "kinds", "templates", "ensemble", "text_fingerprint", "model_fingerprint")


@dataclass(frozen=True, slots=True)
class QueryBank:
    """C queries with their embeddings, on the CPU.

    An index (number, slice, name, list of numbers or names) gives the chosen queries, `a + b` both banks.

    Attributes:
        names: C names, not necessarily different.
        embeddings: (C,T,E) float32, not normalised; scoring sees directions only.
        kinds: C times "text" or "image".
        templates: what the names were put into, () for pictures.
        ensemble: what is averaged over the T prompts when scoring: "logit" or "prob"; "embed" has T = 1.
        text_fingerprint: of the text tower and tokenizer; image queries live in its space too.
        model_fingerprint: of the whole detector that embedded image queries, None without such.
    """

    names: tuple[str, ...]
    embeddings: Tensor
    kinds: tuple[str, ...]
    templates: tuple[str, ...]
    ensemble: Ensemble
    text_fingerprint: str
    model_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int | str | slice | Sequence[int | str]) -> QueryBank:
        rows = self.rows(range(len(self))[index] if isinstance(index, slice) else index)
        kinds = tuple(self.kinds[i] for i in rows)
        return replace(
            self,
            names=tuple(self.names[i] for i in rows),
            embeddings=self.embeddings[rows],
            kinds=kinds,
            model_fingerprint=self.model_fingerprint if "image" in kinds else None,
        )

    def __add__(self, other: QueryBank) -> QueryBank:
        if self.text_fingerprint != other.text_fingerprint or self.embed_dim != other.embed_dim:
            raise ValueError("these banks were made by different text towers: embed the queries with one")
        models = {f for f in (self.model_fingerprint, other.model_fingerprint) if f is not None}
        if len(models) > 1:
            raise ValueError("the image queries of these banks were made by different detectors")
        prompts, ensemble = _common(self, other)
        rows = [bank.embeddings.expand(-1, prompts, -1) for bank in (self, other)]
        return replace(
            self,
            names=self.names + other.names,
            embeddings=torch.cat(rows),
            kinds=self.kinds + other.kinds,
            templates=tuple(dict.fromkeys(self.templates + other.templates)),
            ensemble=ensemble,
            model_fingerprint=models.pop() if models else None,
        )

    @property
    def embed_dim(self) -> int:
        """E, the width of the embeddings."""
        return self.embeddings.shape[-1]

    @property
    def prompts(self) -> int:
        """T, how many prompts ask for the same query."""
        return self.embeddings.shape[1]

    def rows(self, wanted: int | str | Sequence[int | str]) -> list[int]:
        """Numbers of the wanted queries.

        Args:
            wanted: numbers (negative ones from the end) and names, or one of them.

        Raises:
            ValueError: an unknown name, or one that stands for several queries.
            IndexError: a number that is not there.
        """
        found = []
        for item in [wanted] if isinstance(wanted, int | str) else wanted:
            if isinstance(item, str):
                places = [i for i, name in enumerate(self.names) if name == item]
                if not places:
                    raise ValueError(
                        f"no query {item!r} in the bank: {nearest(item, dict.fromkeys(self.names))}"
                    )
                if len(places) > 1:
                    raise ValueError(
                        f"{item!r} names {len(places)} queries: give the number, one of {places}"
                    )
                found.append(places[0])
            else:
                found.append(range(len(self))[int(item)])
        return found

    def merged(self) -> QueryBank:
        """One query a name, in order of first appearance: the mean of all that carry it, each with length 1.

        Texts and pictures of the same thing become one query; their embeddings differ in length.
        """
        places: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            places.setdefault(name, []).append(i)
        unit = normalize(self.embeddings, dim=-1)
        means = [unit[rows].mean(dim=0) for rows in places.values()]
        kinds = ["image" if "image" in {self.kinds[i] for i in rows} else "text" for rows in places.values()]
        return replace(
            self,
            names=tuple(places),
            embeddings=torch.stack(means) if means else self.embeddings,
            kinds=tuple(kinds),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Nothing; writes the folder `path`, whole or not at all, replacing a bank that is there.

        Raises:
            FileExistsError: `path` holds something that is not a query bank.
            OSError: the disk refused.
        """
        path = Path(path)
        if path.exists() and not (path / "bank.json").is_file() and (path.is_file() or any(path.iterdir())):
            raise FileExistsError(f"'{path}' exists and is no query bank: choose another folder")
        state = {"embeddings": self.embeddings.float().contiguous()}
        record = {
            "format": _FORMAT,
            "schema_version": _SCHEMA,
            **{name: getattr(self, name) for name in _FACTS},
        }
        record["embeddings_fingerprint"] = weights_fingerprint(state)
        with whole_folder(path) as half:
            save_file(state, half / "embeddings.safetensors")
            (half / "embeddings.safetensors").chmod(0o644)
            text = json.dumps(record, ensure_ascii=False, indent=1)
            (half / "bank.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QueryBank:
        """The bank that `save` wrote.

        Raises:
            FileNotFoundError: no such folder or file.
            ValueError: a damaged file, or one that something else wrote.
        """
        file = Path(path) / "bank.json"
        if not file.is_file():
            raise FileNotFoundError(f"'{path}' holds no query bank: {file.name} is missing")
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"'{file}' is not valid JSON: {error}") from None
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise ValueError(f"'{file}' is no query bank: expected format {_FORMAT!r}")
        if record.get("schema_version") != _SCHEMA:
            version = record.get("schema_version")
            raise ValueError(
                f"'{file}' has schema_version {version}, this mmvit reads {_SCHEMA}: update mmvit"
            )
        state = read_safetensors(Path(path) / "embeddings.safetensors")
        if weights_fingerprint(state) != record.get("embeddings_fingerprint"):
            raise ValueError(f"'{path}': the embeddings are not those of bank.json: make the bank again")
        return _from_record(record, state.get("embeddings", torch.zeros(0)), file)


def _from_record(record: dict[str, Any], embeddings: Tensor, file: Path) -> QueryBank:
    """The bank of a bank.json that has been parsed."""
    if missing := [name for name in _FACTS if name not in record]:
        raise ValueError(f"'{file}': {missing[0]!r} is missing")
    lists = {name: record[name] for name in ("names", "kinds", "templates")}
    texts = [record["text_fingerprint"], *([m] if (m := record["model_fingerprint"]) is not None else [])]
    good = (
        all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in lists.values())
        and all(isinstance(text, str) for text in texts)
        and embeddings.ndim == 3
        and len(lists["names"]) == len(lists["kinds"]) == len(embeddings)
        and set(lists["kinds"]) <= {"text", "image"}
        and record["ensemble"] in ENSEMBLES
    )
    if not good:
        raise ValueError(
            f"'{file}' contradicts itself or its embeddings {tuple(embeddings.shape)}: make it again"
        )
    return QueryBank(
        embeddings=embeddings,
        ensemble=record["ensemble"],
        text_fingerprint=record["text_fingerprint"],
        model_fingerprint=record["model_fingerprint"],
        **{name: tuple(names) for name, names in lists.items()},
    )


def check_bank(bank: Any, embed_dim: int, text_fingerprint: str, model_fingerprint: str) -> None:
    """Nothing; ValueError for a bank that the detector of this width and these fingerprints cannot use."""
    if not isinstance(bank, QueryBank):
        raise ValueError(f"bank is a {type(bank).__name__}, expected a QueryBank (encode_queries makes one)")
    if bank.embed_dim != embed_dim or bank.text_fingerprint != text_fingerprint:
        raise ValueError(
            f"this bank is of another text tower ({bank.text_fingerprint[:12]}, E={bank.embed_dim}) than "
            f"this detector ({text_fingerprint[:12]}, E={embed_dim}): embed the queries again"
        )
    if bank.model_fingerprint not in (None, model_fingerprint):
        raise ValueError("this bank has image queries of another detector: embed the examples again")


def no_queries(embed_dim: int, text_fingerprint: str) -> QueryBank:
    """A bank without queries."""
    return QueryBank((), torch.zeros(0, 1, embed_dim), (), (), "embed", text_fingerprint)


def _common(a: QueryBank, b: QueryBank) -> tuple[int, Ensemble]:
    """Prompts a query and ensemble of two banks together; a single prompt may be repeated."""
    if a.prompts == 1 or b.prompts == 1:
        longer = a if a.prompts > 1 else b
        return longer.prompts, longer.ensemble if longer.prompts > 1 else a.ensemble
    if (a.prompts, a.ensemble) != (b.prompts, b.ensemble):
        raise ValueError(
            f"these banks hold {a.prompts} prompts a query for ensemble={a.ensemble!r} and {b.prompts} for "
            f"{b.ensemble!r}: embed one of them as the other, or with ensemble='embed'"
        )
    return a.prompts, a.ensemble
