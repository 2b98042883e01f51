"""Looking on: each new checkpoint is taken up, whoever looks, and however often they leave."""

import http.client
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.commands.watch import Channel, paced
from rl_lab.core import checkpoint
from rl_lab.core.launching import cli
from rl_lab.looking import browser
from rl_lab.looking.browser import Browser
from rl_lab.playing.scenes import Page

watch = stated("command/rl/watch")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A table that learned for 500 steps; `later.pt` is what it knew after 1,000."""
    folder = tmp_path_factory.mktemp("runs") / "dqn"
    common = ["tracker=none", "device=cpu", "loop.eval_episodes=1"]
    first = ["experiment=dqn_russell_norvig", "loop.total_steps=500", "env.num_envs=4", "agent.learning_starts=64"]
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", *first, *common, f"hydra.run.dir={folder}"]) == 0
    shutil.copy(folder / "checkpoint.pt", folder / "earlier.pt")
    assert cli.main("rl-lab", "rl", COMMANDS, ["train", f"run={folder}", "loop.total_steps=1000"]) == 0
    os.rename(folder / "checkpoint.pt", folder / "later.pt")
    return folder


@pytest.fixture
def learning(run, tmp_path) -> Path:
    """The same run in the middle of it."""
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.copy(folder / "earlier.pt", folder / "checkpoint.pt")
    (folder / "summary.json").write_text(json.dumps({"state": "running"}))
    return folder


SCREEN = SimpleNamespace(draw=lambda player: lambda moment, episode: (player.step, episode, moment.ending))


# -- checkpoints


def test_a_new_checkpoint_is_taken_up_when_the_episode_is_over(learning):
    channel = Channel(learning, 0, "cpu")
    shown = channel.show(SCREEN, 1.0, None, max_steps=5)
    assert next(shown) == (500, "1", "")
    player = channel.player
    (learning / "checkpoint.new").write_bytes(b"half a checkpoint")  # as training writes it, before it is renamed
    checkpoint.write(
        learning / "checkpoint.pt", {k: v for k, v in checkpoint.read(learning / "later.pt").items() if k != "format"}
    )
    rest = list(itertools.takewhile(lambda part: part[1] != "3", shown))
    assert {part[0] for part in rest if part[1] == "1"} == {500} and any(part[2] for part in rest if part[1] == "1")
    assert {part[0] for part in rest if part[1] == "2"} == {1000}
    assert channel.player is not player
    player = channel.player
    next(part for part in shown if part[1] == "4")
    assert channel.player is player  # and kept as long as there is no newer one
    channel.close()


def test_who_plays_is_what_the_checkpoint_holds(learning):
    """Not only the title changes."""
    channel = Channel(learning, 0, "cpu")
    early = channel.player.view(channel.player.env.all_observations()).bars
    os.replace(learning / "later.pt", learning / "checkpoint.pt")
    assert channel.tune() and not channel.tune()
    late = channel.player.view(channel.player.env.all_observations()).bars
    assert not early.equal(late)
    assert late.flatten()[0] == checkpoint.read(learning / "checkpoint.pt")["agent"]["online"]["head.weight"][0, 0]


def test_a_checkpoint_that_is_gone_is_still_played(learning):
    channel = Channel(learning, 0, "cpu")
    (learning / "checkpoint.pt").unlink()
    assert not channel.tune() and channel.player.step == 500


def test_the_first_checkpoint_is_waited_for(learning, capsys):
    os.rename(learning / "checkpoint.pt", learning / "first.pt")
    threading.Timer(1.0, os.rename, (learning / "first.pt", learning / "checkpoint.pt")).start()
    began = time.monotonic()
    assert Channel(learning, 0, "cpu").player.step == 500
    assert time.monotonic() - began > 0.9
    assert capsys.readouterr().err == f"waiting for the first checkpoint of {learning}; training writes one regularly\n"


def test_mistakes(learning, tmp_path, capsys):
    def line(*arguments) -> str:
        assert cli.main("rl-lab", "rl", COMMANDS, ["watch", *arguments, "device=cpu"]) == 2
        return capsys.readouterr().err

    assert line() == "rl-lab: which run? rl-lab watch run=<folder>\n"
    (empty := tmp_path / "empty").mkdir()
    assert line(f"run={empty}") == f"rl-lab: {empty} is not a run folder: it has no config.yaml\n"
    pipe = "view=terminal needs a terminal to draw in, not a pipe or a file; take view=browser"
    assert line(f"run={learning}", "view=terminal") == f"rl-lab: {pipe}\n"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert line(f"run={learning}", f"port={port}") == (
            f"rl-lab: port={port} is not available (Address already in use); port=0 picks a free one\n"
        )
    assert line(f"run={learning}", "port=70000").endswith("port=0 picks a free one\n")
    (learning / "checkpoint.pt").unlink()
    (learning / "summary.json").write_text(json.dumps({"state": "failed"}))
    assert line(f"run={learning}") == f"rl-lab: no checkpoint at {learning}/checkpoint.pt; has the run saved one yet?\n"


# -- time


def test_frames_come_at_their_rate():
    began = time.monotonic()
    assert list(paced(range(11), 20.0, float("inf"))) == list(range(11))
    assert 0.45 < time.monotonic() - began < 0.9


def test_a_slow_screen_gets_fewer_frames_at_the_same_speed():
    began = time.monotonic()
    shown = list(paced(range(31), 50.0, 10.0))
    assert 0.55 < time.monotonic() - began < 1.0
    assert 4 <= len(shown) <= 7 and shown[0] == 0


def test_what_is_late_does_not_leap():
    """After a picture that took long, the next ones keep their distance instead of catching up."""

    def slow():
        for i in range(6):
            time.sleep(0.3 * (i == 2))
            yield i

    times = [time.monotonic() for _ in paced(slow(), 20.0, float("inf"))]
    assert times[2] - times[1] > 0.28
    assert all(b - a > 0.04 for a, b in itertools.pairwise(times[2:]))


# -- the browser


class Viewing:
    """A viewer: asks for one picture after another, as the page does."""

    def __init__(self, address: str):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=10)
        self.path, self.seen = urllib.parse.urlsplit(address).path, 0

    def __del__(self):
        self.connection.close()

    def picture(self) -> np.ndarray | None:
        """The next that there is; None at the end."""
        self.connection.request("GET", f"{self.path}picture/{self.seen}")
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status == 410:
            return None
        assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
        assert int(answer.headers["Number"]) > self.seen
        self.seen = int(answer.headers["Number"])
        return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def address_of(screen: Browser) -> str:
    return f"http://127.0.0.1:{screen.port}/{screen.token}/"


def colours(*values: int) -> list[Image.Image]:
    return [Image.new("RGB", (64, 48), (v, v, v)) for v in values]


def test_viewers_come_and_go(capsys):
    with Browser("two <grey> pictures", Page) as screen:
        address = capsys.readouterr().out.strip()
        assert address == address_of(screen) and len(screen.token) == 22
        page = urllib.request.urlopen(address).read().decode()
        assert "<title>two &lt;grey&gt; pictures</title>" in page and "<kbd>" not in page.partition("<script>")[0]
        screen.show(colours(40, 200))
        one, two = Viewing(address_of(screen)), Viewing(address_of(screen))
        for viewer in (one, two):
            picture = viewer.picture()
            assert picture.shape == (48, 128, 3)
            assert abs(int(picture[24, 32, 0]) - 40) < 3 and abs(int(picture[24, 96, 0]) - 200) < 3
        one.connection.close()  # a closed tab
        for value in range(10, 60, 10):
            screen.show(colours(value))
            assert abs(int(two.picture()[24, 32, 0]) - value) < 3
        again = Viewing(address_of(screen))
        assert abs(int(again.picture()[24, 32, 0]) - 50) < 3  # at once, without a new picture
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + "etc/passwd")
        at_last = []
        waiting = threading.Thread(target=lambda: at_last.append(two.picture()))
        waiting.start()
        time.sleep(0.2)
    waiting.join(5)
    assert at_last == [None]


def test_who_waits_long_is_told_that_there_is_nothing_and_asks_again(monkeypatch):
    """A viewer that has left holds its place no longer than that."""
    monkeypatch.setattr(browser, "PATIENCE", 0.1)
    with Browser("", Page) as screen:
        assert urllib.request.urlopen(f"{address_of(screen)}picture/0").status == 204
        screen.show(colours(77))
        for seen in ("0", "000", "-1", "x", "0/1"):
            if seen.isdigit():
                assert urllib.request.urlopen(f"{address_of(screen)}picture/{seen}").headers["Number"] == "1"
            else:
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(f"{address_of(screen)}picture/{seen}")


def test_a_viewer_that_sleeps_holds_up_nobody_and_is_not_behind():
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(480, 640, 3), dtype=np.uint8))
    with Browser("", Page) as screen:
        screen.show([noise])
        asleep, awake = Viewing(address_of(screen)), Viewing(address_of(screen))
        asleep.connection.request("GET", f"{asleep.path}picture/0")  # and does not read
        began = time.monotonic()
        for _ in range(30):
            screen.show([noise])
            awake.picture()
        assert time.monotonic() - began < 8
        screen.show(colours(77))
        asleep.connection.getresponse().read()
        assert asleep.picture().shape[0] == 48  # what it slept through is not sent later


def test_keys_from_the_browser():
    with Browser("", Page, keys={"up": ["k"]}) as screen:
        for body in ("ArrowUp", "l", " ", "L", "Enter", "Escape"):
            request = urllib.request.Request(f"{address_of(screen)}key", body.encode(), method="POST")
            assert urllib.request.urlopen(request).status == 204
        assert [screen.key(1.0) for _ in range(6)] == ["up", "l", "space", "L", "enter", "escape"]
        began = time.monotonic()
        assert screen.key(0.2) is None and 0.15 < time.monotonic() - began < 1.0
        assert screen.key(0.0) is None


def asked(screen: Browser, request: bytes) -> bytes:
    """The first line of what a raw request is answered, within two seconds; b"" where it is cut off."""
    with socket.create_connection(("127.0.0.1", screen.port), timeout=2.0) as connection:
        connection.sendall(request)
        return connection.makefile("rb").readline().strip()


STRANGERS = {
    "another page's origin": ("POST /{token}/key", "127.0.0.1", "Origin: http://evil.example\r\nContent-Length: 1", 403),
    "the origin of a frame": ("POST /{token}/key", "127.0.0.1", "Origin: null\r\nContent-Length: 1", 403),
    "a name that another machine has": ("POST /{token}/key", "evil.example", "Content-Length: 1", 403),
    "the same, only looking": ("GET /{token}/", "evil.example", "", 403),
    "no token": ("POST /key", "127.0.0.1", "Content-Length: 1", 403),
    "no token, only looking": ("GET /picture/0", "127.0.0.1", "", 403),
    "another token": ("GET /AAAAAAAAAAAAAAAAAAAAAA/", "127.0.0.1", "", 403),
    "a negative length": ("POST /{token}/key", "127.0.0.1", "Content-Length: -1", 400),
    "no length": ("POST /{token}/key", "127.0.0.1", "", 400),
    "a length of words": ("POST /{token}/key", "127.0.0.1", "Content-Length: many", 400),
    "a length behind zeros": ("POST /{token}/key", "127.0.0.1", "Content-Length: 0000009999999", 400),
    "a length of a thousand digits": ("POST /{token}/key", "127.0.0.1", f"Content-Length: {'0' * 999}1", 400),
    "a length with a sign": ("POST /{token}/key", "127.0.0.1", "Content-Length: +1", 400),
    "a length of two numbers": ("POST /{token}/key", "127.0.0.1", "Content-Length: 1, 1", 400),
    "two lengths": ("POST /{token}/key", "127.0.0.1", "Content-Length: 1\r\nContent-Length: 2", 400),
    "a length, and pieces": ("POST /{token}/key", "127.0.0.1", "Content-Length: 1\r\nTransfer-Encoding: chunked", 400),
    "too long a key": ("POST /{token}/key", "127.0.0.1", "Content-Length: 999999999999", 400),
    "something else": ("POST /{token}/keys", "127.0.0.1", "Content-Length: 1", 404),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_sees_nothing_and_presses_no_key(kind):
    what, host, headers, status = STRANGERS[kind]
    with Browser("", Page, keys={"up": ["k"]}) as screen:
        line = what.format(token=screen.token)
        request = f"{line} HTTP/1.1\r\nHost: {host}:{screen.port}\r\n{headers}\r\n\r\nq"
        assert asked(screen, request.replace("\r\n\r\n\r\n", "\r\n\r\n").encode()).split()[1] == str(status).encode()
        assert screen.key(0.05) is None


@pytest.mark.slow
def test_those_who_only_connect_leave_room_and_go():
    """Beyond 32 at once, a viewer is turned away; whoever says nothing is given up."""
    with Browser("", Page) as screen:
        idle = [socket.create_connection(("127.0.0.1", screen.port)) for _ in range(40)]
        idle[-1].settimeout(2.0)
        assert idle[-1].recv(1) == b""  # turned away
        for connection in idle:
            connection.close()
        time.sleep(0.3)
        assert urllib.request.urlopen(address_of(screen), timeout=5).status == 200


# -- the command


def test_two_runs_beside_each_other(learning, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(Browser, "show", lambda screen, pictures: shown.append([p.size for p in pictures]))
    watch([learning, learning], episodes=1, max_steps=3, fps=60.0, device="cpu")
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    assert len(shown) >= 3 and all(len(sizes) == 2 and sizes[0] == sizes[1] for sizes in shown)


def test_from_start_to_control_c(learning):
    """A process of its own, watched over HTTP while a new checkpoint comes; Ctrl-C ends it."""
    command = [sys.executable, "-m", "rl_lab", "watch", f"run={learning}", "fps=30", "max_steps=4", "device=cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        viewer = Viewing(process.stdout.readline().strip())
        before = viewer.picture()[:50]  # the title
        os.replace(learning / "later.pt", learning / "checkpoint.pt")
        changed = (np.abs(viewer.picture()[:50].astype(int) - before).max() > 60 for _ in range(600))
        assert any(changed)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()  # closes the pipes
