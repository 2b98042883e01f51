"""The last lines of a run: its score, what it took, what it made, and what to type next."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rl_lab.core import files
from rl_lab.core.errors import UserError, counted
from rl_lab.core.metrics import Metric, objective

EPISODES, REGRET = "eval/episodes", "eval/regret"
PLANNED = "plan/start_value"  # what a planner finds without playing
VALIDATION = "-validation]"  # what the names of images end with that the last evaluation is not of
NAMED = 3  # pictures, or films; of more only the number is said


def lines(folder: Path, final: Mapping[str, float], took: str, then: Sequence[str], seed: int) -> Iterator[str]:
    """For a finished run with its newest figures, and the steps and the time that it `took`.

    `then` are commands, with {run} for the folder and {seed} for the seed.
    """
    yield f"finished: {folder}"
    if words := score(final):
        yield f"  {words}"
    yield f"  {took}"
    for kind in "pictures", "videos":
        made = []
        with suppress(UserError):  # a link is in the way: nothing was written through it
            made = [path.name for path in files.found(folder, f"{kind}/*") if not path.name.startswith(".")]
        if made:
            yield f"  {kind}/: " + (", ".join(made) if len(made) <= NAMED else f"{len(made)}, the last is {made[-1]}")
    for i, command in enumerate(then):
        filled = shlex.join(word.format(run=folder, seed=seed) for word in command.split())
        yield f"{' ' * 6 if i else 'next: '}{filled}"


def score(final: Mapping[str, float]) -> str:
    """The newest figures: eval/return 0.931 ± 0.012 (32 episodes), regret 0.0013; ± is the standard error."""
    final = {name: x for name, x in final.items() if not name.endswith(VALIDATION)} or final
    measured = sorted(name for name in final if name.startswith("eval/") and not Metric.of(name).is_error)
    if (name := objective(final) or next(iter(measured), None)) is None:
        return ""
    words = f"{name} {final[name]:.4g}"
    if (error := final.get(Metric.of(name).error)) is not None:
        words += f" ± {error:.2g}"
    if name.startswith("eval/") and EPISODES in final:
        words += f" ({counted(final[EPISODES], 'episodes')})"
    words += f", regret {final[REGRET]:.3g}" if REGRET in final else ""
    return words + (f", value of the start {final[PLANNED]:.4g}" if PLANNED in final else "")
