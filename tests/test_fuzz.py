"""Command lines that nobody would type: each ends well, or in a line or three, soon, whatever was set to whatever.

`pytest -m slow tests/test_fuzz.py -s` prints how many there were of each. Settings come from the presets themselves.
"""

import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core.launching import cli, composition

CASES = int(os.environ.get("FUZZ_CASES", 500))
SOON, LINES = 20.0, 3  # seconds, lines on stderr beside what a run says of its progress
QUICK = ["tracker=none", "device=cpu", "loop.total_steps=64", "loop.eval_every=64", "loop.eval_episodes=1"]
PLAN = ["tracker=none", "device=cpu", "loop.eval_episodes=1", "loop.film=false"]
FIT = ["tracker=none", "device=cpu", "loop.total_steps=2", "loop.eval_every=2", "loop.iwae_samples=0"]
TRAINED = {
    ("rl", "experiment=dqn_four_rooms"): [*QUICK, "env.num_envs=2"],
    ("rl", "experiment=a2c_russell_norvig"): [*QUICK, "env.num_envs=2"],
    ("rl", "experiment=ppo_cartpole"): [*QUICK, "env.num_envs=2"],
    ("rl", "experiment=pqn_four_rooms"): [*QUICK, "env.num_envs=2"],
    ("rl", "experiment=reinforce_short_corridor"): [*QUICK, "env.num_envs=2"],
    ("rl", "experiment=q_learning_cliff_walking"): QUICK,
    ("rl", "experiment=vpn_four_rooms"): [*QUICK, "agent.random_steps=64"],
    ("rl", "experiment=dqn_collect_small"): [*QUICK, "env.num_envs=2", "loop.eval_env.num_envs=2", "env.mazes=8", "loop.eval_env.mazes=8"],
    ("rl", "experiment=dqn_pong"): [*QUICK, "env.num_envs=2", "env.max_frames=400", "agent.replay.capacity=1000"],
    ("rl", "experiment=sb3_ppo_cartpole"): [*QUICK, "env.num_envs=2"],
    ("rl", "experiment=fitted_q_russell_norvig"): ["tracker=none", "device=cpu", "loop.random_steps=200", "loop.iterations=2", "loop.eval_episodes=1"],
    ("rl", "experiment=value_iteration_russell_norvig"): PLAN,
    ("rl", "experiment=policy_iteration_car_rental"): [*PLAN, "+env.mdp.capacity=4"],
    ("gen", "experiment=vae_digits"): FIT,
    ("gen", "experiment=gated_pixelcnn_digits"): [*FIT, "loop.pictured=1"],
    ("gen", "experiment=dcgan_digits"): FIT,
    ("gen", "experiment=bernoulli_mixture_digits"): FIT,
    ("gen", "experiment=vqvae_digits"): [*FIT, "loop.pictured=1"],
}  # fmt: skip
# More of these is more work and no mistake: too much of it is stopped by whoever asked for it.
AMOUNTS = {"total_steps", "eval_every", "eval_episodes", "episodes", "iterations", "updates", "epochs", "count", "random_steps",
           "iwae_samples", "resamples", "steps", "max_steps", "time_limit", "sweeps", "trees", "max_frames", "warmup",
           "pictured", "importance_samples", "mazes", "size", "height", "width", "goal", "capacity", "num_envs", "depth",
           "prediction_steps", "blocks", "layers", "samples", "frame_skip"}  # fmt: skip
VALUES = [
    "0", "-1", "1", "2", "0.5", "2.5", "1e6", "1e9", "1e12", "1e18", "1e30", "-1e30", "1e-300", "nan", "inf", "-inf", "true",
    "null", "''", "x", "[]", "{}", "[1]", "[1,2]", "[[1]]", "{a:1}", "[{a:1}]", "{_target_:os.getcwd}", "???", "${nothere}", "${name}",
    "${oc.env:HOME}", "../../x", "/etc/passwd", "/dev/zero", "/", ".", "..", "é💥", "'\\x1b[31mred'", "'$\\frac{$'", "'a b'", "'x'",
    "x" * 300, "'" + "y" * 300 + "'", "1,2", "choice(1,2)", "range(0,3)", "glob(*)", "@", "[", "{", "'", "\\", "a=b", "=", "~", "0x10", "1_000",
]  # fmt: skip
FLAGS = [
    "-m",
    "--cfg",
    "--cfg=job",
    "--multirun",
    "-x",
    "--foo=1",
    "--config-dir=/nowhere",
    "--config-name=x",
    "--",
    "-",
    "--resolve",
]


def settings_of(root: str, preset: str) -> list[str]:
    cfg = composition.compose(composition.conf_dir(), root, [preset])
    return sorted({*composition.flatten(cfg), *composition.groups(root)} - {"study", "experiment"})


def command_settings(root: str, name: str) -> list[str]:
    if name == "study":
        return ["x", "run"]
    cfg = composition.compose(composition.conf_dir(), f"command/{root}/{name}", [])
    return sorted(key for key in composition.flatten(cfg) if not key.startswith("_")) + ["env", "run", "agent.gamma"]


@st.composite
def typed(draw) -> tuple[str, list[str], set[str]]:
    """Lab, arguments, and the last word of each setting that was changed."""
    if draw(st.integers(0, 3)):
        (root, preset), quick = draw(st.sampled_from(sorted(TRAINED.items())))
        words, keys = ["train", preset, *quick], settings_of(root, preset)
    else:
        root = draw(st.sampled_from(["rl", "gen"]))
        name = draw(st.sampled_from(sorted(set(RL if root == "rl" else GEN) - {"train"})))
        words, keys = [name], command_settings(root, name)
    changed = set()
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(keys))
        changed.add(key.rsplit(".", 1)[-1])
        match draw(st.integers(0, 11)):
            case 0:
                words.append(f"~{key}")
            case 1:
                words.append(
                    f"+{key}.{draw(st.sampled_from(['x', 'size', '_target_']))}={draw(st.sampled_from(VALUES))}"
                )
            case 2:
                cut = draw(st.integers(0, len(key) - 1))
                words.append(f"{key[:cut]}{key[cut + 1 :]}={draw(st.sampled_from(VALUES))}")
            case 3:
                words.append(draw(st.sampled_from(FLAGS)))
            case 4:
                words.append(draw(st.text(max_size=20).filter(lambda text: "\0" not in text)))
            case _:
                words.append(f"{key}={draw(st.sampled_from(VALUES))}")
    return root, words, changed


def ended(root: str, words: list[str]) -> tuple[int, float, str]:
    """Exit code, seconds and stderr, of a process of its own: a copy of this one, which has imported everything."""
    here, (out, into) = tempfile.mkdtemp(), os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(here)
        for number, file in ((0, os.open(os.devnull, os.O_RDWR)), (1, os.open(os.devnull, os.O_RDWR)), (2, into)):
            os.dup2(file, number)
        sys.stderr, sys.stdout = os.fdopen(2, "w", buffering=1, closefd=False), os.fdopen(1, "w", closefd=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**31, 2**31))
        code = 1
        try:
            code = cli.main(f"{root}-lab", root, RL if root == "rl" else GEN, words)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(into)
    began, text, stopped, ended = time.monotonic(), b"", False, None
    while ended is None:
        if select.select([out], [], [], 0.1)[0]:
            text += os.read(out, 65536)
        pid, status = os.waitpid(child, os.WNOHANG)
        ended = os.waitstatus_to_exitcode(status) if pid else None
        if ended is None and time.monotonic() - began > SOON + 10 * stopped:
            os.killpg(child, signal.SIGKILL if stopped else signal.SIGTERM)
            stopped = True
    seconds = time.monotonic() - began
    while select.select([out], [], [], 0)[0] and (part := os.read(out, 65536)):
        text += part
    with suppress(ProcessLookupError):  # workers of a study wait a while for more
        os.killpg(child, signal.SIGKILL)
    os.close(out)
    return ended, seconds, text.decode(errors="replace")


SAID = Counter()


@pytest.mark.slow
@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=False,
)
@given(typed())
def test_whatever_is_typed_ends_well_or_in_a_line(case):
    root, words, changed = case
    code, seconds, said = ended(root, words)
    lines = [line for line in said.splitlines() if line.strip()]
    late = seconds > SOON
    kind = "stopped" if late and changed & AMOUNTS and code in (143, -9) else str(code)
    SAID[kind] += 1
    SAID["slowest"] = max(SAID["slowest"], round(seconds))
    told = f"{root}-lab {' '.join(words)}\n{code} in {seconds:.1f} s\n{said[-2000:]}"
    if "-m" in words or "--multirun" in words or any("," in w or "(" in w for w in words):
        lines = lines[-LINES:]  # a study says a line for each job
    assert kind in ("0", "2", "stopped"), told
    assert "Traceback" not in said and "\x1b" not in said, told
    assert code != 2 or len(lines) <= LINES, told


@pytest.mark.slow
def test_how_many_there_were():
    print(f"\n{CASES} command lines: {dict(SAID)}")
    assert sum(n for kind, n in SAID.items() if kind != "slowest") >= CASES


def test_the_settings_that_are_changed_are_those_of_the_presets():
    keys = settings_of("rl", "experiment=dqn_four_rooms")
    assert {"agent.gamma", "env.mdp.map", "loop.total_steps", "name", "tracker._target_"} <= set(keys) and Path(
        "conf"
    ).name
