"""What a run says while it goes on."""

import time

from rl_lab.core.progress import LINE_EVERY, Progress
from rl_lab.core.run import Run


def test_without_a_terminal_there_is_a_plain_line_now_and_then(capsys):
    progress = Progress("mine")
    progress.begin(1_000, "steps", 100)
    now = time.monotonic()
    progress.show({"eval/return": 3.25, "dqn/loss": 1.0}, 100)
    progress.advance(200, now + LINE_EVERY / 2)
    assert capsys.readouterr().err == ""
    progress.advance(300, now + 20)
    assert capsys.readouterr().err == "mine: 300/1,000 steps · 10/s · eval/return 3.25 · 70 s left\n"


def test_a_run_goes_by_the_name_it_was_given(tmp_path):
    with Run(tmp_path, 0, "cpu", names={"name": "mine", "experiment": "theirs"}, config={}) as run:
        assert run.progress.name == "mine"
