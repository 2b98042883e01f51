"""What a person has before their eyes: `play` and `watch` in a real browser, by the pixels that it shows."""

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import BROWSER, Tab
from PIL import Image

from rl_lab.looking.browser import Browser
from rl_lab.playing import scenes
from rl_lab.playing.player import load

ROOT = Path(__file__).parents[1]
PAPER = 233, 235, 239
UP, RIGHT, DOWN, LEFT = range(4)
LATE = """{
  const [fetched, late] = [window.fetch, new Promise(later => setTimeout(later, 500))]
  window.fetch = async (what, how) => (how?.body == "l" && await late, fetched(what, how))
}"""  # one key takes its time

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no chromium on the path")]


@pytest.fixture
def command() -> Iterator:
    """Starts one, and returns it with the address that it prints."""
    started = []

    def start(*arguments: str) -> tuple[subprocess.Popen, str]:
        words = [sys.executable, "-m", "rl_lab", *arguments, "device=cpu"]
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()


def moments(folder: Path, *actions: int) -> Iterator[Image.Image]:
    """The frames of `play`: where the episode begins, and after each action."""
    player = load(folder, max_envs=1, device="cpu", seed=0, camera=True)
    page, shown = scenes.Page(player), scenes.play(player, episodes=1, seed=0, max_steps=100)
    yield page(next(shown), "yours")
    for action in actions:
        yield page(shown.send(action), "yours")
    player.env.close()


def box(tab: Tab, what: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom on the page."""
    found = tab.value(
        f"(b => [b.left, b.top, b.right, b.bottom])(document.querySelector('{what}').getBoundingClientRect())"
    )
    return tuple(map(round, found))


def shows(tab: Tab, picture: Image.Image) -> bool:
    """Whether the window shows this picture, up to what JPEG does to it."""
    shown = tab.seen().crop(box(tab, "canvas"))
    return shown.size == picture.size and differing(shown, picture) < 50


def differing(a: Image.Image, b: Image.Image) -> int:
    """Pixels."""
    return int((np.abs(np.asarray(a, int) - np.asarray(b, int)).max(-1) > 60).sum())


def is_over(tab: Tab) -> bool:
    return tab.value("getComputedStyle(document.querySelector('p')).visibility") == "visible"


def wait_until(true: Callable[[], object]) -> None:
    """With nothing else happening meanwhile."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end


def test_each_picture_is_shown_when_it_is_there(tmp_path):
    """Also the first, and the last: a browser is known to hold a part of a stream back until the next one comes."""
    with Browser("grey", scenes.Page) as screen:
        screen.show([Image.new("RGB", (600, 400), (40, 40, 40))])
        with Tab(f"http://127.0.0.1:{screen.port}/{screen.token}/", tmp_path) as tab:
            for grey in (40, 80, 120, 160):
                picture = Image.new("RGB", (600, 400), (grey, grey, grey))
                screen.show([picture])
                wait_until(lambda grey=grey: abs(tab.seen().getpixel((640, 450))[0] - grey) < 4)
            assert tab.complaints == []


def test_an_episode_by_hand(plan, command, tmp_path):
    frames = list(moments(plan, UP, UP, RIGHT, LEFT))
    assert min(differing(before, after) for before, after in itertools.pairwise(frames)) > 300
    process, address = command("play", f"run={plan}", "view=browser")
    with Tab(address, tmp_path) as tab:
        wait_until(lambda: shows(tab, frames[0]))  # before the first key
        assert tab.value("[...document.querySelectorAll('tr')].map(row => row.innerText.replace(/\\s+/g, ' '))") == [
            "up ↑ k", "right → l", "down ↓ j", "left ← h", "as the agent would enter", "leave q"
        ]  # fmt: skip
        for key, frame in (("k", frames[1]), ("F5", frames[1]), ("ArrowUp", frames[2])):
            tab.press(key)
            wait_until(lambda frame=frame: shows(tab, frame))
        tab.reload()
        wait_until(lambda: shows(tab, frames[2]))  # it stays for who comes again
        tab.value(LATE)
        tab.press("l")
        tab.press("ArrowLeft")  # at once, and yet after the one before
        wait_until(lambda: shows(tab, frames[4]))
        before = tab.value("seen")
        for _ in range(40):
            tab.press("ArrowUp", repeat=True)  # against the wall: each is a step
        held = tab.value("seen")
        time.sleep(1)
        assert before < tab.value("seen") <= held + 1, "a key that was held moves nothing when it is let go"
        assert tab.complaints == []
        tab.press("q")
        assert process.wait(60) == 0
        assert process.stdout.read().startswith("you: return ")
        wait_until(lambda: is_over(tab))


@pytest.mark.parametrize(("width", "beside"), [(1280, True), (500, False)])
def test_the_keys_stand_beside_the_picture_or_below_it(plan, command, tmp_path, width, beside):
    _, address = command("play", f"run={plan}", "view=browser")
    with Tab(address, tmp_path, width) as tab:
        wait_until(lambda: tab.value("seen"))
        picture, keys = box(tab, "canvas"), box(tab, "table")
        assert picture[0] >= 0 and keys[2] <= width and tab.value("document.documentElement.scrollWidth") <= width
        assert (keys[0] >= picture[2]) == beside and (keys[1] >= picture[3]) != beside


def test_looking_on(plan, command, tmp_path):
    """Two runs beside each other, that move by themselves; no keys, and a word at the end."""
    process, address = command("watch", f"run={plan}", f"run={plan}", "fps=4")
    (first,) = moments(plan)
    with Tab(address, tmp_path, 1500) as tab:
        shown, end = set(), time.monotonic() + 60
        while len(shown) < 5:
            assert time.monotonic() < end
            shown.add(tab.seen().crop(box(tab, "canvas")).tobytes())
        left, top, right, bottom = box(tab, "canvas")
        assert (right - left, bottom - top) == (2 * first.width, first.height)
        assert tab.seen().getpixel((5, 5)) == PAPER and tab.value("document.querySelector('table')") is None
        assert tab.complaints == [] and not is_over(tab)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        wait_until(lambda: is_over(tab))
