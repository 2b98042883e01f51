"""What the labs run on: newer Pythons, other accelerators, and the system that they refuse."""

import argparse
import subprocess
import sys

import pytest
import torch
from hydra._internal.utils import get_args_parser
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core import devices
from rl_lab.core.errors import WINDOWS, UserError
from rl_lab.core.launching import cli
from rl_lab.core.launching.patches import lazy_help
from rl_lab.parts import PARTS

# -- Python 3.14


@pytest.fixture
def looks_into_help(monkeypatch):
    """argparse as it is from Python 3.14 on."""
    if hasattr(argparse.ArgumentParser, "_check_help"):
        return
    plain = argparse._ActionsContainer.add_argument

    def check(self, action):
        try:
            if action.help and "%" in action.help:
                self._get_formatter()._expand_help(action)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("badly formed help string") from error

    def add_argument(self, *names, **how):
        action = plain(self, *names, **how)
        if hasattr(self, "_check_help"):
            self._check_help(action)
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_argument)


def test_hydra_is_read_by_an_argparse_that_looks_into_help(looks_into_help, capsys):
    with pytest.raises(ValueError, match="badly formed help string"):
        get_args_parser()
    with lazy_help(), pytest.raises(ValueError, match="badly formed help string"):
        argparse.ArgumentParser().add_argument("--odd", help="%(nothing)s")
    assert cli.main("rl-lab", "rl", RL, ["train", "experiment=dqn_cartpole", "--cfg=job"]) == 0
    assert "\n  total_steps: 60000\n" in capsys.readouterr().out
    assert cli.main("rl-lab", "rl", RL, ["train", "agent=dqnn"]) == 2
    assert capsys.readouterr().err == "rl-lab: no choice 'dqnn' for agent; did you mean agent=dqn?\n"
    with pytest.raises(ValueError, match="badly formed help string"):
        get_args_parser()  # nothing is left behind


# -- devices

GRIDWORLD = {"env": {"_target_": "rl_lab.envs.tabular.stepper.MDPEnv"}, "loop": {"env": "${env}"}}


@pytest.mark.parametrize(
    ("there", "config", "taken"),
    [
        ({"cuda", "xpu", "mps"}, {}, "cuda"),
        ({"xpu", "mps"}, {}, "xpu"),
        ({"mps"}, {}, "mps"),
        (set(), {}, "cpu"),
        ({"mps"}, GRIDWORLD, "cpu"),
        ({"xpu"}, GRIDWORLD, "xpu"),
    ],
)
def test_auto_takes_the_best_device_that_can_compute_it(there, config, taken, monkeypatch):
    monkeypatch.setattr(devices, "has", there.__contains__)
    assert devices.chosen("auto", config=config, exact=PARTS.exact) == taken
    for kind in there:
        assert devices.chosen(kind) == kind


@pytest.mark.parametrize(
    ("name", "config", "line"),
    [
        ("mps", GRIDWORLD, "device=mps has no float64, in which rl_lab.envs.tabular.stepper.MDPEnv computes; "
                           "use device=cpu or device=auto"),
        ("mps:1", {}, "device=mps:1 is not a choice; choose from auto, cpu, cuda, xpu, mps"),
        ("xpu:2", {}, "device=xpu:2, and this machine has 2 Intel GPUs, numbered from xpu:0"),
        ("cuda", {}, "device=cuda, but torch sees no GPU here; use device=cpu or device=auto"),
    ],
)  # fmt: skip
def test_a_device_that_will_not_do_is_one_line(name, config, line, monkeypatch):
    monkeypatch.setattr(devices, "has", {"xpu", "mps"}.__contains__)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    with pytest.raises(UserError) as error:
        devices.chosen(name, config=config, exact=PARTS.exact)
    assert str(error.value) == line


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_device_that_is_not_here_is_one_line(kind, capsys):
    if devices.has(kind):
        pytest.skip(f"a machine with {kind}")
    words = {"mps": "Apple GPU", "xpu": "Intel GPU"}[kind]
    assert cli.main("rl-lab", "rl", RL, ["train", "env=gym", "agent=dqn_mlp", "tracker=none", f"device={kind}"]) == 2
    line = f"rl-lab: device={kind}, but torch sees no {words} here; use device=cpu or device=auto\n"
    assert capsys.readouterr().err == line


class WithoutFloat64(TorchDispatchMode):
    """As a device that has none: float64 is made by `devices.double` alone, and of what it made."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if has_float64(result) and not has_float64((args, kwargs)):
            frame, code = sys._getframe(), devices.double.__code__
            while frame and frame.f_code is not code:
                frame = frame.f_back
            if not frame:
                raise TypeError(f"{func} makes float64, which the device has not")
        return result


def has_float64(tree) -> bool:
    return any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(tree))


SHORT = ["env=gym", "agent/network=mlp", "loop.total_steps=256", "loop.eval_every=256", "loop.eval_episodes=1",
         "tracker=none", "device=cpu"]  # fmt: skip


@pytest.mark.parametrize("agent", ["dqn_mlp agent.learning_starts=64 agent.eval_epsilon=0.1", "ppo_mlp"])
def test_float64_is_made_where_the_device_has_it(agent, tmp_path):
    arguments = ["train", *SHORT, *f"agent={agent}".split(), f"hydra.run.dir={tmp_path / 'run'}"]
    with WithoutFloat64():
        assert cli.main("rl-lab", "rl", RL, arguments) == 0


def test_float64_made_elsewhere_is_found():
    with WithoutFloat64(), pytest.raises(TypeError, match="makes float64"):
        torch.ones(2).double()


# -- Windows


def test_windows_is_told_in_one_line():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['fcntl', 'resource', 'termios', 'tty'])\n"
        "from rl_lab.__main__ import main\n"
        "from rl_lab.core.errors import UserError\n"
        "for name in 'locks', 'room':\n"
        "    try: __import__(f'rl_lab.core.{name}')\n"
        "    except UserError as error: print(error)\n"
        "sys.argv[1:] = ['train', 'env=four_rooms']\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == (f"{WINDOWS}\n" * 2, f"rl-lab: {WINDOWS}\n", 2)
