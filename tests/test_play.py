"""An episode by hand: keys in through a real terminal, pictures, figures and a result out, the terminal as it was."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ale_py import Action
from PIL import Image
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.planned import Planned
from rl_lab.commands.play import Hand, bindings, by_hand, legend
from rl_lab.commands.play import kept as keep
from rl_lab.core.launching import cli
from rl_lab.core.recording import Recording
from rl_lab.looking.browser import Browser
from rl_lab.looking.terminal import BESIDE, Words, block, half_blocks, padded
from rl_lab.playing.player import Player
from rl_lab.playing.scenes import Moment, Page, play
from rl_lab.types import Transition

MDPEnv = stated("env/base/tabular")
gridworld = stated("env/base/gridworld", "mdp")
value_iteration = stated("planner/value_iteration")

ROOT = Path(__file__).parents[1]
GRID = "up", "right", "down", "left"
MOMENT = Moment(None, None, 2, 0.0, 0, 1, "")


class Sitting:
    """A command in a terminal of 100 x 30, and what a person would do there."""

    def __init__(self, *arguments: str):
        self.out = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
            os.execv(sys.executable, [sys.executable, "-m", "rl_lab", *arguments])
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    def until(self, words: str, since: int = 0) -> str:
        """Reads until the words stand in what is new."""
        end = time.monotonic() + 60
        while words not in self.text(since):
            assert time.monotonic() < end, self.text(since)[-500:]
            self.read(0.2)
        return self.text(since)

    def read(self, seconds: float) -> bool:
        if not select.select([self.terminal], [], [], seconds)[0]:
            return True
        try:
            self.out += os.read(self.terminal, 65536)
        except OSError:  # the other end is closed
            return False
        return True

    def text(self, since: int = 0) -> str:
        """Without colours and moves of the cursor."""
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.out[since:].decode(errors="replace"))

    def types(self, keys: bytes) -> int:
        os.write(self.terminal, keys)
        return len(self.out)

    def ends(self) -> int:
        """The exit code; -9 where it had to be killed."""
        end = time.monotonic() + 60
        while self.read(0.2) and time.monotonic() < end:
            pass
        if time.monotonic() > end:
            os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def echoes(self) -> bool:
        """Whether the terminal is as a shell wants it: lines, and what is typed is seen."""
        flags = termios.tcgetattr(self.terminal)[3]
        return bool(flags & termios.ECHO) and bool(flags & termios.ICANON)


# -- in a terminal


def test_an_episode_by_hand(plan, tmp_path):
    """A detour of two, by letters and arrows, kept as a demonstration; then the agent's own way."""
    sitting = Sitting("play", f"run={plan}", f"out={tmp_path / 'shown'}", "device=cpu")
    first = sitting.until("leave: q")
    assert "value_iteration_russell_norvig · " in first and "seed 0" in first and "greedy after" in first
    assert "up: ↑ k   right: → l   down: ↓ j   left: ← h   as the agent would: enter   leave: q" in first
    assert first.count("▀") > 1_000 and re.search(r"action values", first) and re.search(r"up +█+", first)
    assert not sitting.echoes()
    since = 0
    for key, step in ((b"k", 1), (b"\x1b[B", 2), (b"\x1b[A", 3), (b"z", 3), (b"\r", 4), (b"l", 5), (b"\x1bOC", 6)):
        since = sitting.types(key)
        if key != b"z":  # which stands for nothing
            sitting.until(f"{'step':<14}{step:>20}", since)
    sitting.types(b"lk")  # to the goal, and out of the world
    assert sitting.ends() == 0 and sitting.echoes()
    after = sitting.out[sitting.out.rindex(b"\x1b[?1049l") :].decode()
    assert "you: return 0.72 in 8 steps (terminated)" in after
    assert "value_iteration_russell_norvig · seed 0, greedy after" in after
    assert "return 0.8 in 6 steps (terminated)" in after
    (episode,) = Recording(tmp_path / "shown").episodes()
    assert episode.action[:3].tolist() == [0, 2, 0] and episode.obs.argmax(-1).tolist() == [7, 4, 7, 4, 0, 1, 2, 3, 11]
    assert episode.reward.sum() == pytest.approx(0.72) and episode.discount[-1] == 0


def test_two_who_play_at_once_are_both_kept(tmp_path):
    env = stated("env/base/tabular")(mdp=stated("env/base/gridworld", "mdp")("SG"), num_envs=1, time_limit=9)
    obs, right = env.reset(0), torch.tensor([env.spec.actions.index("right")])
    tape = [Transition.of(obs, right, env.step(right))]
    looked = [by_hand(tmp_path / "mine", env, {}) for _ in range(2)]
    said = [keep(tmp_path / "mine", about, tape, 1) for about in looked]
    assert [line.rpartition(": ")[2] for line in said] == ["1 episodes", "2 episodes"]
    assert len([*Recording(tmp_path / "mine").episodes()]) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_terminal_is_given_back(plan, number, code):
    sitting = Sitting("play", f"run={plan}", "device=cpu")
    sitting.until("leave: q")
    assert not sitting.echoes()
    os.kill(sitting.pid, number)
    assert sitting.ends() == code and sitting.echoes()
    assert sitting.out.endswith(b"\x1b[0m\x1b[?25h\x1b[?1049l") and b"Traceback" not in sitting.out


def test_a_game_runs_on(tmp_path):
    """CartPole at 50 steps a second, of which a terminal shows 10; the first key is waited for, then it falls."""
    sitting = Sitting("play", "env=gym", "fps=50", "device=cpu")
    sitting.until("leave: q")
    time.sleep(0.3)
    sitting.types(b"l")  # the action is called right
    assert sitting.ends() == 0
    steps = int(re.search(r"you: return (\d+) in \1 steps \(terminated\)", sitting.text())[1])
    assert 8 <= steps <= 11  # what pushing right all the time gives
    assert "random agent, random actions: return" in sitting.text()


def test_looking_on_in_a_terminal(plan):
    sitting = Sitting("watch", f"run={plan}", f"run={plan}", "view=terminal", "episodes=1", "fps=20", "device=cpu")
    assert sitting.ends() == 0 and sitting.echoes()
    text = sitting.text()
    assert text.count("value_iteration_russell_norvig") >= 2 and "terminated" in text and "0.8" in text


def test_mistakes(plan, capsys):
    lines = {
        (f"run={plan}",): "view=terminal needs a terminal to draw in, not a pipe or a file; take view=browser",
        (): "play in the world of one run, rl-lab play run=<folder>, or in any, rl-lab play env=<name>",
        (f"run={plan}", f"run={plan}/../{plan.name}"): f"these are 2 runs, and this takes one; name it, such as run={plan}",
        (f"run={plan}", f"out={plan}"):
            f"out={plan} holds other files and no recording.json; choose a new folder",
        (f"run={plan}", "env=four_rooms"):
            "play in the world of one run, rl-lab play run=<folder>, or in any, rl-lab play env=<name>",
    }  # fmt: skip
    for arguments, line in lines.items():
        assert cli.main("rl-lab", "rl", COMMANDS, ["play", *arguments, "device=cpu"]) == 2
        assert capsys.readouterr().err == f"rl-lab: {line}\n"


def test_a_world_that_cannot_be_seen(capsys):
    assert cli.main("rl-lab", "rl", COMMANDS, ["play", "env=gambler", "view=browser", "device=cpu"]) == 2
    assert capsys.readouterr().err == "rl-lab: random agent: its environment has no picture to film\n"


# -- keys


def test_which_key_is_which_action():
    assert bindings(GRID) == {"up": 0, "k": 0, "right": 1, "l": 1, "down": 2, "j": 2, "left": 3, "h": 3}
    pong = bindings(("noop", "fire", "right", "left", "rightfire", "leftfire"))
    assert pong == {".": 0, "space": 1, "right": 2, "l": 2, "left": 3, "h": 3, "L": 4, "H": 5}
    assert bindings(("0", "1")) == {"0": 0, "1": 1}
    taxi = bindings(("south", "north", "east", "west", "pickup", "dropoff"))
    assert taxi["down"] == 0 and taxi["up"] == 1 and taxi["4"] == 4 and taxi["5"] == 5
    assert bindings(("LEFT", "Noop")) == {"left": 0, "h": 0, ".": 1}
    rows = {"0": ["0"], "left": ["←", "h"], "as the agent would": ["enter"], "leave": ["q"]}
    assert legend(("0", "left"), bindings(("0", "left"))) == rows


def test_every_action_of_every_atari_game_has_a_key():
    actions = tuple(Action(a).name.lower() for a in range(18))
    keys = bindings(actions)
    assert set(keys.values()) == set(range(18)) and not {"q", "enter", "escape"} & set(keys)
    assert (keys["u"], keys["U"]) == (actions.index("upright"), actions.index("uprightfire"))
    many = bindings(tuple(map(str, range(40))))
    assert len(many) == 40 and "q" not in many and many["9"] == 9 and many["a"] == 10


def hand(rate: float | None, *keys: str) -> Hand:
    screen = Browser("", Page)
    for key in keys:
        screen.press(key)
    return Hand(screen, bindings(GRID), rate)


def test_a_world_that_waits_takes_one_key_a_step():
    person = hand(None, "ArrowUp", "z", "h", "Enter", "q", "j")
    assert [person.choose(MOMENT) for _ in range(4)] == [0, 3, 2, None]


def test_in_a_game_a_key_stays_down_until_the_next():
    person = hand(20.0, "k")
    began = time.monotonic()
    assert [person.choose(MOMENT) for _ in range(5)] == [0] * 5
    assert 0.19 < time.monotonic() - began < 0.6
    person.screen.press("l")
    person.screen.press("h")
    assert [person.choose(MOMENT) for _ in range(3)][1:] == [3, 3]  # the later of two keys
    person.screen.press("Enter")
    assert [person.choose(MOMENT) for _ in range(2)][1] == 2  # from here on the agent plays
    person.screen.press("q")
    assert None in [person.choose(MOMENT) for _ in range(2)]


def test_the_key_moves_the_world_and_not_the_agents_wish():
    env = MDPEnv(gridworld("...G\n.#.X\nS...", noise=0.0), 1, time_limit=9)
    *_, solved = value_iteration(env.mdp, gamma=0.9)
    player = Player("plan", "plan", Path(), env, Planned(solved.q, solved.policy, env.states), 1, "sweeps")
    moments = play(player, episodes=1, seed=0, max_steps=9)
    start = next(moments)
    assert start.action in (0, 1)  # up, or right below the wall
    back = moments.send(3)  # left, into the wall
    assert back.step == 1 and back.picture.tobytes() == start.picture.tobytes()
    assert moments.send(1).picture.tobytes() != start.picture.tobytes()


# -- lines of characters


def test_half_blocks():
    pixels = np.array([[[1, 2, 3], [1, 2, 3]], [[4, 5, 6], [4, 5, 6]]], np.uint8)
    assert half_blocks(pixels) == ["\x1b[38;2;1;2;3;48;2;4;5;6m▀▀\x1b[0m"]
    pixels[1, 1] = 7
    assert half_blocks(pixels) == ["\x1b[38;2;1;2;3;48;2;4;5;6m▀\x1b[38;2;1;2;3;48;2;7;7;7m▀\x1b[0m"]


def test_a_block_is_as_wide_as_it_should_be():
    picture, plain = Image.new("RGB", (160, 210), "#123456"), re.compile(r"\x1b\[[\d;]*m")
    for columns, rows in ((100, 30), (80, 24), (40, 12), (20, 30), (40, 2)):
        lines = block(picture, ["\x1b[31mred\x1b[0m", "x" * 200], columns, rows)
        assert len(lines) <= rows and {len(plain.sub("", line)) for line in lines} == {columns}
    above = [plain.sub("", line) for line in block(picture, ["red", "blue"], 40, 20)]  # too narrow for both
    assert "▀" in above[0] and "▀" in above[17] and [line.strip() for line in above[18:]] == ["red", "blue"]
    lines = block(picture, [], 100, 30)
    assert len(lines) == 30 and plain.sub("", lines[0]).count("▀") == int(60 / 210 * 160)
    assert padded("\x1b[31mab\x1b[0m", 4) == "\x1b[31mab\x1b[0m  " and padded("\x1b[31mab\x1b[0m", 1) == "a"


def test_bars_of_words():
    words = Words("me", "greedy", GRID, "probabilities")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in words.draw({"step": "7"}, "cut", (1.0, 0.5, 0.25, 0.0), 0)]
    assert lines[:2] == ["me", "greedy"] and lines[3] == f"{'step':<14}{'7':>{BESIDE - 14}}"
    assert lines[5].split() == ["probabilities", "cut"]
    widths = [line.count("█") for line in lines[6:]]
    assert widths[0] == BESIDE - 15 and widths[1] == (BESIDE - 15) // 2 and widths[3] == 0
    assert [line.split()[-1] for line in lines[6:]] == ["1.00", "0.50", "0.25", "0.00"]
    values = Words("me", "greedy", GRID, "action values")
    values.draw({}, "", (0.0, 1.0, 2.0, 4.0), 3)
    again = values.draw({}, "", (2.0, 2.0, 2.0, 2.0), 3)
    assert all(line.count("█") == (BESIDE - 15) // 2 for line in again[5:])  # on the scale of all that it has shown
