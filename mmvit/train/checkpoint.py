"""Checkpoints that are whole or absent: OUT/checkpoints/step-NNNNNNNN/, written aside, synced, then renamed.

model.safetensors   weights and buffers that training changes; locked ones only as a reference and a hash
average.safetensors the running mean of the weights, where there is one
state.pt            optimizer, random generators of every rank, meters; read with weights_only
manifest.json       step, samples seen, and every file's size and sha256, by which damage is recognised
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmvit.errors import UserError, refusal
from mmvit.train.freeze import fingerprint
from mmvit.train.log import LOGGER
from mmvit.train.manifest import damage, read_manifest, remove, steps, sync, write_manifest
from mmvit.train.meters import Meters
from mmvit.train.rng import capture_all, restore_all
from mmvit.train.sharded import full, like, shared_state
from mmvit.train.step import Engine

_REFUSED = (OSError, SafetensorError)  # what a full or failing disk raises


class Checkpoints:
    """Saves and resumes one run.

    Args:
        out: the run folder; checkpoints go below OUT/checkpoints.
        engine: the prepared parts.
        meters: saved along.
        keep: how many stay, the newest ones.
        references: locked module -> where its weights came from, to tell the user on a mismatch.
    """

    def __init__(
        self,
        out: Path,
        engine: Engine,
        meters: Meters,
        keep: int = 2,
        references: dict[str, str] | None = None,
    ):
        self.folder, self.engine, self.meters, self.keep = (
            Path(out) / "checkpoints",
            engine,
            meters,
            max(1, keep),
        )
        task, frozen = engine.task, engine.frozen
        alone = [n for n, v in frozen.multipliers.items() if v is None and not _inside(n, frozen.locked)]
        self.locked = {
            name: {"fingerprint": fingerprint(task, [name]), "from": (references or {}).get(name, "")}
            for name in [*frozen.locked, *alone]
        }
        self.saved_step = -1

    def save(self) -> Path:
        """Writes the checkpoint of the step just taken and returns its folder; every rank must call it.

        Raises:
            UserError: the disk refused; earlier checkpoints are untouched.
        """
        engine = self.engine
        target = self.folder / f"step-{engine.step:08d}"
        self.meters.share()
        ranks = gather_object([capture_all()])
        main, sharded = engine.accelerator.is_main_process, engine.accelerator.is_fsdp2
        content = self._content(ranks) if main or sharded else None  # shards are put together by all
        problem = None
        if main:
            try:
                self._write(target, content or {})
                self._prune()
            except _REFUSED as error:
                problem = (
                    f"could not write {target}: {refusal(error)}; earlier checkpoints are whole: make room, "
                    "and the same command goes on"
                )
        problem = broadcast_object_list([problem])[0]
        if problem:
            raise UserError(problem)
        self.saved_step = engine.step
        return target

    def resume(self, mode: str) -> Path | None:
        """Loads a checkpoint into the engine and returns its folder; None when there is none to load.

        Args:
            mode: "auto" = the newest whole one of this run folder; "never"; or a checkpoint's path.

        Raises:
            UserError: a given path is no whole checkpoint, or it does not fit this model.
        """
        if mode == "never":
            return None
        found: list[Any] = [None, None]
        if self.engine.accelerator.is_main_process:
            found = self._find(mode)
        path, problem = broadcast_object_list(found)
        if problem:
            raise UserError(problem)
        if path is None:
            return None
        self._read(Path(path))
        self.saved_step = self.engine.step
        return Path(path)

    def _content(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """What the checkpoint's files hold, on the CPU."""
        engine = self.engine
        scaler = engine.accelerator.scaler
        state = {
            "optimizer": _by_name(engine.optimizer),
            "ranks": ranks,
            "meters": self.meters.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        content = {"model.safetensors": _host(self._own_state()), "state.pt": state}
        if engine.average is not None:
            content["average.safetensors"] = _host(engine.average.state_dict())
        return content

    def _write(self, target: Path, content: dict[str, Any]) -> None:
        engine = self.engine
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".tmp-*"):
            remove(stale)
        temporary = self.folder / f".tmp-{target.name}"
        temporary.mkdir()
        try:
            for name, value in content.items():
                _store(value, temporary / name)
            facts = {
                "step": engine.step,
                "samples_seen": engine.samples_seen,
                "world_size": engine.accelerator.num_processes,
                "locked": self.locked,
            }
            write_manifest(temporary, facts)
            if target.exists():  # a damaged one of the same step, or one from before a rewind
                self._drop(target)
            temporary.rename(target)
            sync(self.folder)
        except _REFUSED:
            remove(temporary)
            raise

    def _prune(self) -> None:
        """Keeps the newest ones up to this step; what lies behind it is from before a rewind."""
        found = steps(self.folder)
        ahead = [path for path in found if int(path.name[5:]) > self.engine.step]
        if ahead:
            LOGGER.warning(
                f"dropping {len(ahead)} checkpoint(s) behind step {self.engine.step}: the run went back"
            )
        for old in ahead + [path for path in found if path not in ahead][: -self.keep]:
            self._drop(old)

    def _drop(self, old: Path) -> None:
        doomed = self.folder / f".tmp-old-{old.name}"  # renamed first: half-deleted must not look damaged
        remove(doomed)
        old.rename(doomed)
        remove(doomed)

    def _find(self, mode: str) -> list[Any]:
        """[path or None, problem or None]."""
        if mode != "auto":
            reason = damage(Path(mode))
            return [None, f"--resume {mode}: {reason}"] if reason else [mode, None]
        found = steps(self.folder)
        for path in reversed(found):
            reason = damage(path)
            if reason is None:
                return [str(path), None]
            then = "trying the one before it" if path != found[0] else "none is whole, the run begins anew"
            LOGGER.warning(f"checkpoint {path} is damaged ({reason}); {then}")
        return [None, None]

    def _read(self, path: Path) -> None:
        engine = self.engine
        manifest = read_manifest(path)
        self._match_locked(path, manifest["locked"])
        own = self._own_state()
        _fill(engine.task, own, load_file(path / "model.safetensors"), path)
        if engine.average is not None:
            if "average.safetensors" in manifest["files"]:
                engine.average.load_state_dict(load_file(path / "average.safetensors"))
            else:  # a run without --train.average goes on with it: the mean begins at the weights of now
                engine.average.restart()
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        _load_by_name(engine.optimizer, state["optimizer"])
        self.meters.load_state_dict(state["meters"])
        if engine.accelerator.scaler is not None and state["scaler"] is not None:
            engine.accelerator.scaler.load_state_dict(state["scaler"])
        engine.step, engine.samples_seen = manifest["step"], manifest["samples_seen"]
        rank, ranks = engine.accelerator.process_index, state["ranks"]
        if len(ranks) != engine.accelerator.num_processes:
            LOGGER.warning(
                f"the checkpoint was made by {len(ranks)} processes, now there are "
                f"{engine.accelerator.num_processes}: data go on exactly, dropout and other draws do not"
            )
        if rank < len(ranks):  # a rank that is new keeps the draws of its own seed
            restore_all(ranks[rank])

    def _own_state(self) -> dict[str, Tensor]:
        locked = self.engine.frozen.is_locked
        return {name: value for name, value in self.engine.task.state_dict().items() if not locked(name)}

    def _match_locked(self, path: Path, saved: dict[str, dict[str, str]]) -> None:
        if set(saved) != set(self.locked):
            raise UserError(
                f"{path} was trained with {sorted(saved) or 'nothing'} locked, this run locks "
                f"{sorted(self.locked) or 'nothing'}: use the same --model.frozen, --model.lock"
            )
        for name, entry in saved.items():
            if entry["fingerprint"] != self.locked[name]["fingerprint"]:
                raise UserError(
                    f"the locked weights '{name}' are not those that {path} was trained with "
                    f"(then from '{entry['from']}', fingerprint {entry['fingerprint'][:12]}; now from "
                    f"'{self.locked[name]['from']}', {self.locked[name]['fingerprint'][:12]})"
                )


def _inside(name: str, roots: tuple[str, ...]) -> bool:
    return any(name.startswith(root + ".") for root in roots)


def _store(value: Any, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(value, path)
        return
    with path.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # of closing its archive, after the system's refusal
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _host(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies; names that share memory get their own copy, as safetensors wants it."""
    return {name: full(value.detach()).to("cpu", copy=True).contiguous() for name, value in state.items()}


def _by_name(optimizer: Any) -> dict[str, dict[str, Any]]:
    """Optimizer state by parameter name, so that regrouping does not shift it; whole tensors on the CPU."""
    found = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = shared_state(parameter, optimizer.state[parameter])
            found[name] = {k: full(v).cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
    return found


def _load_by_name(optimizer: Any, saved: dict[str, dict[str, Any]]) -> None:
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            if name not in saved:
                raise UserError(
                    f"the checkpoint has no optimizer state for '{name}': same model, same --model.frozen, "
                    "--model.lock?"
                )
            # Not load_state_dict: it would cast a bfloat16 momentum to the parameter's type.
            optimizer.state[p] = {
                k: like(v, p) if isinstance(v, Tensor) else v for k, v in saved[name].items()
            }


@torch.no_grad()
def _fill(task: nn.Module, own: dict[str, Tensor], saved: dict[str, Tensor], path: Path) -> None:
    wrong = sorted(set(own) ^ set(saved)) or [n for n in own if own[n].shape != saved[n].shape]
    if wrong:
        raise UserError(f"{path} holds another model: {len(wrong)} weights do not fit, first '{wrong[0]}'")
    for name, value in saved.items():
        own[name].copy_(like(value, own[name]))
