"""One sitting at the page in a real browser: clicks teach a run what is wanted, though it and the page are killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chromium import BROWSER, Tab
from test_teach import judged, rl_lab, rows

from rl_lab.commands.teach import is_swapped
from rl_lab.wanted.preferences.logs import read
from rl_lab.wanted.preferences.sittings import Sitting

ROOT = Path(__file__).parents[1]
SEEN = {"left": "left", "right": "right", "same": "the same"}
OTHER = {"left": "right", "right": "left"}
TRAIN = ["experiment=preferences_russell_norvig", "teacher=person", "teacher.wait=true", "loop.total_steps=60_000",
         "loop.eval_every=30_000", "checkpoint.every=1", "tracker=none", "device=cpu"]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no chromium on the path")]


@pytest.fixture
def started():
    found = []

    def start(*arguments: str) -> subprocess.Popen:
        words = [sys.executable, "-m", "rl_lab", *arguments]
        found.append(subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        return found[-1]

    yield start
    for process in found:
        process.kill()
        process.wait()


def told(folder: Path) -> list[dict]:
    return read(folder / "preferences/answers-anna.jsonl")


def question(folder: Path, until: float) -> int | None:
    """The oldest that nobody has answered; None where none comes."""
    while time.monotonic() < until:
        answered = {row["pair"] for row in told(folder)}
        if left := sorted({*Sitting(folder).asked()[0]} - answered):
            return left[0]
        if json.loads((folder / "summary.json").read_text())["state"] == "finished":
            return None
        time.sleep(0.1)
    raise AssertionError("no question")


def press(tab: Tab, folder: Path, name: str) -> dict:
    """Clicks on a button once the page has shown the pair for a while; returns what it wrote."""
    count, end, shown = len(told(folder)), time.monotonic() + 120, tab.value("seen")
    while len(told(folder)) == count:
        assert time.monotonic() < end
        while tab.value("seen") < shown + 5:  # pictures, 10 a second: more than those in which keys are not heard
            time.sleep(0.02)
        tab.click(f"[...document.querySelectorAll('button')].find(b => b.innerText == '{name}')")
        waited = time.monotonic() + 5
        while len(told(folder)) == count and time.monotonic() < waited:
            time.sleep(0.02)
    return told(folder)[-1]


def answer(tab: Tab, folder: Path, pair: int) -> None:
    truth = judged(Sitting(folder).clips(pair))
    row = press(tab, folder, SEEN[OTHER.get(truth, truth) if is_swapped("anna", pair) else truth])
    assert (row["pair"], row["answer"]) == (pair, truth)


def test_a_sitting_of_real_clicks(started, tmp_path):
    folder, until = tmp_path / "run", time.monotonic() + 1_500
    page = ["teach", f"run={folder}", "who=anna", "fps=10"]
    run = started("train", *TRAIN, f"hydra.run.dir={folder}")
    while not (folder / "preferences/now.json").exists():
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.1)
    teach, number = started(*page), 0
    with Tab(teach.stdout.readline().strip(), tmp_path / "one") as tab:
        while number < 70:
            answer(tab, folder, question(folder, until))
            number += 1
        taken_back = press(tab, folder, "undo")["pair"]
        assert told(folder)[-1]["answer"] == "revoked"
        tab.seen().save(tmp_path / "page.png")
        assert tab.complaints == []
        acknowledged = told(folder)
        run.send_signal(signal.SIGKILL)
        teach.send_signal(signal.SIGKILL)
        run.wait(), teach.wait()
    assert (folder / "checkpoint.pt").exists()
    with open(folder / "preferences/answers-anna.jsonl", "ab") as file:
        file.write(b'{"pair": 70, "of"')  # what a kill in the middle of a line leaves
    run, teach = started("train", f"run={folder}"), started(*page)
    with Tab(teach.stdout.readline().strip(), tmp_path / "two") as tab:
        answer(tab, folder, taken_back)  # it is asked again
        while (pair := question(folder, until)) is not None:
            answer(tab, folder, pair)
    assert run.wait(300) == 0 and teach.wait(60) == 0
    assert told(folder)[: len(acknowledged)] == acknowledged and len(told(folder)) == 160 + 2
    assert "the run is finished: 160 answers of anna's" in teach.stdout.read()
    used = read(folder / "preferences/used.jsonl")
    assert len({pair for row in used for _, pair, _ in row["told"]}) == 160
    last = rows(folder)[-1]
    assert last["wanted/plan_regret"] < 0.02 and last["eval/regret"] < 0.05
    settings = [x for x in TRAIN if not x.startswith("teacher")]
    again = ["teacher=recorded", f"teacher.run={folder}", f"hydra.run.dir={tmp_path / 'again'}"]
    assert rl_lab("train", *settings, *again) == 0
    assert rows(tmp_path / "again") == rows(folder)
