"""Runs recipes as processes of their own for the price of one start, on disks of a few megabytes.

Imports the recipes once and forks for every run; started below `unshare -m`, so that what it mounts is its
own and goes with it. Reads one JSON object a line from stdin, answers each with one:
  {"do": "run", "recipe": NAME, "words": […], "said": FILE, "setup": [[NAME, value] …]}   -> {"pid": N}
  {"do": "wait", "pid": N, "seconds": S}                 -> {"status": exit status, null when too late}
  {"do": "mount", "at": FOLDER, "options": "size=…"}, {"do": "read-only" | "umount", …}   -> {"error": 0}
setup: "capabilities" drops root's right to ignore file modes; "patience" is how many seconds storage may be
away and shared memory full.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READ_ONLY, REMOUNT, DETACH = 1, 32, 2
PARENT_DEATH_SIGNAL = 1
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
LIBC = ctypes.CDLL(None, use_errno=True)


def load(name):
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mount(at, options, flags=0):
    kind = b"tmpfs"
    done = LIBC.mount(kind, os.fsencode(at), kind, flags, options.encode())
    return {"error": ctypes.get_errno() if done else 0}


def obey_file_modes():
    """Root without the capabilities that let it read and write everything."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    LIBC.capget(header, data)
    for which in (0, 1, 2):
        data[which] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert LIBC.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def be(module, job):
    """Runs the recipe; never returns."""
    status = 1
    try:
        os.setsid()
        LIBC.prctl(PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)  # nobody outlives the tests
        sink = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(sink, stream)
        for name, value in job.get("setup", []):
            if name == "capabilities":
                obey_file_modes()
            elif name == "patience":
                importlib.import_module("mmvit.data.shards").ShardIndex.patience = value
                importlib.import_module("mmvit.data.workers").ROOM_PATIENCE = value
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


def wait(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main():
    modules = {name: load(name) for name in ("lit", "embed_shards", "owl")}
    for late in ("torch._dynamo", "yaml", "webdataset"):
        importlib.import_module(late)
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "run":
            answer = {"pid": os.fork()}
            if not answer["pid"]:
                be(modules[job["recipe"]], job)
        elif job["do"] == "wait":
            answer = {"status": wait(job["pid"], job["seconds"])}
        elif job["do"] == "umount":
            answer = {"error": ctypes.get_errno() if LIBC.umount2(os.fsencode(job["at"]), DETACH) else 0}
        else:
            answer = mount(job["at"], job["options"], REMOUNT | READ_ONLY if job["do"] == "read-only" else 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
