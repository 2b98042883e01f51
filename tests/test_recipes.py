"""What the README says about adding an agent, an environment or a model, done in a copy of the checkout, and its example
in Python.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rl_lab
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import stream

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SECTION = README.partition("## Adding something\n")[2].partition("\n## ")[0]
RECIPES = {name: text for name, text in re.findall(r"\*\*An? (\w+)\*\*(.*?)(?=\n\n|\Z)", SECTION, re.DOTALL)}

AGENT = {
    "rl_lab/agents/x.py": '''
import torch

from rl_lab.core.learner import Learner
from rl_lab.core.randomness import generator
from rl_lab.agents.exploration import certain, epsilon_greedy
from rl_lab.types import View


class X(Learner):
    """A table of one-step Q-learning on one-hot observations."""

    saved = "table", "rng"

    def __init__(self, spec, device, seed, *, step_size: float, gamma: float):
        self.table = torch.zeros(*spec.obs_shape, spec.num_actions, device=device)
        self.rng, self.step_size, self.gamma = generator(seed, device), step_size, gamma

    def q(self, obs):
        return obs @ self.table

    def act(self, obs, greedy=False):
        return self.q(obs).argmax(-1) if greedy else epsilon_greedy(self.q(obs), 0.3, self.rng)

    def probabilities(self, obs):
        return certain(self.act(obs, greedy=True), self.table.shape[-1])

    def update(self, transition):
        target = transition.reward + self.gamma * transition.discount * self.q(transition.next_obs).max(-1).values
        state = transition.obs.argmax(-1)
        error = target - self.table[state, transition.action]
        self.table[state, transition.action] += self.step_size * error
        return {"x/td_error": error.abs().mean()}

    def view(self, obs):
        q = self.q(obs)
        return View(q, q.max(-1).values, "action values")
''',
    "conf/agent/x.yaml": """
_target_: rl_lab.agents.x.X
_partial_: true
step_size: 0.5
gamma: 0.9
""",
}
GRIDWORLD = {
    "conf/env/x.yaml": """
# A world of seven cells.
defaults: [base/tabular, base/gridworld, _self_]
mdp:
  map: |
    S..G
    .#.X
  gamma: 0.9
num_envs: 8
time_limit: 20
"""
}
ENVIRONMENT = {
    "rl_lab/envs/y.py": '''
import torch

from rl_lab.core.randomness import generator, restore_generator
from rl_lab.types import Spec, Step


class Y:
    """Guess the bit that is seen; an episode is one guess."""

    time_limit, frames_per_second = None, None

    def __init__(self, num_envs: int, *, reward: float, device="cpu"):
        self.num_envs, self.device, self.reward = num_envs, torch.device(device), reward
        self.spec = Spec((2,), torch.float32, ("zero", "one"))
        self.rng = generator(0, self.device)

    def reset(self, seed):
        self.rng.manual_seed(seed)
        self.bit = self.draw()
        return self.observe()

    def draw(self):
        return torch.randint(2, (self.num_envs,), generator=self.rng, device=self.device)

    def step(self, action):
        reward, next_obs = self.reward * (action == self.bit).float(), self.observe()
        self.bit = self.draw()
        ended, ones = torch.zeros_like(reward), torch.ones_like(reward)
        return Step(reward, ended, ones.bool(), next_obs, self.observe(), ones)

    def observe(self):
        return torch.eye(2, device=self.device)[self.bit]

    def state_dict(self):
        return {"bit": self.bit, "rng": self.rng.get_state()}

    def load_state_dict(self, state):
        self.bit = state["bit"].to(self.device)
        restore_generator(self.rng, state["rng"])

    def close(self): ...
''',
    "conf/env/y.yaml": """
_target_: rl_lab.envs.y.Y
num_envs: 4
reward: 2.0
device: ${device}
""",
}
MODEL = {
    "gen_lab/models/x.py": '''
import torch

from gen_lab.losses import bits_per_dim
from rl_lab.core.learner import Learner


class X(Learner):
    """Every bit of an image is 1 with one probability, which is counted."""

    saved = ("ones", "seen")

    def __init__(self, spec, device, seed, *, prior: float):
        self.spec, self.device, self.ones, self.seen = spec._replace(classes=0), device, prior, 2 * prior

    def update(self, x, label=None):
        self.ones += float(x.sum())
        self.seen += x.numel()
        return {"x/ones": self.ones / self.seen}

    def score(self, x, generator, iwae_samples=0, label=None):
        p = self.ones / self.seen
        nll = -torch.where(x > 0.5, torch.tensor(p).log(), torch.tensor(1 - p).log()).flatten(1).sum(1)
        return {"nll_nats": nll, "bits_per_dim": bits_per_dim(nll, self.spec.shape)}

    def sample(self, count, generator, label=None):
        return (torch.rand(count, *self.spec.shape, generator=generator) < self.ones / self.seen).float()
''',
    "conf/model/x.yaml": """
_target_: gen_lab.models.x.X
_partial_: true
prior: 1.0
""",
    "conf/experiment/x_digits.yaml": """
# @package _global_
# One probability for all pixels.
defaults:
  - override /data: digits
  - override /model: x
name: x_digits
loop: {total_steps: 20, eval_every: 10}
""",
}
PARTS = {
    "rl_lab/parts.py": '**parts("rl_lab.agents.x", "X"), **parts("rl_lab.envs.y", "Y"),',
    "gen_lab/parts.py": '**parts("gen_lab.models.x", "X"),',
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The checkout with the files of the three recipes added."""
    folder = tmp_path_factory.mktemp("clone")
    for part in "rl_lab", "gen_lab", "conf":
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in (AGENT | GRIDWORLD | ENVIRONMENT | MODEL).items():
        assert not (folder / path).exists()
        (folder / path).write_text(text.lstrip())
    for path, line in PARTS.items():
        before = (folder / path).read_text()
        (folder / path).write_text(before.replace("    **TORCH,\n", f"    **TORCH,\n    {line}\n", 1))
    return folder


def run(clone: Path, lab: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", lab, *arguments], cwd=clone, env=os.environ | {"PYTHONPATH": str(clone)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def final(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["state"] == "finished"
    return summary["final"]


def test_the_readme_names_these_files():
    """All of a recipe's files, and no other; what stands in a bracket or after "like" is there to be read."""
    named = {name: {path for path in re.findall(r"`([\w./]+\.(?:py|yaml))`", text)} for name, text in RECIPES.items()}
    read = {
        "rl_lab/core/learner.py", "rl_lab/types.py", "gen_lab/types.py", "conf/env/windy.yaml",
        "rl_lab/envs/abilities.py",
        "tests/test_agents.py",
    }  # fmt: skip
    assert all((ROOT / path).is_file() for path in read)
    assert {name: paths - read for name, paths in named.items()} == {
        "agent": {*AGENT, "rl_lab/parts.py"},
        "environment": {*GRIDWORLD, *ENVIRONMENT, "rl_lab/parts.py"},
        "model": {*MODEL, "gen_lab/parts.py"},
    }


def test_the_readme_names_the_methods():
    for recipe, files in ("agent", AGENT), ("environment", ENVIRONMENT), ("model", MODEL):
        code = next(text for path, text in files.items() if path.endswith(".py"))
        helpers = {"agent": {"q"}, "environment": {"draw"}, "model": set()}[recipe]
        written = {name for name in re.findall(r"def (\w+)", code) if name != "__init__"} - helpers
        assert all(re.search(f"`{name}[`(]", RECIPES[recipe]) for name in written), written


@pytest.mark.slow
def test_an_agent_on_a_gridworld(clone):
    """Trained, resumed to twice the steps, evaluated and filmed."""
    short = "loop.total_steps=4_000", "loop.eval_every=2_000", "loop.eval_episodes=8"
    run(clone, "rl_lab", "train", "agent=x", "env=x", *short, "tracker=none", "device=cpu", "hydra.run.dir=runs/a")
    assert final(clone / "runs/a")["eval/regret"] == pytest.approx(0.0, abs=1e-6)
    run(clone, "rl_lab", "train", "run=runs/a", "loop.total_steps=8_000")
    assert json.loads((clone / "runs/a/metrics.jsonl").read_text().splitlines()[-1])["step"] == 8_000
    assert "8,000" in run(clone, "rl_lab", "evaluate", "runs/a", "episodes=4", "device=cpu")
    run(clone, "rl_lab", "render", "runs/a", "episodes=1", "tracker=none", "device=cpu", "out=film.gif")
    assert (clone / "film.gif").stat().st_size > 1_000


@pytest.mark.slow
def test_an_environment_that_is_a_class(clone):
    short = "loop.total_steps=2_000", "loop.eval_every=1_000", "loop.eval_episodes=8"
    run(clone, "rl_lab", "train", "agent=x", "env=y", *short, "tracker=none", "device=cpu", "hydra.run.dir=runs/e")
    assert final(clone / "runs/e")["eval/return"] == 2.0
    run(clone, "rl_lab", "train", "run=runs/e", "loop.total_steps=3_000")
    run(clone, "rl_lab", "evaluate", "runs/e", "episodes=4", "device=cpu")


@pytest.mark.slow
def test_a_model(clone):
    run(clone, "gen_lab", "train", "experiment=x_digits", "tracker=none", "device=cpu", "hydra.run.dir=runs/m")
    assert 30 < final(clone / "runs/m")["eval/nll_nats[digits-binarised]"] < 45  # a coin for each pixel: 44.4
    assert "nll_nats" in run(clone, "gen_lab", "evaluate", "run=runs/m", "device=cpu")
    run(clone, "gen_lab", "sample", "run=runs/m", "tracker=none", "device=cpu")
    assert list((clone / "runs/m").glob("samples*.png"))


@pytest.mark.slow
def test_without_its_line_in_parts_a_run_is_read_back_by_its_own_user_alone(clone):
    """What the README says this line is for."""
    path = clone / "rl_lab/parts.py"
    with_it = path.read_text()
    path.write_text(with_it.replace(PARTS["rl_lab/parts.py"], ""))
    try:
        short = "loop.total_steps=64", "loop.eval_every=64", "loop.eval_episodes=1"
        run(clone, "rl_lab", "train", "agent=x", "env=x", *short, "tracker=none", "device=cpu", "hydra.run.dir=runs/p")
        run(clone, "rl_lab", "evaluate", "runs/p", "episodes=1", "device=cpu")
        shutil.copytree(clone / "runs/p", clone / "runs/copy")
        with pytest.raises(AssertionError, match="rl_lab.agents.x.X"):
            run(clone, "rl_lab", "evaluate", "runs/copy", "episodes=1", "device=cpu")
    finally:
        path.write_text(with_it)


def test_the_example_in_python(capsys):
    """The block of Python in the README prints what its last line says."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    *_, last = code.splitlines()
    assert capsys.readouterr().out.strip() == re.search(r"# ([\d.]+):", last)[1]


@pytest.mark.parametrize(
    "settings, words",
    [
        (["env=windi"], "no choice 'windi' for env; did you mean env=windy?"),
        (["agent.gama=0.9"], "no setting 'agent.gama'; did you mean agent.gamma?"),
        (["agent.gamma=2"], "agent.gamma=2 must be between 0 and 1"),
        (["env=cartpole", "agent=sb3_dqn"], "this agent is trained by a loop of its own"),
    ],
)
def test_from_python_a_mistake_is_named_as_on_the_command_line(settings, words):
    with pytest.raises(UserError, match=re.escape(words)):
        rl_lab.build(*settings)


def test_from_python_settings_and_seed_are_those_typed():
    env, agent = rl_lab.build("env=windy", "agent=q_learning", "agent.gamma=0.9", "env.num_envs=3", "seed=4")
    assert (env.num_envs, env.time_limit, agent.gamma) == (3, 1_000, 0.9)
    assert agent.rng.initial_seed() == stream(4, "agent")
