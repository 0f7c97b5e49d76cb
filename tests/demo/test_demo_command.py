"""mmvit-demo: from file to file, mistakes in one line, and a server that ends when it is told to."""

import json
import signal
import socket
import sys
import time
import urllib.request

import pytest
from PIL import Image, ImageChops

from mmvit.cli.demo import command


@pytest.fixture
def say(capsys, root, monkeypatch):
    """say(words…) -> (exit code, stdout, stderr) of mmvit-demo."""
    monkeypatch.chdir(root)

    def run(*words):
        code = 0
        try:
            command.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_from_file_to_file(say, model, files, tmp_path):
    out, boxes = tmp_path / "found.png", tmp_path / "found.json"
    line = ["detect", "--model", model, "--image", files / "two.png", "--queries", "red square, blue square"]
    line += ["--threshold", "0.4"]
    code, stdout, stderr = say(*line, "--out", out, "--json", boxes, "--device", "cpu")
    assert (code, stderr) == (0, "")
    found = json.loads(boxes.read_text())
    assert sorted(d["label"] for d in found["detections"]) == ["blue square", "red square"]
    assert stdout.splitlines()[0].split()[1] in ("red", "blue")
    drawn, plain = Image.open(out), Image.open(files / "two.png").resize((512, 512), Image.Resampling.LANCZOS)
    assert drawn.size == (512, 512)  # small pictures are enlarged
    assert ImageChops.difference(drawn, plain).getbbox() is not None
    line = ["detect", "--model", model, "--image", files / "two.png", "--example", files / "two.png"]
    code, stdout, _ = say(*line, "--box", 20, 30, 110, 120, "--top-k", 1, "--device", "cpu")
    assert code == 0
    assert "like the example" in stdout
    assert len(stdout.splitlines()) == 1
    line = ["detect", "--model", model, "--image", files / "two.png", "--queries", "red square"]
    code, stdout, _ = say(*line, "--threshold", "0.9999", "--device", "cpu")
    assert (code, "nothing found" in stdout) == (0, True)


def test_mistakes_are_one_line(say, model, files, tmp_path):
    image = ["detect", "--model", model, "--device", "cpu", "--image", files / "two.png"]
    cases = [
        ([], "which page"),
        (["detekt"], "did you mean detect"),
        (["detect", "--model", tmp_path / "no"], "there is no model folder"),
        (["detect", "--model", files], "config.json"),
        (["detect", "--queries", "fox"], "--queries needs --image"),
        (image, "say what to look for"),
        ([*image, "--queries", "fox", "--example", "x.png"], "not both"),
        ([*image, "--queries", "fox", "--box", 1, 2, 3, 4], "--box marks a thing in an --example"),
        ([*image, "--queries", "fox", "--out", "found.gif2"], "must end in"),
        ([*image, "--queries", "fox", "--out", tmp_path / "no" / "x.png"], "cannot write"),
        ([*image, "--queries", " , "], "at least one name"),
        ([*image, "--queries", "fox", "--threshold", "7"], "threshold is 7"),
        ([*image, "--example", files / "words.png"], "not a picture"),
        ([*image[:-1], files / "huge.png", "--queries", "fox", "--max-pixels", "1000"], "at most 1000"),
        (["detect", "--model", model, "--port", "70000"], "no port"),
        (["detect", "--model", model, "--port", "0", "--samples", tmp_path], "tar shards nor pictures"),
    ]
    for words, message in cases:
        code, _, stderr = say(*words)
        assert (code, len(stderr.splitlines())) == (2, 1), (words, stderr)
        assert message in stderr, (words, stderr)


def test_help_names_the_pages(say):
    code, stdout, _ = say("--help")
    assert code == 0
    assert "detect" in stdout


def test_a_taken_port_is_said_before_the_model_is_read(say, model):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, stderr = say("detect", "--model", model, "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port} (Address already in use)" in stderr
    assert "--port" in stderr.splitlines()[0]


@pytest.mark.parametrize(("end", "codes"), [(signal.SIGTERM, {0}), (signal.SIGINT, {0, 130})])
def test_the_server_ends_when_it_is_told_to_and_frees_its_port(running, root, model, end, codes):
    line = [sys.executable, "-m", "mmvit.cli.demo.command", "detect", "--model", model, "--port", "0"]
    with running([*line, "--samples", "none", "--device", "cpu"], cwd=root) as (process, address):
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        port = int(address.rsplit(":", 1)[1])
        idle = socket.create_connection(("127.0.0.1", port))  # an open page
        time.sleep(0.1)
        process.send_signal(end)
        assert process.wait(timeout=30) in codes
        idle.close()
        assert "Traceback" not in process.stderr.read()
        socket.create_server(("127.0.0.1", port)).close()
