"""The page in a real browser: upload, ask, see the right box; whatever is uploaded, the server lives on.

MMVIT_SCREENSHOT=docs/images/demo_detect.png pytest tests/demo/test_demo_browser.py -k screenshot
"""

import base64
import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait


class Page:
    """What a person does on the page and sees on it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.until(lambda: self.all("#find") and self.all("#picture input[type=file]"))

    def until(self, condition, seconds=30):
        wait = WebDriverWait(self.browser, seconds, poll_frequency=0.1, ignored_exceptions=(Exception,))
        try:
            return wait.until(lambda _: condition())
        except TimeoutException:
            text = self.one("body").text
            raise AssertionError(f"the page did not get there in {seconds} s; it says: {text}") from None

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector):
        element = self.one(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        self.until(lambda: element.click() or True)

    def upload(self, path, where="#picture", good=True):
        """Gives a file to an upload, taking the one before it away first; a good one is waited for."""
        if not self.all(f"{where} input[type=file]"):
            self.click(f"{where} button[aria-label='Clear'], {where} button[aria-label='Remove Image']")
            self.until(lambda: self.all(f"{where} input[type=file]"))
        self.one(f"{where} input[type=file]").send_keys(str(path))
        if good:
            self.until(lambda: self.one(f"{where} img").get_property("naturalWidth"))

    def write(self, text, where="#words textarea"):
        field = self.one(where)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        if len(text) > 200:  # pasted
            self.browser.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
                field,
                text,
            )
            return
        field.send_keys(text)

    @property
    def status(self):
        return self.one("#status .say").text

    def says(self, words):
        """The line of status, once it has these words."""
        self.until(lambda: words in self.status)
        return self.status

    @property
    def rows(self):
        """[name, score, x0, y0, x1, y1] of every box in the table."""
        rows = [
            [cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in self.all("#rows tbody tr")
        ]
        return [[name, *map(float, numbers)] for name, *numbers in rows]

    def shown(self, where="#found"):
        """The picture on the page as the browser has it."""
        self.until(lambda: self.one(f"{where} img").get_property("naturalWidth"))
        data = self.browser.execute_async_script(
            "const done = arguments[1]; fetch(arguments[0]).then(r => r.blob()).then(b => {"
            "const f = new FileReader(); f.onload = () => done(f.result); f.readAsDataURL(b); })",
            self.one(f"{where} img").get_property("src"),
        )
        return Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB")


@pytest.fixture
def page(browser, served):
    return Page(browser, served)


def overlap(a, b):
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(wide, 0) * max(high, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def test_upload_ask_and_see_the_right_boxes(page, files):
    page.upload(files / "two.png")
    page.write("red square, blue square")
    page.click("#find")
    page.says("2 boxes found")
    rows = {name: box for name, _, *box in page.rows}
    assert set(rows) == {"red square", "blue square"}
    for ink, *box in ((name.split()[0], *box) for name, box in rows.items()):
        truth = next(b for i, *b in [("red", 20, 30, 110, 120), ("blue", 140, 120, 235, 215)] if i == ink)
        assert overlap(box, truth) > 0.5, (ink, box)
    picture = page.shown()
    scale = picture.width / 256
    x0, y0, x1, y1 = (value * scale for value in rows["red square"])
    assert (230, 25, 75) in {
        picture.getpixel((round(x0) + 2, y)) for y in range(round(y0) + 20, round(y1) - 20)
    }
    page.write("blue square")  # another question to the same picture
    page.click("#find")
    page.says("1 box found")
    assert "picture kept" in page.status
    assert [row[0] for row in page.rows] == ["blue square"]


def test_the_threshold_acts_at_once(page, files):
    page.upload(files / "two.png")
    page.write("red square, blue square")
    page.click("#find")
    page.says("2 boxes found")
    highest = max(row[1] for row in page.rows)
    number = page.one("#threshold input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("1", Keys.TAB)
    page.says("Nothing found above this threshold")
    assert highest < 1
    assert page.rows == []


def test_an_example_is_marked_with_two_clicks(page, files):
    page.upload(files / "two.png")
    page.until(lambda: page.shown().size)
    tabs = [tab for tab in page.all("button[role=tab]") if "example" in tab.text]
    tabs[0].click()
    page.upload(files / "two.png", "#example")
    page.until(lambda: page.one("#marked img").is_displayed())
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", page.one("#marked img"))
    for at, words in (((20, 30), "One corner is set"), ((110, 120), "Example: the box")):
        page.until(lambda: page.one("#marked img").get_property("naturalWidth") == 256)
        image = page.one("#marked img")
        scale = min(1.0, image.size["width"] / 256)  # it is not shown larger than it is
        shift = [round((value - 128) * scale) for value in at]  # from the middle of the picture
        ActionChains(page.browser).move_to_element_with_offset(image, *shift).click().perform()
        page.until(lambda words=words: words in page.one("#hint").text)
    numbers = re.search(r"the box ([\d., ]+)\.", page.one("#hint").text)[1].split(", ")
    assert overlap([float(value) for value in numbers], (20, 30, 110, 120)) > 0.9
    page.write("the red one", "#example-name input, #example-name textarea")
    page.click("#find-like")
    page.says("found")
    name, _, *box = page.rows[0]
    assert name == "the red one"
    assert overlap(box, (20, 30, 110, 120)) > 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("words.png", "is not a picture that can be read"),
        ("cut.jpg", "its end is missing"),
        ("empty.png", "empty"),
        ("huge.png", "3000 x 2500 pixels, at most 6000000"),
        ("heavy.png", "maximum allowed size"),
    ],
)
def test_a_bad_upload_gets_a_message_and_the_next_one_works(page, files, name, words):
    page.upload(files / name, good=False)
    page.until(lambda: words in page.one("body").text)
    if not page.all("#picture input[type=file]"):
        page.click("#picture button[aria-label='Clear'], #picture button[aria-label='Remove Image']")
    assert "Traceback" not in page.one("body").text
    page.upload(files / "two.png")
    page.write("red square")
    page.click("#find")
    page.says("1 box found")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least one name"),
        (" , ,", "at least one name"),
        (", ".join(f"thing {i}" for i in range(300)), "found"),
        ("red square, red square", "1 box found"),
    ],
)
def test_odd_questions_are_answered(page, files, text, words):
    page.upload(files / "two.png")
    page.write(text)
    page.click("#find")
    page.until(lambda: words.lower() in page.status.lower())


def test_a_sliver_of_a_picture_is_answered(page, files):
    page.upload(files / "sliver.png")
    page.write("red square")
    page.click("#find")
    page.until(lambda: "picture" in page.status and "ms" in page.status)


def test_a_picture_can_be_picked(page, files):
    page.click("#sample-0")
    page.until(lambda: page.one("#picture img").get_property("naturalWidth"))
    page.write("green square")
    page.click("#find")
    page.says("1 box found")
    assert overlap(page.rows[0][2:], (130, 40, 220, 130)) > 0.5


def test_the_boxes_can_be_saved(page, files, downloads):
    page.upload(files / "two.png")
    page.write("red square")
    page.click("#find")
    page.says("1 box found")
    page.until(lambda: page.one("#json").is_displayed())
    page.click("#json")
    page.until(lambda: list(downloads.glob("*.json")))
    saved = json.loads(next(downloads.glob("*.json")).read_text())
    assert (saved["width"], saved["height"], saved["queries"]) == (256, 256, ["red square"])
    assert saved["detections"][0]["label"] == "red square"
    assert overlap(saved["detections"][0]["box"], (20, 30, 110, 120)) > 0.5


def test_nothing_is_fetched_from_elsewhere(browser, served):
    browser.get("about:blank")
    browser.get_log("performance")
    page = Page(browser, served)
    page.click("#find")
    page.says("there is no picture yet".capitalize())
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(served) for url in urls)
    assert not [url for url in urls if not url.startswith((served, "data:", "blob:", "about:"))]


def test_screenshot(browser, served, running, root, files):
    """A picture of the page for the documentation, made only when it is asked for.

    MMVIT_SCREENSHOT_MODEL names a saved detector to show with the first picture that can be picked.
    """
    goal, model = os.environ.get("MMVIT_SCREENSHOT"), os.environ.get("MMVIT_SCREENSHOT_MODEL")
    if not goal:
        pytest.skip("set MMVIT_SCREENSHOT=FILE to write it")
    with contextlib.ExitStack() as stack:
        address = served
        if model:
            line = [sys.executable, root / "scripts" / "demo_detect.py", "--model", model, "--port", "0"]
            address = stack.enter_context(running(line, cwd=root))[1]
        page = Page(browser, address)
        if model:
            page.click("#sample-0")
            page.until(lambda: page.one("#words textarea").get_property("value"))
        else:
            page.upload(files / "two.png")
            page.write("red square, blue square")
        page.click("#find")
        page.says(" found.")
        page.shown()
        page.browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        raw = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    Path(goal).parent.mkdir(parents=True, exist_ok=True)
    raw.quantize(128).save(goal, optimize=True)
    assert Path(goal).stat().st_size < 200_000
