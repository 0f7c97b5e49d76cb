"""The launch configurations: read by Accelerate as they are meant."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "accelerate"


@pytest.mark.parametrize(
    ("name", "kind", "processes", "machines", "cpu"),
    [
        ("cpu", "NO", 1, 1, True),
        ("1gpu", "NO", 1, 1, False),
        ("8gpu_ddp", "MULTI_GPU", 8, 1, False),
        ("8gpu_fsdp2", "FSDP", 8, 1, False),
        ("2nodes", "MULTI_GPU", 16, 2, False),
    ],
)
def test_launch_file(name, kind, processes, machines, cpu):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert str(getattr(config.distributed_type, "value", config.distributed_type)) == kind
    assert (config.num_processes, config.num_machines, config.use_cpu) == (processes, machines, cpu)
    assert config.mixed_precision == "no"
    if kind == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "Block"


def test_every_launch_file_is_tested():
    assert {p.stem for p in FOLDER.glob("*.yaml")} == {"cpu", "1gpu", "8gpu_ddp", "8gpu_fsdp2", "2nodes"}
