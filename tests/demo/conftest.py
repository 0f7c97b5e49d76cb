"""A detector that finds coloured squares, its page served by the real command, and a browser to see it."""

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def _load(name):
    spec = importlib.util.spec_from_file_location(f"demo_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def squares():
    """The module of that name: scenes and the training of the detector."""
    return _load("squares")


@pytest.fixture(scope="session")
def model(squares, tmp_path_factory):
    """Folder of a saved detector that finds red, green and blue squares."""
    folder = tmp_path_factory.mktemp("squares") / "model"
    loss = squares.train(folder)
    assert loss < 0.45, "the detector of squares has not learned them: the tests with it would mean nothing"
    return folder


@pytest.fixture(scope="session")
def files(squares, tmp_path_factory):
    """A folder with uploads of all kinds."""
    home = tmp_path_factory.mktemp("files")
    squares.scene(TWO, (256, 256)).save(home / "two.png")
    squares.scene([("green", 130, 40, 220, 130)], (256, 256)).save(home / "green.png")
    squares.scene(TWO, (256, 256)).save(home / "cut.jpg", quality=95)
    whole = (home / "cut.jpg").read_bytes()
    (home / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (home / "words.png").write_text("no picture at all")
    (home / "empty.png").write_bytes(b"")
    squares.scene([], (3000, 2500)).save(home / "huge.png")  # more pixels than --max-pixels of `served`
    (home / "heavy.png").write_bytes((home / "two.png").read_bytes() + bytes(2**20 + 1))  # than --max-mb
    squares.scene([("red", 0, 0, 1, 5000)], (1, 5000)).save(home / "sliver.png")
    return home


# The scene on which most tests look for something; boxes in its pixels.
TWO = (("red", 20, 30, 110, 120), ("blue", 140, 120, 235, 215))
LIMITS = ["--max-mb", "1", "--max-pixels", "6000000", "--threshold", "0.4"]


@contextlib.contextmanager
def run_server(line, **options):
    """The process of a command that serves, and the address that it prints once it does."""
    process = subprocess.Popen(
        [str(word) for word in line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        said = process.stdout.readline()
        assert "http://" in said, said + process.stderr.read()
        yield process, said.split()[1].rstrip("/")
    finally:
        process.terminate()  # it then removes what was uploaded
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=60)


@pytest.fixture
def running():
    """running(line) -> context with the process of a command that serves, and its address."""
    return run_server


@pytest.fixture(scope="module")
def served(root, model, files):
    """Address of the page, served by the real command with small limits."""
    pictures = files / "samples"
    pictures.mkdir(exist_ok=True)
    shutil.copy(files / "green.png", pictures)
    script = [sys.executable, root / "scripts" / "demo_detect.py", "--model", model, "--port", "0"]
    with run_server([*script, *LIMITS, "--samples", pictures, "--device", "cpu"], cwd=root) as (
        process,
        address,
    ):
        yield address
        assert process.poll() is None, "the server has ended"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """The folder that the browser saves to."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, downloads):
    """Chromium without a window, driven by selenium; skipped where it is not installed."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        pytest.skip("chromium and chromium-driver are needed: bash scripts/browser.sh")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    home = tmp_path_factory.mktemp("chromium")
    words = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-proxy-server"]
    words += ["window-size=1440,1100", f"user-data-dir={home}", "disable-background-networking"]
    for word in words:
        options.add_argument(f"--{word}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(found[1]))
    yield driver
    driver.quit()
