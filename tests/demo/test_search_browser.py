"""The search page in a real browser: words, sounds, pictures and clips find what plays; bad files do no harm.

MMVIT_SCREENSHOT_SEARCH=docs/images/demo_search.png pytest tests/demo/test_search_browser.py -k screenshot
"""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

import mmvit
from tests.api.media import COLOURS, TONES, mp4, png, save_model, tone, wav, write_shards
from tests.demo.test_demo_browser import Page


class SearchPage(Page):
    """What a person does on the search page and sees on it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        there = "#words textarea, #words input"
        self.until(lambda: self.all("#find-text") and self.all(there), seconds=120)  # the first time is slow

    def tab(self, name):
        next(tab for tab in self.all("button[role=tab]") if tab.text == name).click()
        ids = {"Words": "#find-text", "Sound": "#find-audio", "Picture": "#find-image", "Clip": "#find-video"}
        self.until(lambda: self.one(ids[name]).is_displayed())

    def ask(self, words):
        self.write(words, "#words textarea, #words input")
        self.click("#find-text")
        self.says(f"“{words}”" if words else "")

    def drop(self, path, where):
        """Gives a file to an upload, taking the one before it away first."""
        if not self.all(f"{where} input[type=file]"):
            self.click(f"{where} button[aria-label='Clear'], {where} button[aria-label='Remove Image']")
            self.until(lambda: self.all(f"{where} input[type=file]"))
        self.one(f"{where} input[type=file]").send_keys(str(path))

    @property
    def cards(self):
        """[(key, score)] of every card, as it stands on the page."""
        return [
            (card.get_attribute("data-key"), float(card.find_element("css selector", "b").text))
            for card in self.all("#shelves .card")
        ]

    @property
    def titles(self):
        return [h.text.split("\n")[0].split("the best")[0].strip() for h in self.all("#shelves h3")]

    def media(self, tag):
        """[ready, seconds, width, why not] of every player of a kind."""
        return self.browser.execute_script(
            f"return [...document.querySelectorAll('#shelves {tag}')].map(m => [m.readyState, m.duration, "
            "m.videoWidth || 0, m.error && m.error.message])"
        )

    def play(self, tag):
        """How many seconds the first player of a kind has played after a while."""
        return self.browser.execute_async_script(
            "const done = arguments[1], m = document.querySelector('#shelves ' + arguments[0]);"
            "m.muted = true; m.ontimeupdate = () => { if (m.currentTime > 0.1) done(m.currentTime) };"
            "m.play().catch(e => done(String(e)));",
            tag,
        )


@pytest.fixture(scope="module")
def vatt(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "vatt")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    home = tmp_path_factory.mktemp("uploads")
    whole = mp4("green")
    contents = {
        "red.wav": wav(tone(TONES["red"])), "green.mp4": whole, "blue.png": png("blue"),
        "words.wav": b"no sound at all", "cut.mp4": whole[:400], 
        "words.png": b"no picture", "heavy.wav": wav(tone(300)) + bytes(2**20 + 1),
    }  # fmt: skip
    for name, content in contents.items():
        (home / name).write_bytes(content)
    return home


@pytest.fixture(scope="module")
def search_line(root, vatt, media):
    data = f"{media}/clips::{media}/things"
    line = [sys.executable, "-m", "mmvit.cli.demo.command", "search", "--model", vatt, "--data", data]
    return [*line, "--port", "0", "--device", "cpu", "--max-mb", "1"]


@pytest.fixture(scope="module")
def address(root, search_line):
    from tests.demo.conftest import run_server

    with run_server(search_line, cwd=root) as (process, where):
        yield where
        assert process.poll() is None, "the server has ended"


@pytest.fixture
def page(browser, address):
    return SearchPage(browser, address)


def ranked(model, query, contents, names):
    """[(name, cosine)] of contents, best first."""
    z = model.encode(**contents, space="vt" if "text" in query else "va")
    scores = (model.encode(**query, space="vt" if "text" in query else "va") @ z.T)[0]
    return [(names[i], scores[i].item()) for i in scores.argsort(descending=True).tolist()]


def test_words_find_what_plays(page, vatt):
    page.ask("red square moving right")
    assert "12 things" in page.status
    assert page.titles == ["Clips", "Sounds", "Pictures"]
    model = mmvit.load(vatt)
    query = {"text": ["red square moving right"]}
    clips = ranked(model, query, {"video": [mp4(c) for c in COLOURS]}, [f"{c}-moves.mp4" for c in COLOURS])
    sounds = [wav(tone(TONES[c])) for c in COLOURS]
    sounds = ranked(model, query, {"audio": sounds}, [f"{c}-thing.wav" for c in COLOURS])
    for (key, score), (name, cosine) in zip(page.cards, clips + sounds, strict=False):
        assert key == name
        assert score == pytest.approx(cosine, abs=2e-3)
    page.until(lambda: all(ready for ready, *_ in page.media("video") + page.media("audio")))
    assert [round(m[1], 1) for m in page.media("video")] == [2.0] * 4
    assert [m[2:] for m in page.media("video")] == [[64, None]] * 4
    assert [round(m[1], 1) for m in page.media("audio")] == [1.0] * 4
    assert page.play("video") > 0.1
    assert page.play("audio") > 0.1
    page.until(lambda: all(i.get_property("naturalWidth") for i in page.all("#shelves .still")))
    waves = page.all("#shelves .wave")
    page.until(lambda: len(waves) == 4 and all(i.get_property("naturalWidth") for i in waves))


def test_a_sound_finds_clips_and_pictures_and_itself(page, uploads, vatt):
    page.tab("Sound")
    page.drop(uploads / "red.wav", "#sound")
    page.says("nearest to this sound")
    assert page.titles == ["Clips", "Pictures", "Sounds"]
    cards = page.cards
    assert cards[8] == ("red-thing.wav", 1.0)
    query, clips = {"audio": uploads / "red.wav"}, {"video": [mp4(c) for c in COLOURS]}
    for got, wanted in zip(
        cards, ranked(mmvit.load(vatt), query, clips, [f"{c}-moves.mp4" for c in COLOURS]), strict=False
    ):
        assert got[0] == wanted[0]
        assert got[1] == pytest.approx(wanted[1], abs=2e-3)


@pytest.mark.parametrize(
    ("tab", "where", "name", "key"),
    [
        ("Clip", "#clip", "green.mp4", "green-moves.mp4"),
        ("Picture", "#picture", "blue.png", "blue-thing.png"),
    ],
)
def test_clips_and_pictures_find_themselves(page, uploads, tab, where, name, key):
    page.tab(tab)
    page.drop(uploads / name, where)
    page.says(f"this {tab.lower()}")
    assert (key, 1.0) in page.cards


def test_a_clip_is_asked_by_its_sound_too(page, uploads, vatt):
    page.tab("Clip")
    page.drop(uploads / "green.mp4", "#clip")
    page.says("this clip")
    page.click("#find-heard")
    page.says("this sound")
    query, clips = {"audio": uploads / "green.mp4"}, {"video": [mp4(c) for c in COLOURS]}
    best = ranked(mmvit.load(vatt), query, clips, [f"{c}-moves.mp4" for c in COLOURS])
    assert [key for key, _ in page.cards[:4]] == [key for key, _ in best]


@pytest.mark.parametrize(
    ("tab", "where", "name", "words"),
    [
        ("Sound", "#sound", "words.wav", "is not a sound that can be read"),
        ("Sound", "#sound", "heavy.wav", "maximum allowed size"),
        ("Clip", "#clip", "cut.mp4", "is not a clip that can be read"),
        ("Picture", "#picture", "words.png", "is not a picture that can be read"),
    ],
)
def test_a_bad_file_gets_a_message_and_the_next_question_works(page, uploads, tab, where, name, words):
    page.tab(tab)
    page.drop(uploads / name, where)
    page.until(lambda: words in page.one("body").text)
    assert "Traceback" not in page.one("body").text
    page.tab("Words")
    page.ask("blue thing")
    assert len(page.cards) == 12


def test_settings_act_at_once(page):
    page.ask("yellow")
    page.all("#kinds input")[2].click()
    page.until(lambda: page.titles == ["Clips", "Sounds"])
    number = page.one("#k input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("1", Keys.TAB)
    page.until(lambda: len(page.cards) == 2)
    page.all("#kinds input")[0].click()
    page.all("#kinds input")[1].click()
    page.says("Choose at least one kind")


@pytest.mark.parametrize(
    ("text", "words"), [("", "What is to be found"), ("x" * 900, "at most 400 are taken")]
)
def test_odd_words_are_answered(page, text, words):
    page.write(text, "#words textarea, #words input")
    page.click("#find-text")
    page.says(words)
    assert page.cards == []


def test_a_question_can_be_picked_and_the_results_saved(page, downloads):
    words = page.one("#try-0").text
    page.click("#try-0")
    page.says(f"“{words}”")
    page.until(lambda: page.one("#json").is_displayed())
    page.click("#json")
    page.until(lambda: list(downloads.glob("results*.json")))
    saved = json.loads(next(downloads.glob("results*.json")).read_text())
    assert saved["query"] == words
    assert [r["key"] for r in saved["results"]] == [key for key, _ in page.cards]
    assert saved["results"][0]["modality"] == "video"


def test_nothing_is_fetched_from_elsewhere(browser, address):
    browser.get("about:blank")
    browser.get_log("performance")
    page = SearchPage(browser, address)
    page.ask("red")
    page.until(lambda: all(ready for ready, *_ in page.media("video")))
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert any("/media/" in url for url in urls)
    assert not [url for url in urls if not url.startswith((address, "data:", "blob:", "about:"))]


def test_screenshot(browser, running, root, search_line):
    """A picture of the page for the documentation, made only when it is asked for.

    MMVIT_SCREENSHOT_MODEL and MMVIT_SCREENSHOT_DATA name a saved model and what it is to search,
    MMVIT_SCREENSHOT_WORDS what it is asked.
    """
    goal, model = os.environ.get("MMVIT_SCREENSHOT_SEARCH"), os.environ.get("MMVIT_SCREENSHOT_MODEL")
    if not goal:
        pytest.skip("set MMVIT_SCREENSHOT_SEARCH=FILE to write it")
    words = os.environ.get("MMVIT_SCREENSHOT_WORDS", "red square moving right")
    line = search_line
    if model:
        line = [
            *search_line[:4],
            "--model",
            model,
            "--data",
            os.environ["MMVIT_SCREENSHOT_DATA"],
            "--port",
            "0",
        ]
    with contextlib.ExitStack() as stack:
        page = SearchPage(browser, stack.enter_context(running(line, cwd=root))[1])
        page.ask(words)
        page.until(lambda: all(ready > 1 for ready, *_ in page.media("video") + page.media("audio")))
        page.browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        time.sleep(2)  # a frame that is there is not yet one that is painted
        raw = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    Path(goal).parent.mkdir(parents=True, exist_ok=True)
    raw.quantize(160).save(goal, optimize=True)
    assert Path(goal).stat().st_size < 400_000
