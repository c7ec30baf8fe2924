"""The painter in a real Chromium: what a person paints is what is on disk, whatever happens."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentseg.app.painting import Painting
from latentseg.images import Pixels, encode, read_mask
from tests.app.painted import PARTS, SIZE, noise
from tests.app.test_server import listening, painter_process

pytestmark = pytest.mark.slow

HEIGHT, WIDTH = SIZE
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
Point = tuple[float, float]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    assert program, f"no Chromium found (looked for {', '.join(CHROMIUM)}): install one"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Page:
    """The page as a person uses it, in pixels of the picture."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, **options}
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self.note)
        self.open(address)

    def note(self, message: Any) -> None:
        expected = ("ERR_CONNECTION", "status of 409")  # after a kill; a question before a loss
        if message.type == "error" and not any(text in message.text for text in expected):
            self.errors.append(message.text)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector("#classes li")

    def choose_images(self, n: int) -> None:
        self.page.keyboard.press("a")
        for index in range(n):
            self.page.locator("#gallery .card .thumb").nth(index).click()
            self.page.wait_for_selector(f"#chosen .thumb >> nth={index}", state="attached")
        self.page.locator("#gallery [data-close]").click()
        self.settle()

    def settle(self) -> None:
        """Waits until the picture is shown and all is saved."""
        self.page.wait_for_timeout(250)
        self.page.wait_for_selector("#saved[data-state=saved]")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def at(self, point: Point) -> Point:
        """Where a point of the picture is on the screen: it lies whole and centred on the stage."""
        box = self.page.locator("#stage").bounding_box()
        scale = float(self.page.locator("#zoom-shown").inner_text().split()[0])
        left = box["x"] + round((box["width"] - WIDTH * scale) / 2)
        top = box["y"] + round((box["height"] - HEIGHT * scale) / 2)
        return left + point[0] * scale, top + point[1] * scale

    def stroke(self, *points: Point, button: str = "left") -> None:
        self.page.mouse.move(*self.at(points[0]))
        self.page.mouse.down(button=button)
        for point in points[1:]:
            self.page.mouse.move(*self.at(point), steps=7)
        self.page.mouse.up(button=button)

    def click(self, point: Point) -> None:
        self.page.mouse.click(*self.at(point))

    def size(self, diameter: int) -> None:
        for key, is_wrong in (("[", lambda now: now > diameter), ("]", lambda now: now < diameter)):
            while is_wrong(int(self.page.locator("#size-shown").inner_text().split()[0])):
                self.press(key)

    def close(self) -> None:
        assert self.errors == []
        self.context.close()


def brushed(mask: Pixels, points: list[Point], diameter: int, value: int) -> Pixels:
    """The mask after a stroke: centres within half the diameter of the line, and its corners."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    covered = np.zeros(mask.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[-1]], strict=True):
        direction = np.array([x1 - x0, y1 - y0])
        length = float(direction @ direction)
        along = ((x - x0) * direction[0] + (y - y0) * direction[1]) / length if length else 0 * x
        along = np.clip(along, 0, 1)
        distance = np.hypot(x - x0 - along * direction[0], y - y0 - along * direction[1])
        covered |= distance <= diameter / 2
        covered[int(y0), int(x0)] = True
    return np.where(covered, value, mask).astype(np.uint8)


def inside(mask: Pixels, corners: list[Point], value: int) -> Pixels:
    """The mask after a polygon: centres around which the corners go an odd number of times."""
    result = mask.copy()
    for row in range(HEIGHT):
        for column in range(WIDTH):
            x, y, is_inside = column + 0.5, row + 0.5, False
            for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
                if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
                    is_inside = not is_inside
            if is_inside:
                result[row, column] = value
    return result


def on_disk(folder: Path, index: int = 0) -> Pixels:
    name = list(re.findall(r'"name": "(\d{8})"', (folder / "painting.json").read_text()))[index]
    return read_mask(folder / f"masks/{name}.png")


def empty() -> Pixels:
    return np.full(SIZE, 255, np.uint8)


# None of these passes a pixel's centre at exactly half a diameter.
HAIR = [(4.3, 4.4), (20.7, 6.2), (26.4, 15.8)]
SKIN = [(8.2, 12.1), (15.6, 18.7)]


def test_painter_when_a_person_paints_then_pixels_are_the_strokes_and_survive_a_kill(
    tmp_path: Path, browser: Any
) -> None:
    folder = tmp_path / "p"
    with painter_process(folder) as (process, address):
        page = Page(browser, address)
        page.choose_images(2)
        page.press("1")
        page.size(3)
        page.stroke(*HAIR)
        page.press("2")
        page.size(5)
        page.stroke(*SKIN)
        page.press("e")
        page.size(2)
        page.stroke((4.3, 4.4), (12.1, 5.3))
        page.settle()
        expected = brushed(brushed(empty(), HAIR, 3, 1), SKIN, 5, 2)
        expected = brushed(expected, [(4.3, 4.4), (12.1, 5.3)], 2, 255)
        np.testing.assert_array_equal(on_disk(folder), expected)

        page.press("b", "3")
        page.size(1)
        states = [expected]
        for k in range(20):
            line = [(1.3 + k, 20.2), (2.7 + k, 22.6)]
            page.stroke(*line)
            states.append(brushed(states[-1], line, 1, 3))
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), states[-1])
        page.press(*["Control+z"] * 20)
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), expected)
        page.press(*["Control+Shift+z"] * 5)
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), states[5])

        page.page.reload()
        page.page.wait_for_selector("#classes li")
        page.settle()
        page.press("y", "y")
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), states[7])

        page.press("1")
        page.stroke((20.2, 20.3), (24.6, 20.4))
        began = time.monotonic()
        last = brushed(states[7], [(20.2, 20.3), (24.6, 20.4)], 1, 1)
        while not np.array_equal(on_disk(folder), last):
            assert time.monotonic() - began < 1
            time.sleep(0.02)
        process.kill()
        process.wait()
        page.page.wait_for_selector("#lost")
        page.stroke((2.5, 2.5), (9.5, 2.5))
        page.page.wait_for_selector("#saved[data-state=lost]")
        page.close()

    with painter_process(folder) as (_, address):
        np.testing.assert_array_equal(on_disk(folder)[6:], last[6:])
        page = Page(browser, address)
        page.settle()
        page.press("z")
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), states[7])
        page.press(*["z"] * 10)
        page.settle()
        assert (on_disk(folder) == 255).all()
        page.press(*["y"] * 3)
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), expected)
        page.close()


def test_tools_when_used_then_pixels_are_their_shapes(tmp_path: Path, browser: Any) -> None:
    folder = tmp_path / "p"
    with painter_process(folder) as (_, address):
        page = Page(browser, address)
        page.choose_images(1)
        corners = [(3.2, 3.4), (25.3, 2.2), (28.7, 19.1), (14.2, 12.3), (5.1, 20.8)]
        page.press("p", "1")
        for corner in corners:
            page.click(corner)
        page.press("Enter")
        page.settle()
        expected = inside(empty(), corners, 1)
        np.testing.assert_array_equal(on_disk(folder), expected)

        page.press("f", "2")
        page.click((10.5, 6.5))
        page.settle()
        expected[expected == 1] = 2
        np.testing.assert_array_equal(on_disk(folder), expected)

        page.press("b", "3", "k")
        page.size(4)
        line = [(2.2, 10.1), (29.8, 10.3)]
        page.stroke(*line)
        page.settle()
        expected = np.where(expected == 255, brushed(expected, line, 4, 3), expected)
        np.testing.assert_array_equal(on_disk(folder), expected)

        page.press("k")
        page.stroke((20.3, 4.2), (22.1, 8.3), button="right")
        page.settle()
        expected = brushed(expected, [(20.3, 4.2), (22.1, 8.3)], 4, 255)
        np.testing.assert_array_equal(on_disk(folder), expected)

        page.press("r")
        page.settle()
        expected[expected == 255] = 0
        np.testing.assert_array_equal(on_disk(folder), expected)
        assert page.page.locator("#now-share").inner_text() == "100 % painted"

        page.press("l", "1")
        page.stroke((4.1, 15.2), (9.3, 15.1), (9.2, 21.3), (4.2, 21.2), (4.1, 15.2))
        page.settle()
        expected[15:21, 4:9] = 1
        np.testing.assert_array_equal(on_disk(folder), expected)

        page.press("Shift+Delete")
        page.settle()
        assert (on_disk(folder) == 255).all()
        page.press("z")
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), expected)
        page.close()


def test_zoom_when_the_picture_is_moved_and_turned_large_then_the_brush_meets_its_pixel(
    tmp_path: Path, browser: Any
) -> None:
    folder = tmp_path / "p"
    with painter_process(folder) as (_, address):
        page = Page(browser, address)
        page.choose_images(1)
        page.size(1)
        target = page.at((12.5, 9.5))
        page.page.mouse.move(*target)
        page.page.mouse.wheel(0, -400)
        page.page.keyboard.down("Space")
        page.page.mouse.down()
        page.page.mouse.move(target[0] + 60, target[1] - 45, steps=5)
        page.page.mouse.up()
        page.page.keyboard.up("Space")
        page.page.mouse.click(target[0] + 60, target[1] - 45)
        page.settle()
        expected = empty()
        expected[9, 12] = 1
        np.testing.assert_array_equal(on_disk(folder), expected)
        page.close()


def test_fingers_when_two_of_them_pinch_then_nothing_is_painted(
    tmp_path: Path, browser: Any
) -> None:
    folder = tmp_path / "p"
    with painter_process(folder) as (_, address):
        page = Page(browser, address, has_touch=True)
        page.choose_images(1)
        page.size(1)
        touch = page.context.new_cdp_session(page.page)

        def fingers(kind: str, *points: Point) -> None:
            places = [
                {"x": x, "y": y, "id": i} for i, (x, y) in enumerate(page.at(p) for p in points)
            ]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

        fingers("touchStart", (5.5, 5.5))
        fingers("touchMove", (9.5, 5.5))
        fingers("touchEnd")
        page.settle()
        expected = brushed(empty(), [(5.5, 5.5), (9.5, 5.5)], 1, 1)
        np.testing.assert_array_equal(on_disk(folder), expected)
        before = page.page.locator("#zoom-shown").inner_text()
        fingers("touchStart", (10.5, 10.5))
        fingers("touchStart", (10.5, 10.5), (14.5, 10.5))
        fingers("touchMove", (8.5, 10.5), (16.5, 10.5))
        fingers("touchMove", (6.5, 10.5), (18.5, 10.5))
        fingers("touchEnd")
        page.settle()
        assert page.page.locator("#zoom-shown").inner_text() != before
        np.testing.assert_array_equal(on_disk(folder), expected)
        page.close()


def test_classes_when_edited_on_the_page_then_the_paint_keeps_its_class(
    tmp_path: Path, browser: Any
) -> None:
    folder = tmp_path / "p"
    with painter_process(folder) as (_, address):
        page = Page(browser, address)
        page.choose_images(1)
        page.press("3")
        page.size(3)
        page.stroke(*HAIR)
        page.settle()
        page.press("n")
        page.page.fill("#class-name", "hat <b>")
        page.page.locator("#class-dialog [type=submit]").click()
        page.page.wait_for_selector("#classes li:nth-child(6)")
        page.press("Alt+ArrowUp", "Alt+ArrowUp")
        page.settle()
        page.page.locator("#classes li:nth-child(2) .name", has_text="hat <b>").wait_for()
        names = [part.name for part in Painting(folder).classes]
        assert names == ["hair", "hat <b>", "skin", "shoes"]
        np.testing.assert_array_equal(on_disk(folder), brushed(empty(), HAIR, 3, 4))
        page.press("4", "F2")
        page.page.locator("#class-remove").click()
        page.page.wait_for_selector("#question[open]")
        assert "shoes" in page.page.locator("#question p").inner_text()
        page.page.locator("#question [value=yes]").click()
        page.page.locator("#classes li >> nth=5").wait_for(state="detached")
        assert (on_disk(folder) == 255).all()
        page.close()


def test_mask_when_dropped_on_the_picture_then_it_is_taken_and_can_be_undone(
    tmp_path: Path, browser: Any
) -> None:
    folder = tmp_path / "p"
    with painter_process(folder) as (_, address):
        page = Page(browser, address)
        page.choose_images(1)
        drop = """bytes => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "m.png", { type: "image/png" }));
            const event = new DragEvent("drop", { dataTransfer: files, bubbles: true });
            document.getElementById("place").dispatchEvent(event);
        }"""
        page.page.evaluate(drop, list(encode(noise(4, len(PARTS)))))
        page.settle()
        np.testing.assert_array_equal(on_disk(folder), noise(4))
        page.press("z")
        page.settle()
        assert (on_disk(folder) == 255).all()
        page.close()


def test_server_when_a_browser_uses_it_then_it_still_listens_on_the_loopback_only(
    tmp_path: Path, browser: Any
) -> None:
    with painter_process(tmp_path / "p") as (process, address):
        page = Page(browser, address)
        page.choose_images(1)
        port = int(address.split("/")[2].split(":")[1])
        assert listening(process.pid) == [("0100007F", port)]
        refused = page.page.evaluate(
            """async paths => {
                const answers = await Promise.all(paths.map(path => fetch(path)));
                return answers.map(answer => answer.status);
            }""",
            [f"..{'/..' * k}/painting.json" for k in range(10)]
            + [f"api/images/{'%2e%2e%2f' * k}painting.json" for k in range(1, 11)],
        )
        assert len(refused) == 20
        assert set(refused) <= {403, 404}
        page.errors.clear()  # Chromium notes each of the refusals
        page.close()
