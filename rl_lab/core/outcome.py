"""What came of a run, in its last lines: its score, what it took, what it made, and what to type next."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl_lab.core.metrics import Metric, objective
from rl_lab.core.progress import duration

if TYPE_CHECKING:
    from rl_lab.core.run import Run

EPISODES, REGRET = "eval/episodes", "eval/regret"
NAMED = 3  # pictures, or films; of more only the number is said


def lines(run: "Run", folder: Path, then: Sequence[str]) -> Iterator[str]:
    """Of a run that is finished. `then` are commands, with {run} for its folder and {seed} for its seed."""
    yield f"finished: {folder}"
    if words := score(run.final):
        yield f"  {words}"
    yield f"  {run.step:,} {run.unit} in {duration(run.seconds)}"
    for kind in "pictures", "videos":
        made = [path.name for path in run.folder.found(f"{kind}/*") if not path.name.startswith(".")]
        if made:
            yield f"  {kind}/: " + (", ".join(made) if len(made) <= NAMED else f"{len(made)}, the last is {made[-1]}")
    for i, command in enumerate(then):
        filled = shlex.join(word.format(run=folder, seed=run.seed) for word in command.split())
        yield f"{' ' * 6 if i else 'next: '}{filled}"


def score(final: Mapping[str, float]) -> str:
    """Of a run's newest figures: eval/return 0.931 ± 0.012 (32 episodes), regret 0.0013; "" where there is none.

    ± is the standard error.
    """
    measured = sorted(name for name in final if name.startswith("eval/") and not Metric.of(name).is_error)
    if (name := objective(final) or next(iter(measured), None)) is None:
        return ""
    words = f"{name} {final[name]:.4g}"
    if (error := final.get(Metric.of(name).error)) is not None:
        words += f" ± {error:.2g}"
    if name.startswith("eval/") and EPISODES in final:
        words += f" ({final[EPISODES]:,.0f} episodes)"
    return words + (f", regret {final[REGRET]:.3g}" if REGRET in final else "")
