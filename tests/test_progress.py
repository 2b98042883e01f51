"""What a run says while it goes on."""

import io
import time

import pytest
from rich.console import Console

from rl_lab.core.progress import LATEST, SOONEST, Progress, duration
from rl_lab.core.run import Run


def test_without_a_terminal_there_is_a_plain_line_now_and_then(capsys):
    progress = Progress("mine")
    progress.begin(1_000, "steps", 100)
    now = time.monotonic()
    progress.show({"eval/return": 3.25, "dqn/loss": 1.0})
    progress.advance(200, now + SOONEST / 2)
    assert capsys.readouterr().err == ""
    progress.advance(300, now + 20)
    assert capsys.readouterr().err == "mine: 300/1,000 steps · 70 s left · eval/return 3.25 · 10/s\n"


def test_the_longer_a_run_the_rarer_its_lines(capsys):
    progress = Progress("mine")
    progress.begin(1_000, "steps", 0)
    start = time.monotonic()
    for seconds in range(4_000):
        progress.advance(100, start + seconds)
    assert 4_000 / LATEST < len(capsys.readouterr().err.splitlines()) < 110


def test_a_line_has_80_columns_whatever_it_holds(capsys):
    """And what is left out is not the time that remains, which is never a number of six digits."""
    progress = Progress("a_name_that_is_so_long_that_not_even_a_page_of_this_width_has_room_for_all_of_it")
    progress.begin(1_000_000_000, "updates", 0)
    progress.show({"eval/nll_bound_nats[mnist-levels-given-label]": 1234.5678, "episode/return": -123.456})
    progress.advance(10_000, time.monotonic() + 20)
    assert "left" not in capsys.readouterr().err, "of the first thousandth nothing is foretold"
    progress.advance(1_000_000, time.monotonic() + 2_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= 80 and " 1,000,000/1,000,000,000 updates · 23 days left" in line
    progress = Progress("vae_digits")
    progress.begin(10_000, "updates", 0)
    progress.show({"eval/nll_bound_nats[digits-binary]": 18.234})
    progress.advance(5_000, time.monotonic() + 20)
    line = "vae_digits: 5,000/10,000 updates · 20 s left · eval/nll_bound_nats 18.23 · 250/s\n"
    assert capsys.readouterr().err == line and len(line) == 81


@pytest.mark.parametrize("width", [60, 80, 200])
def test_on_a_terminal_nothing_is_cut_off(width):
    progress, screen = Progress("dqn_four_rooms_and_more_of_it"), io.StringIO()
    progress.console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    progress.begin(300_000, "steps", 0)
    progress.show({"eval/return": 0.9312, "episode/return": 0.875})
    progress.advance(100_000, time.monotonic() + 20)
    progress.close()
    drawn = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "100,000" in line][-1]
    assert "…" not in drawn.replace("dqn_four_rooms_and_more_o…", "") and len(drawn.rstrip()) <= 85  # with its codes
    assert ("40 s left" in drawn) == (width >= 80)


def test_time_is_told_as_one_says_it():
    seconds = [0.04, 9.94, 42.4, 99, 1_000, 6_100, 100_000, 1_931_678]
    assert [duration(x) for x in seconds] == ["0.0 s", "9.9 s", "42 s", "99 s", "17 min", "1.7 h", "27.8 h", "22 days"]


def test_a_run_goes_by_the_name_it_was_given(tmp_path):
    with Run(tmp_path, 0, "cpu", names={"name": "mine", "experiment": "theirs"}, config={}) as run:
        assert run.progress.name == "mine"
