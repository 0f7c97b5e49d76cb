"""The launch lines: what Accelerate makes of each file; real starts, stops and refusals of what runs here."""

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmvit.options import option_names
from tests.recipes.forked_runs import free_port

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
BIN = Path(sys.executable).parent


def options(corpus, out, *more):
    base = {
        "--preset": "tiny",
        "--data.train": corpus / "train",
        "--model.tokenizer": corpus / "tokenizer",
        "--out": out,
        "--train.batch-size": 12,
        "--train.precision": "fp32",
        "--train.threads": 1,
        "--train.steps": 2,
    }
    base |= dict(zip(more[::2], more[1::2], strict=True))
    return [str(word) for pair in base.items() for word in pair]


@pytest.fixture
def launch(monkeypatch):
    """launch(*words) -> what `accelerate launch` would start: (torchrun's arguments or None, environment)."""
    from accelerate.commands import launch as module
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env
    from torch.distributed import run as torchrun

    before = dict(os.environ)

    def read(*words):
        caught = []

        def simple(args):
            caught.append((None, prepare_simple_launcher_cmd_env(args)[1]))

        monkeypatch.setattr(module, "simple_launcher", simple)
        monkeypatch.setattr(torchrun, "run", lambda args: caught.append((args, dict(os.environ))))
        parser = module.launch_command_parser()
        module.launch_command(parser.parse_args([*map(str, words), "recipes/lit.py"]))
        ((arguments, environment),) = caught
        return arguments, {k: v for k, v in environment.items() if before.get(k) != v}

    return read


@pytest.mark.parametrize("name", ["cpu", "1gpu"])
def test_files_of_one_process(launch, name):
    arguments, environment = launch("--config_file", FOLDER / f"{name}.yaml")
    assert arguments is None, "no torchrun"
    assert environment["ACCELERATE_USE_CPU"] == str(name == "cpu")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert environment.get("CUDA_VISIBLE_DEVICES") == (None if name == "cpu" else "0")
    assert "MASTER_ADDR" not in environment


ANY_PORT = ("--main_process_port", 0)


@pytest.mark.parametrize(
    ("name", "more", "processes", "nodes"),
    [
        ("2cpu", ANY_PORT, 2, "1:1"),
        ("8gpu_ddp", ANY_PORT, 8, "1:1"),
        ("8gpu_fsdp2", ANY_PORT, 8, "1:1"),
        ("2nodes", ("--machine_rank", 1, "--main_process_ip", "10.0.0.7"), 8, "2"),
    ],
)
def test_files_of_several_processes(launch, name, more, processes, nodes):
    arguments, environment = launch("--config_file", FOLDER / f"{name}.yaml", *more)
    assert int(arguments.nproc_per_node) == processes
    assert arguments.nnodes == nodes
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    sharded = {k: v.lower() for k, v in environment.items() if k.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
    if name == "8gpu_fsdp2":
        wanted = {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "transformer_based_wrap",
            "FSDP_TRANSFORMER_CLS_TO_WRAP": "block",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
            "FSDP_OFFLOAD_PARAMS": "false",
            "FSDP_STATE_DICT_TYPE": "full_state_dict",
        }
        assert sharded.items() >= wanted.items()
    else:
        assert not sharded
    if name == "2nodes":
        assert (arguments.node_rank, arguments.rdzv_endpoint) == (1, "10.0.0.7:29500")
        assert arguments.rdzv_backend == "static"


def test_every_file_is_read_here():
    names = {"cpu", "2cpu", "1gpu", "8gpu_ddp", "8gpu_fsdp2", "2nodes"}
    assert {p.stem for p in FOLDER.glob("*.yaml")} == names
    for name in names:
        first = (FOLDER / f"{name}.yaml").read_text()
        assert f"recipes/accelerate/{name}.yaml" in first, "each file shows its line"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.stem)
def test_the_lines_in_the_headers_name_what_there_is(path):
    spec = importlib.util.spec_from_file_location(f"header_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    lines = [line.split() for line in module.__doc__.splitlines() if f"recipes/{path.name} " in line]
    assert len(lines) >= 2
    for words in lines:
        own = words[words.index(f"recipes/{path.name}") :]
        assert {word for word in own if word.startswith("--")} <= set(option_names(module.Config))
        for option, value in itertools.pairwise(words):
            assert option != "--preset" or value in module.PRESETS
            assert option != "--config_file" or (ROOT / value).exists()


MULTI_CPU = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: "no"
"""


@pytest.mark.parametrize("kind", ["option", "file"])
def test_lines_that_start_one_process_for_two_are_refused(launch, corpus, tmp_path, forked, kind):
    """The recipe in the environment that accelerate really makes, and the line that it names instead."""
    words = ["--cpu", "--num_processes", 2]
    if kind == "file":
        (tmp_path / "two.yaml").write_text(MULTI_CPU)
        words = ["--config_file", tmp_path / "two.yaml"]
    arguments, environment = launch(*words)
    assert arguments is None, "Accelerate starts them now: the refusal can go"
    status, said = forked(options(corpus, tmp_path / "run"), environment=environment)
    assert status == [2]
    assert said.startswith("error: accelerate launch was asked for several CPU processes but starts only one")
    assert "ACCELERATE_USE_CPU=true torchrun " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_file_of_one_process_is_not_refused_but_a_larger_world_is(launch, corpus, tmp_path, forked):
    _, environment = launch("--config_file", FOLDER / "cpu.yaml")
    out = tmp_path / "run"
    status, said = forked(options(corpus, out, "--train.world-size", 2), environment=environment)
    assert status == [2]
    assert said.startswith("error: --train.world-size 2 asked for, but 1 process(es) run")
    status, said = forked(options(corpus, out, "--train.world-size", 1), environment=environment)
    assert status == [0], said
    assert world_of(out) == 1


def world_of(out):
    """World size, as the run has written it down."""
    world = json.loads((out / "env.json").read_text())["world_size"]
    assert f"{world} process(es) on cpu" in (out / "log.txt").read_text()
    return world


@pytest.fixture
def command(start):
    """command(*words, **environment) -> a process that is killed with all it started when the test ends."""

    def run(*words, **more):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return start(words, env=environment, cwd=ROOT, **pipes)

    return run


TORCHRUN = (BIN / "torchrun", "--standalone", "--nproc_per_node", 2, "recipes/lit.py")


def test_torchrun_starts_two_and_a_signal_to_it_saves_once(corpus, tmp_path, forked, command):
    """The launcher signals whole process groups, data workers included; nobody is left behind."""
    out = tmp_path / "run"
    more = ("--train.steps", 4000, "--train.save-every", 0, "--data.workers", 1, "--train.world-size", 2)
    process = command(*TORCHRUN, *options(corpus, out, *more), ACCELERATE_USE_CPU="true")
    wait_for(out / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=100)
    assert said.count("stopped by SIGTERM, saved") == 1, said
    assert "error:" not in said
    (saved,) = (out / "checkpoints").iterdir()
    step = int(saved.name.split("-")[1])
    assert len((out / "metrics.jsonl").read_text().splitlines()) == step
    assert world_of(out) == 2
    end = time.monotonic() + 20
    while left := processes_of(out):  # workers of a rank notice its end within seconds
        assert time.monotonic() < end, left
        time.sleep(0.2)
    more = (*more[2:], "--train.steps", step + 1)
    status, said = forked(options(corpus, out, *more), world=2)
    assert status == [0, 0], said
    assert f"resumed from {saved}" in said


def wait_for(path, process, seconds=100):
    end = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def processes_of(out):
    """Ids of living processes whose command line names the run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(out).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return [pid for pid in found if pid != os.getpid()]


LAUNCH_CPU = (BIN / "accelerate", "launch", "-q", "--config_file", FOLDER / "cpu.yaml", "recipes/lit.py")


@pytest.mark.slow
def test_accelerate_launch_with_the_file_for_the_cpu(corpus, tmp_path, command):
    """A real start; the default tests run the recipe in the environment that this line makes."""
    out = tmp_path / "run"
    process = command(*LAUNCH_CPU, *options(corpus, out))
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert world_of(out) == 1
    assert (out / "model" / "config.json").exists()


@pytest.mark.slow
def test_a_mistake_under_accelerate_launch_is_one_line(corpus, tmp_path, command):
    process = command(*LAUNCH_CPU, *options(corpus, tmp_path / "run", "--optim.lrate", 1))
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert said.startswith("error: unknown option '--optim.lrate': did you mean --optim.lr")
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2cpu", "8gpu_ddp", "8gpu_fsdp2"])
def test_accelerate_launch_starts_two(corpus, tmp_path, command, name):
    """Without a GPU the files for GPUs start gloo processes as well (and FSDP is ignored by Accelerate)."""
    out, file = tmp_path / "run", FOLDER / f"{name}.yaml"
    line = (BIN / "accelerate", "launch", "--config_file", file, "--num_processes", 2, "recipes/lit.py")
    words = options(corpus, out, "--train.world-size", 2)
    process = command(*line, *words, CUDA_VISIBLE_DEVICES="")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert world_of(out) == 2


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_nodes(corpus, tmp_path, command, launcher):
    """Two agents on 127.0.0.1 with one process each."""
    port = free_port()
    out, processes = tmp_path / "run", []
    for node in range(2):
        if launcher == "accelerate":
            line = [
                BIN / "accelerate",
                "launch",
                "--config_file",
                FOLDER / "2nodes.yaml",
                "--num_processes",
                2,
            ]
            line += ["--machine_rank", node, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        else:
            line = [BIN / "torchrun", "--nnodes", 2, "--node_rank", node, "--nproc_per_node", 1]
            line += ["--master_addr", "127.0.0.1", "--master_port", port]
        words = options(corpus, out, "--train.world-size", 2)
        extra = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        processes.append(command(*line, "recipes/lit.py", *words, **extra))
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert world_of(out) == 2
    assert said[0].count("done: the model is in") == 1


@pytest.mark.slow
def test_torchrun_ends_with_an_error_when_a_rank_is_killed(corpus, tmp_path, command):
    out = tmp_path / "run"
    words = options(corpus, out, "--train.steps", 4000, "--train.save-every", 0, "--train.world-size", 2)
    process = command(*TORCHRUN, *words, ACCELERATE_USE_CPU="true")
    wait_for(out / "metrics.jsonl", process)
    ranks = [pid for pid in processes_of(out) if pid != process.pid]
    os.kill(max(ranks), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0, said
    assert not processes_of(out)
