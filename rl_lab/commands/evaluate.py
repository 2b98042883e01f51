"""How good is what a run learned? Greedy episodes, their mean return and how far it can be trusted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_lab.core import files
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Judged, Natural
from rl_lab.loops.judging import Judge, play
from rl_lab.playing.player import Player, load


def evaluate_runs(
    runs: Sequence[Path],
    *,
    episodes: Judged,
    seed: Natural,
    device: str,
    changes: Sequence[str] = (),  # of the runs' settings
) -> None:
    """Prints a line for each run and leaves the figures, and the return of each episode, in its evaluation.json.

    Each of the run's environments plays equally many episodes, so that they may be a few more than asked for.
    """
    if not runs:
        raise UserError("which run? rl-lab evaluate run=<folder>")
    title = f"with {' '.join(changes)}" if changes else None
    table = Table(
        "run", "checkpoint", "mean return", "standard error", "mean length", "episodes", "regret", title=title
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for folder in runs:
        player = load(folder, max_envs=episodes, device=device, seed=seed, changes=changes)
        with Console(stderr=True).status(f"{folder}: at least {episodes:,} episodes"):
            record = evaluation(player, episodes, seed)
        player.env.close()
        files.write(files.inside(folder, "evaluation.json"), json.dumps(record, indent=2) + "\n")
        mean, error, length, *regret = record["scores"].values()
        figures = (
            f"{mean:,.6g}",
            "-" if error is None else f"{error:.2g}",
            f"{length:,.1f}",
            f"{record['episodes']:,}",
            f"{regret[0]:.6g}" if regret else "-",
        )
        table.add_row(Text(str(folder)), f"{player.step:,} {player.unit}", *figures)
    Console(width=max(120, Console().width)).print(table)


def evaluation(player: Player, episodes: int, seed: int) -> dict:
    """What evaluation.json holds; the standard error of a single episode is None. In a known world the exact regret."""
    returns, lengths = (double(x) for x in play(player.env, player.act, episodes, seed))
    error = float(returns.std() / len(returns) ** 0.5) if len(returns) > 1 else None
    scores: dict[str, Any] = {
        "eval/return": float(returns.mean()),
        "eval/return_se": error,
        "eval/length": float(lengths.mean()),
    }
    scores |= Judge(player.env, episodes, seed).exact(player.agent)
    record = {
        "step": player.step,
        "episodes": len(returns),
        "seed": seed,
        "device": str(player.env.device),
        "changes": list(player.changes),
    }
    return {**record, "scores": scores, "returns": returns.tolist()}
