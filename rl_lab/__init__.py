"""Reinforcement learning: environments, agents, planners, and the loops that join them.

Importing it makes the worlds known to Gymnasium, as rl_lab/FourRooms-v0 and the like, and imports nothing else. What
the command line does, the functions below do from Python, by settings as they are typed there:

    folder = rl_lab.train("experiment=dqn_cartpole", "seed=1")
    rl_lab.evaluate(folder, episodes=100)["scores"]["eval/return"]
    player = rl_lab.load(folder)
    action = player.act(player.env.reset(seed=0))
    rl_lab.frame("runs/dqn_cartpole").plot(x="step", y="eval/return")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from rl_lab.gymnasium_api.registration import register_with_gymnasium

if TYPE_CHECKING:
    from rl_lab.playing.player import Player
    from rl_lab.types import Agent, VectorEnv

__version__ = "0.1.0"

register_with_gymnasium()


def build(*settings: str, **named: Never) -> "tuple[VectorEnv, Agent]":
    """The environment and the agent of `rl-lab train` with these settings, untrained.

    >>> env, agent = rl_lab.build("env=windy", "env.num_envs=4", "agent=dqn")
    >>> agent.act(env.reset(seed=0)).shape
    torch.Size([4])

    Raises UserError where a setting is not known, or cannot be.
    """
    from rl_lab.core.launching.building import world_and_agent

    return world_and_agent(settings, named)


def train(*settings: str, **named: Never) -> Path:
    """Trains as `rl-lab train` with these settings, or resumes run=<folder>; returns the folder of the run.

    >>> folder = rl_lab.train("experiment=value_iteration_russell_norvig", "loop.film=false", "tracker=none")
    >>> sorted(path.name for path in folder.iterdir())
    ['checkpoint.pt', 'config.yaml', 'metrics.jsonl', 'pictures', 'plan.npz', 'summary.json']

    Raises UserError where a setting is not known, or cannot be.
    """
    from rl_lab.core.launching.building import trained

    return trained("rl-lab", "rl", settings, named)


def load(run: str | Path, *changes: str, num_envs: int = 1, device: str = "auto", seed: int = 0) -> "Player":
    """What a run learned, and the run's own environment to act in; `changes` are settings for this once.

    >>> player = rl_lab.load(folder, "env.time_limit=200")
    >>> obs = player.env.reset(seed=0)
    >>> step = player.env.step(player.act(obs))
    >>> step.reward, step.last
    (tensor([-0.0400]), tensor([False]))
    >>> player.env.close()

    `run` is a folder, a pattern that names one, or wandb:<entity>/<project>/<run>. An environment is `num_envs` copies;
    `seed` is that of an agent which draws its actions. Raises UserError, as do `act` and `env.step` for what they
    cannot take.
    """
    from rl_lab.core.launching import given
    from rl_lab.core.settings import Envs, Natural, conform
    from rl_lab.playing import player

    num_envs, seed = conform("num_envs", num_envs, Envs), conform("seed", seed, Natural)
    settings = given.changes(changes, "num_envs", "env.num_envs", "device", "seed")
    found = player.load(given.run_of(run, "rl_lab"), max_envs=num_envs, device=device, seed=seed, changes=settings)
    return found._replace(env=player.guarded(found.env))


def evaluate(
    run: str | Path, *changes: str, episodes: int = 100, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Plays at least this many greedy episodes, as `rl-lab evaluate` does, and returns what it measured.

    >>> found = rl_lab.evaluate(folder, episodes=200)
    >>> {name: round(x, 2) for name, x in found["scores"].items()}
    {'eval/return': 0.73, 'eval/return_se': 0.01, 'eval/length': 7.56, 'eval/regret': 0.0}
    >>> len(found["returns"])  # one an episode
    224

    Nothing is written. Raises UserError.
    """
    from rl_lab.commands.evaluate import evaluation
    from rl_lab.core.launching import given
    from rl_lab.core.settings import Judged, Natural, conform
    from rl_lab.playing import player

    episodes, seed = conform("episodes", episodes, Judged), conform("seed", seed, Natural)
    settings = given.changes(changes, "episodes", "seed", "device")
    found = player.load(given.run_of(run, "rl_lab"), max_envs=episodes, device=device, seed=seed, changes=settings)
    try:
        return evaluation(found, episodes, seed)
    finally:
        found.env.close()


def metrics(*runs: str | Path, settings: Sequence[str] | str = ()) -> list[dict[str, Any]]:
    """What runs logged, as plain records: of each run at or below these folders, or patterns, a record for each row.

    >>> record = rl_lab.metrics("runs", settings=["env.mdp.gamma"])[-1]
    >>> record["name"], record["env"], record["seed"], record["env.mdp.gamma"], record["step"], record["eval/regret"]
    ('value_iteration_russell_norvig', 'russell_norvig', 0, 1.0, 38, 0.0)

    Each has run, name, seed, the names chosen (agent, env, ...), the `settings` asked for, step, seconds, and the
    metrics of its row. Raises UserError.
    """
    from rl_lab.core.folders import read_runs, records
    from rl_lab.core.launching.given import runs_of

    return records(read_runs(runs_of(runs), []), settings)


def frame(*runs: str | Path, settings: Sequence[str] | str = ()) -> Any:
    """The same as a pandas.DataFrame (pip install 'rl-lab[pandas]').

    >>> curves = rl_lab.frame("runs").pivot_table("eval/return", "step", ["name", "seed"])
    >>> curves.shape
    (1, 1)

    Raises UserError.
    """
    from rl_lab.core import folders

    return folders.frame(metrics(*runs, settings=settings))


def compare(
    *runs: str | Path,
    metric: str | None = None,
    by: list[str] | str | None = None,
    where: list[str] | str | None = None,
) -> list[dict[str, Any]]:
    """The table of `rl-lab compare` as plain records, best first: groups of runs that differ in the seed only.

    >>> best = rl_lab.compare("runs", metric="eval/regret")[0]
    >>> best["group"], best["seeds"], best["final"]
    ('value_iteration_russell_norvig', 1, 0.0)

    `final`, `best` and `area` are interquartile means over seeds, with 95 % intervals (final_low, final_high). Nothing
    is written. Raises UserError.
    """
    from rl_lab.core.comparing.compare import analyse
    from rl_lab.core.comparing.tables import cells
    from rl_lab.core.launching.given import runs_of
    from rl_lab.core.launching.named import of_lab

    results, _ = analyse(of_lab(runs_of(runs), "rl_lab")[0], metric, by, where)
    return [cells(row) for row in results.rows]


def film(*runs: str | Path, out: str | Path | None = None, episodes: int = 1, seed: int = 0) -> Path:
    """Films greedy episodes of runs side by side, as `rl-lab render` does; returns the mp4, a gif lies beside it.

    >>> rl_lab.film(folder, out="walk.mp4")
    walk.mp4
    walk.gif
    PosixPath('walk.mp4')

    Without `out` it goes into videos/ of the first run's folder; out=<x>.png is a still. Raises UserError.
    """
    from rl_lab.commands.render import render
    from rl_lab.core.launching.given import runs_of
    from rl_lab.core.launching.named import runs_below
    from rl_lab.core.settings import Count, Natural, conform

    return render(
        [run for folder in runs_of(runs) for run in runs_below(folder, "rl_lab")],
        episodes=conform("episodes", episodes, Count),
        seed=conform("seed", seed, Natural),
        max_steps=2_000,
        fps=None,
        saliency=None,
        gif=True,
        out=None if out is None else str(conform("out", out, Path)),
        device="auto",
    )
