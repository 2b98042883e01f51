"""How good is what a run learned, or anyone's agent? Greedy episodes: mean return, and how far it can be trusted."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_lab.agents.planned import Planned
from rl_lab.core import files
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError, counted, nearest, spared, tell
from rl_lab.core.run import Run
from rl_lab.core.settings import Judged, Natural
from rl_lab.envs.abilities import Tabular
from rl_lab.looking.films import watched, write
from rl_lab.loops.judging import Judge, play
from rl_lab.planning import Regret
from rl_lab.playing import guests, scenes
from rl_lab.playing.player import Player, load
from rl_lab.playing.stage import Stage, of_world

WHOLE = 10_000  # columns of a pipe, in which no path is cut
FILM = {"episodes": 3, "max_steps": 2_000}  # of a guest's film: how many, and where each is cut


def evaluate(
    runs: Sequence[Path],
    *,
    env: Mapping | None = None,  # of a guest
    agent: Mapping[str, Any],  # name (module:Class, or sb3), path and algorithm: a guest
    policy: str | None,  # an npz, as a guest
    film: bool,
    out: str | None,  # a guest's run folder; of runs, a .json of all records in place of evaluation.json in each
    episodes: Judged,
    seed: Natural,
    device: str,
    changes: Sequence[str] = (),  # of the runs' settings
    choices: Mapping[str, str] = {},  # group -> name
) -> None:
    """Evaluates runs, or a guest in one of our worlds. Raises UserError."""
    if unknown := [str(key) for key in agent if key not in Asked._fields[:3]]:
        raise UserError(f"no setting 'agent.{unknown[0]}'{nearest(unknown[0], Asked._fields[:3])}")
    if wrong := [key for key, value in agent.items() if not isinstance(value, str | None)]:
        raise UserError(f"agent.{wrong[0]}={agent[wrong[0]]} must be a text")
    asked = Asked(agent.get("name"), agent.get("path"), agent.get("algorithm"), policy)
    if runs or (env is None and not any(asked)):
        if any(asked) or env is not None:
            raise UserError("evaluate runs, or one guest in one world: agent=my_agent:Mine env=four_rooms")
        if film:
            raise UserError("film=true is for agent= and policy=; rl-lab render films a run")
        return evaluate_runs(runs, episodes=episodes, seed=seed, device=device, out=out, changes=changes)
    asked.check()
    if env is None:
        raise UserError("in which world? rl-lab evaluate agent=my_agent:Mine env=four_rooms")
    if film and not out:
        raise UserError("a film needs a folder: film=true out=runs/mine")
    folder = None if out is None else new_folder(out)
    torch.set_num_threads(1)
    stage = of_world(env, min(env["num_envs"], episodes), device, frames=False)
    try:
        guest = asked.invited(stage, seed)
        with Console(stderr=True).status(f"{guest.name}: at least {counted(episodes, 'episodes')}"):
            record = played(guest, episodes, seed)
        guest, regret = known(guest, record["scores"])
        show([(guest, record)])
        if regret and (value := record["scores"].get("eval/value")) is not None:
            print(f"exact value {value:.6g}, of the optimum {float(regret.optimum):.6g}")
        if folder:
            settings = {"choices": {**choices, "agent": guest.group}, "env": stage.settings, **asked.settings()}
            keep(guest._replace(folder=folder), record, settings, seed)
        if folder and film:
            film_guest(guest._replace(folder=folder), regret, env, seed)
    finally:
        stage.env.close()


def evaluate_runs(
    runs: Sequence[Path],
    *,
    episodes: Judged,
    seed: Natural,
    device: str,
    out: str | None = None,  # a .json
    changes: Sequence[str] = (),  # of the runs' settings
) -> None:
    """Prints a line for each run and leaves the figures, and the return of each episode, in its evaluation.json, or
    those of all runs in `out`. Raises UserError, once the others are done, where one cannot be read.

    Each of the run's environments plays the same number of episodes, so there may be a few more than asked for.
    """
    if not runs:
        raise UserError("which run? rl-lab evaluate run=<folder>")
    records = files.Records(out, "evaluation.json")
    found = []
    faults: list[UserError] = []
    for folder in runs:
        with spared(faults):
            player = load(folder, max_envs=episodes, device=device, seed=seed, changes=changes)
            with Console(stderr=True).status(f"{folder}: at least {counted(episodes, 'episodes')}"):
                record = evaluation(player, episodes, seed)
            player.env.close()
            records.keep(folder, record)
            found.append((player, record))
    if found:
        show(found, f"with {' '.join(changes)}" if changes else None)
    tell(faults, len(runs))


def show(found: Sequence[tuple[Player, dict]], title: str | None = None) -> None:
    """Prints a table with a line for each."""
    table = Table(
        "run",
        "checkpoint",
        "mean return",
        "standard error",
        "mean length",
        "episodes",
        "regret",
        title=None if title is None else Text(title),
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for player, record in found:
        scores = record["scores"]
        error, regret = scores["eval/return_se"], scores.get("eval/regret")
        figures = (
            f"{scores['eval/return']:,.6g}",
            "-" if error is None else f"{error:.2g}",
            f"{scores['eval/length']:,.1f}",
            f"{record['episodes']:,}",
            "-" if regret is None else f"{regret:.6g}",
        )
        checkpoint = counted(player.step, player.unit) if player.unit else "-"
        table.add_row(Text(str(player.folder)), checkpoint, *figures)
    console = Console()
    console.width = max(120, console.width) if console.is_terminal else WHOLE
    console.print(table)


def evaluation(player: Player, episodes: int, seed: int) -> dict:
    """What evaluation.json holds; the standard error of a single episode is None. In a known world the exact regret."""
    record = played(player, episodes, seed)
    record["scores"] |= Judge(player.env, episodes, seed).exact(player.agent)
    return record


def played(player: Player, episodes: int, seed: int) -> dict:
    """The same, from greedy episodes alone."""
    returns, lengths = (double(x) for x in play(player.env, player.act, episodes, seed))
    error = float((returns - returns[0]).std() / len(returns) ** 0.5) if len(returns) > 1 else None
    scores: dict[str, Any] = {
        "eval/return": float(returns.mean()),
        "eval/return_se": error,
        "eval/length": float(lengths.mean()),
    }
    return {
        "step": player.step,
        "episodes": len(returns),
        "seed": seed,
        "device": str(player.env.device),
        "changes": list(player.changes),
        "scores": scores,
        "returns": returns.tolist(),
    }


# -- a guest: anyone's agent, or a table


class Asked(NamedTuple):
    """The guest that was named."""

    name: str | None
    path: str | None
    algorithm: str | None
    policy: str | None

    def check(self) -> None:
        """Raises UserError."""
        if bool(self.name) == bool(self.policy):
            raise UserError("who? one of agent=my_agent:Mine, agent=sb3 agent.path=model.zip, policy=<npz>")
        if self.name != "sb3" and (self.path or self.algorithm):
            raise UserError("agent.path and agent.algorithm are for agent=sb3")
        if self.name and self.name != "sb3":
            guests.check_name(self.name)

    def invited(self, stage: Stage, seed: int) -> Player:
        """Raises UserError."""
        env, step = stage.env, 0
        actor: guests.Guest | guests.Table
        if self.policy:
            actor, name = guests.of_table(self.policy, env, seed), Path(self.policy).stem
        elif self.name == "sb3":
            (actor, step), name = guests.of_sb3(self.path, self.algorithm, env), f"sb3_{self.algorithm}".lower()
        else:
            actor, name = guests.of_class(str(self.name), env, seed), str(self.name).rpartition(":")[2]
        return Player(name, name, Path(name), env, actor, step, "steps" if step else "")

    def settings(self) -> dict[str, Any]:
        """What config.yaml says about it."""
        agent = {"name": self.name, "path": self.path, "algorithm": self.algorithm}
        return {"policy": self.policy} if self.policy else {"agent": {k: v for k, v in agent.items() if v}}


def new_folder(out: str) -> Path:
    """Raises UserError where something is there."""
    folder = files.folder_for(out)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"out={out} is not empty; choose a new folder")
    return folder


def keep(guest: Player, record: dict, settings: dict[str, Any], seed: int) -> None:
    """Leaves a run folder of one row, for `compare`. Raises UserError."""
    loop = {"_target_": f"{__name__}.evaluate", "episodes": record["episodes"]}
    config = {"name": guest.group, "seed": seed, **settings, "loop": loop}
    names = {"name": guest.group, **settings["choices"], "seed": seed}
    written = OmegaConf.to_yaml(OmegaConf.create(config))
    scores = {name: x for name, x in record["scores"].items() if x is not None and math.isfinite(x)}
    with Run(guest.folder, seed, record["device"], names=names, config=config, written=written) as run:
        run.begin(guest.step + 1, "evaluations")
        run.heed(guest.step)
        run.log(scores, guest.step, keep=True)
        files.write(run.path("evaluation.json"), json.dumps(record, indent=2) + "\n")


def known(guest: Player, scores: dict[str, Any]) -> tuple[Player, Regret | None]:
    """In a known world its exact value and regret join the scores, and it is seen with the values of its policy."""
    env, say = guest.env, partial(print, file=sys.stderr)
    regret = Judge(env, 1, 0, say).regret
    if regret is None or not isinstance(env, Tabular):
        return guest, None
    try:
        policy = guest.agent.probabilities(env.all_observations())
    except guests.Unsteady as error:
        say(f"eval/regret is left out: {error}")
        return guest, regret
    value = regret.values(policy)
    scores["eval/regret"] = regret(policy)
    if (start := regret.at_start(value)).isfinite():
        scores["eval/value"] = float(start)
    return guest._replace(agent=guests.Known(guest.agent, policy, value, env)), regret


def film_guest(guest: Player, regret: Regret | None, env: Mapping, seed: int) -> None:
    """Films the guest, in a known world beside the optimum, each with its policy's exact values. Raises UserError."""
    device, folder = str(guest.env.device), guest.folder
    with ExitStack() as stack:
        worlds = [of_world(env, 1, device, frames=True).env for _ in range(1 if regret is None else 2)]
        for world in worlds:
            stack.callback(world.close)
        exact = ["exact values"]
        players = [guest._replace(env=worlds[0], changes=exact if isinstance(guest.agent, guests.Known) else [])]
        if regret and isinstance(world, Tabular):
            plan = Planned(regret.best.q.to(world.device), regret.best.policy.to(world.device), world.states)
            players.append(Player("optimum", "optimum", folder, world, plan, 0, "", exact))
        rate = scenes.rate_of(players[0], None)
        films = scenes.films(players, [rate] * len(players), seed=seed, saliency=None, **FILM)
        path = files.inside(folder, f"videos/{guest.group}_step{guest.step}.mp4")
        for line in write(path, watched(scenes.together(films)), rate, gif=True):
            print(line)
