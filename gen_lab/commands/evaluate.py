"""Scores of a run's model on the test set, and measures of its samples."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen_lab.commands.measures import LARGEST
from gen_lab.judging import Judge, NoLabels, nothing
from gen_lab.judging.evaluation import evaluate as evaluate_model
from gen_lab.judging.pictures import write_sheet
from gen_lab.trained.loading import Trained, load, some
from rl_lab.core.errors import UserError, counted, spared, tell
from rl_lab.core.files import Records, inside, opened
from rl_lab.core.learner import Metrics
from rl_lab.core.metrics import Metric
from rl_lab.core.progress import Told
from rl_lab.core.randomness import generator, stream
from rl_lab.core.settings import Count, Natural

WHOLE_SET = "evaluation.json"  # of a run as it is
WHOLE = 10_000  # columns of a pipe, in which no path is cut
ELSEWHERE = "data.root=", "data.resident_gb=", "threads="  # where the same images lie, and how they are worked on
NEIGHBOURS = 32  # pairs of a sample and the training image nearest to it


def evaluate(
    runs: Sequence[Path],
    *,
    iwae_samples: Natural,
    images: Count | None,  # of the test set, chosen at random, always the same; None: all
    judge: Callable[..., Judge | None] = nothing,
    seed: Natural,
    device: str,
    out: str | None,  # a .json of all records, in place of evaluation.json in each run
    changes: Sequence[str] = (),  # of the runs' settings
) -> None:
    """Prints the scores of each run with their standard errors and, of a judge, each measure of its samples beside
    that of held-out images; leaves all of it in the run's evaluation.json, or that of all runs in `out`. Of a few
    images it is evaluation_<n>.json, and with `changes` evaluation_changed.json: what is known of the whole set stays.

    Raises UserError, once the others are done, where a run cannot be read.
    """
    console, records, say = Console(), Records(out, WHOLE_SET), partial(print, file=sys.stderr)
    console.width = max(140, console.width) if console.is_terminal else WHOLE
    scored = Table("run", "checkpoint", "score", "mean", "standard error")
    measured = Table("run", "checkpoint", "measure", "samples", "held-out images")
    faults: list[UserError] = []
    changed = [change for change in changes if not change.lstrip("+").startswith(ELSEWHERE)]
    for folder in some(runs, "evaluate"):
        with spared(faults):
            trained = load(folder, device, changes)
            for name in WHOLE_SET, "neighbours.png":
                inside(folder, name)  # refused before the hours that follow
            head = Text(str(folder)), counted(trained.step, "updates")
            try:
                by = judge(trained.data, say=say)
            except NoLabels as error:
                by = None
                print(f"{folder}: {error}")
            tested = trained.data.some(images)
            told = Told(say, f"{folder}: evaluation")
            scores = _floats(evaluate_model(trained.model, tested, seed, iwae_samples, told=told))
            for metric in (metric for metric in map(Metric.of, scores) if not metric.is_error):
                name, deviation = metric.name, scores.get(metric.error)
                scored.add_row(*head, *_cells(name, scores[name]), "" if deviation is None else f"{deviation:.4f}")
            record: dict[str, Any] = {
                "step": trained.step,
                "images": len(tested.test),
                "of": len(trained.data.test),
                "iwae_samples": iwae_samples,
                "seed": seed,
                "device": str(trained.device),
                "scores": scores,
            }
            record |= {"changes": changed} if changed else {}
            if by:
                picture = records.picture(folder, "neighbours.png")
                record |= _measured(trained, by, seed, picture)
                for name, x in record["measures"].items():
                    measured.add_row(*head, *_cells(name, x), f"{record['floor'][name]:.4f}")
                print(f"{folder}: {by.about}", *[picture] * bool(picture), sep="\n")
            if not scores and not by:
                print(f"{folder}: no likelihood to measure; judge=classifier judges the samples of this model")
            name = named(len(tested.test), len(trained.data.test), bool(changed))
            if not by and name == WHOLE_SET:
                record |= judged_before(folder, trained.step)
            records.keep(folder, record, name)
            if name != WHOLE_SET and not out:
                print(f"{folder}/{name}")
            scored.add_section()
            measured.add_section()
    for table in scored, measured:
        if table.row_count:
            console.print(table)
    tell(faults, len(runs))


def named(images: int, of: int, changed: bool) -> str:
    """Where figures go: those of a few images, or with other settings, leave those of the whole set as they are."""
    if changed:
        return "evaluation_changed.json"
    return WHOLE_SET if images == of else f"evaluation_{images}.json"


def judged_before(folder: Path, step: int) -> dict[str, Any]:
    """What an earlier evaluation of the same weights said of samples; {} without one, or where it cannot be read."""
    with suppress(OSError, UserError, ValueError, AttributeError), opened(folder / WHOLE_SET, LARGEST) as file:
        before = json.load(file)
        if before.get("step") == step and not before.get("changes"):
            return {key: before[key] for key in ("judge", "floor", "measures") if key in before}
    return {}


def _measured(trained: Trained, judge: Judge, seed: int, picture: Path | None) -> dict[str, dict]:
    """What evaluation.json says about samples; the picture shows those nearest to a training image beside it."""
    images = judge.draw(trained.model, generator(stream(seed, "judge"), trained.device))
    if picture:
        caption = f"{trained.name} · update {trained.step:,} · left a sample, right the training image nearest to it"
        write_sheet(picture, judge.neighbours(images, NEIGHBOURS), caption=caption)
    averaged = bool(getattr(trained.model, "average", 0))
    return {
        "judge": judge.record | {"averaged": averaged},
        "floor": _floats(judge.named(judge.floor)),
        "measures": _floats(judge.named(judge.measured(judge.see(images)))),
    }


def _cells(name: str, x: float) -> tuple[Text, str]:
    return Text(name.removeprefix("eval/")), f"{x:.4f}"


def _floats(metrics: Metrics) -> dict[str, float]:
    return {name: float(x) for name, x in metrics.items()}
