"""Runs recipes many times for the price of one start: imports each once, forks a process for each rank.

Reads one JSON object a line from stdin and answers each with {"status": [exit status of each rank]}:
  recipe  its name, as in recipes/NAME.py
  words   the command line
  world   ranks (gloo)
  environment   more variables
  log     file that gets what the ranks print
  keys    file that gets a line for each step of each rank: rank, position, keys; or nothing
  kill    how a rank ends: {"after": seconds}, or {"at": WHAT, "count": n}: it kills itself the n-th time that
          WHAT is about to happen; {"rank": 1} says which one, {"signal": "SIGTERM"} sends another signal,
          {"group": true} to its data workers too, as a terminal and torchrun do; {"error": text} raises it
WHAT is "call MODULE:NAME", or "event NAME PATTERN": an audit event of Python one of whose arguments matches.
"""

import contextlib
import ctypes
import faulthandler
import functools
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from mmvit.errors import UserError

LIMIT = 90.0  # seconds that a run may take
LATE = {  # what runs import on their way
    "classify": ("torch._dynamo", "yaml", "av", "soundfile"),
    "lit": ("torch._dynamo", "yaml"),
    "owl": ("torch._dynamo", "yaml", "scipy.optimize", "open_clip", "faster_coco_eval.core.faster_eval_api"),
    "vatt": ("torch._dynamo", "yaml", "av", "soundfile", "torchaudio"),
}


@functools.cache
def load(name):
    path = Path(__file__).resolve().parents[2] / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for late in LATE[name]:
        importlib.import_module(late)
    return module


def end(pid, kill):
    if "error" in kill:
        raise UserError(kill["error"])
    send = os.killpg if kill.get("group") else os.kill
    send(pid, getattr(signal, kill.get("signal", "SIGKILL")))


def arm(kill):
    """Makes this process end itself at a moment."""
    left, own = [kill.get("count", 1)], os.getpid()

    def happens():
        if os.getpid() == own:  # data workers inherit this
            left[0] -= 1
            if left[0] == 0:
                end(own, kill)

    kind, what, *pattern = kill["at"].split(" ", 2)
    if kind == "event":
        wanted = re.compile(pattern[0])

        def hook(name, arguments):
            if name == what and any(
                isinstance(a, str | os.PathLike) and wanted.search(str(a)) for a in arguments
            ):
                happens()

        sys.addaudithook(hook)
        return
    module, _, names = what.partition(":")
    owner = importlib.import_module(module)
    *path, name = names.split(".")
    for part in path:
        owner = getattr(owner, part)
    inner = getattr(owner, name)

    def wrapped(*args, **kwargs):
        happens()
        return inner(*args, **kwargs)

    setattr(owner, name, wrapped)


def note_keys(module, file, rank):
    """Every step writes down what it was given."""
    inner = module.train_step

    def step(engine, batch):
        values = inner(engine, batch)
        line = {"rank": rank, "step": engine.step, "position": batch.position, "keys": batch.keys}
        with open(file, "a") as out:
            out.write(json.dumps(line) + "\n")
        return values

    module.train_step = step


def be(module, job, rank, port):
    """Runs the recipe as one rank; never returns."""
    status = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG: nobody outlives the test
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable()
        sink = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(sink, stream)
        os.environ |= job["environment"]
        if job["world"] > 1:
            facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["world"], "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in facts.items()}
            os.environ |= {"LOCAL_WORLD_SIZE": str(job["world"]), "MASTER_ADDR": "127.0.0.1"}
        if job.get("keys"):
            note_keys(module, job["keys"], rank)
        kill = job.get("kill") or {}
        if "at" in kill and kill.get("rank", 0) == rank:
            arm(kill)
        sys.argv = [f"recipes/{job['recipe']}.py", *job["words"]]
        module.command()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def free_port():
    """A port for ranks to meet at, below those that the system gives away by itself.

    One of those could become the end of anybody's outgoing connection before the first rank listens.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    stop = int(given.read_text().split()[0]) if given.exists() else 32768
    while True:
        port = random.SystemRandom().randrange(10_000, max(10_100, stop))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def too_late(pid):
    """Ends a rank; the log shows where it waited."""
    os.kill(pid, signal.SIGABRT)
    end = time.monotonic() + 5
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            end += 60
        time.sleep(0.05)


def run(module, job):
    port, pids = free_port(), []
    for rank in range(job["world"]):
        pid = os.fork()
        if pid == 0:
            be(module, job, rank, port)
        pids.append(pid)
    kill, began, status = job.get("kill") or {}, time.monotonic(), {}
    while len(status) < len(pids):
        for rank, pid in enumerate(pids):
            if rank not in status and (found := os.waitpid(pid, os.WNOHANG))[0]:
                status[rank] = os.waitstatus_to_exitcode(found[1])
        passed = time.monotonic() - began
        if "after" in kill and passed > kill["after"] and kill.get("rank", 0) not in status:
            end(pids[kill.get("rank", 0)], kill)
            kill = {}
        if passed > LIMIT:
            for rank, pid in enumerate(pids):
                if rank not in status:
                    too_late(pid)
                    status[rank] = "too late"
        time.sleep(0.005)
    return {"status": [status[rank] for rank in range(job["world"])]}


def main():
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(run(load(job["recipe"]), job)), flush=True)


if __name__ == "__main__":
    main()
