"""Many seeds in one process: one run that holds a run for each seed, each as it would be alone."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl_lab.core import files
from rl_lab.core.errors import NotFinite, UserError, counted, pasted
from rl_lab.core.interrupts import Interrupts
from rl_lab.core.learner import Metrics
from rl_lab.core.metrics import Metric
from rl_lab.core.progress import Progress
from rl_lab.core.ranks import Part
from rl_lab.core.run import Run


class Rows(list[Metrics]):
    """A row for each seed."""

    def __or__(self, others: Sequence[Metrics]) -> "Rows":
        return Rows(row | other for row, other in zip(self, others, strict=True))


class Aside(Progress):
    """Stands in for the progress bar of one seed; what it says, the run of all seeds says."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__("", quiet=True)
        self._whole_says = say

    def _print(self, text: str) -> None:
        self._whole_says(text)

    def begin(self, total: int | None, unit: str, step: int) -> None:
        self._open()

    def show(self, values: dict[str, float]) -> None: ...
    def advance(self, step: int, now: float) -> None: ...
    def close(self) -> None: ...


class Runs:
    """The runs of S seeds, numbered upwards from the whole run's own; one that fails stops alone.

    A `Book` is kept in it as in a single run. `parts` gives what the checkpoint of one seed holds, by its place.
    """

    leads = True
    final: dict[str, float] = {}  # each run has its own

    def __init__(self, whole: Run, seeds: int, loop: dict[str, Any]):
        """`loop`: what the config of one seed has that the whole's own loop has not, or otherwise."""
        self.whole = whole
        self.failed: dict[int, str] = {}  # place among the seeds -> why
        self.each = [self._of_seed(seed, loop) for seed in range(whole.seed, whole.seed + seeds)]
        self.parts: Callable[[int], dict[str, Part]] = lambda i: {}

    def _of_seed(self, seed: int, loop: dict[str, Any]) -> Run:
        """An ordinary run in a folder of its own; terminal, signals and checkpoint belong to the whole run."""
        whole, config = self.whole, OmegaConf.create(self.whole.folder.written)
        progress = Aside(lambda text: whole.say(f"seed {seed}: {text}"))
        run = Run(
            files.within(whole.dir, f"seed{seed}"), seed, str(whole.device), names={**whole.names, "seed": seed},
            config=_alone(whole.config, seed, loop), tracker=whole.tracker.start, job_type=whole.job_type,
            written=OmegaConf.to_yaml(OmegaConf.create(_alone(config, seed, loop))), places=whole.folder.places,
            progress=progress, interrupts=Interrupts(whole.say, numbers=()),
        )  # fmt: skip
        if self._is_ahead(run):
            shown, stands = os.path.relpath(run.dir), run.folder.before["step"]
            raise UserError(
                f"{shown} was trained by itself, to step {stands:,}, and would fall back to step {whole.step:,}; go on "
                f"seed by seed: rl-lab train {pasted(f'run={shown}')}"
            )
        run.anew()
        return run

    def _is_ahead(self, run: Run) -> bool:
        """Whether it went on alone, from beyond where the whole stands: by a command that names its own folder."""
        words = (word.removeprefix("run=") for word in str(run.folder.before.get("command")).split())
        alone = any(Path(word).name == run.dir.name for word in words if "=" not in word)
        return alone and (run.folder.before.get("step") or 0) > self.whole.step

    def say(self, text: str) -> None:
        self.whole.say(text)

    def streams(self, name: str) -> list[int]:
        return [run.stream(name) for run in self.each]

    def __enter__(self) -> "Runs":
        for _, run in self.running():
            run.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with ExitStack() as stack:  # each is closed, even where another fails
            for _, run in self.running():
                stack.callback(run.__exit__, kind, error, trace)

    def running(self) -> list[tuple[int, Run]]:
        return [(i, run) for i, run in enumerate(self.each) if i not in self.failed]

    # -- what a book asks for

    def restore(self, parts: dict[str, Part]) -> int:
        return self.whole.restore(parts | {"runs": self})

    def choose_threads(self, weights: int, lanes: int = 1) -> None:
        self.whole.choose_threads(weights, lanes)

    def begin(self, total: int, unit: str = "steps", *, enough: str = "") -> None:
        self.whole.begin(total, f"{unit} of {counted(len(self.each), 'seeds')}", rows=False, enough=enough)
        for _, run in self.running():
            run.begin(total)

    def at_once(self) -> AbstractContextManager[None]:
        return self.whole.at_once()

    def pause(self, step: int, parts: dict[str, Part]) -> None:
        self.whole.pause(step, parts | {"runs": self})

    def save(self, step: int, parts: dict[str, Part]) -> None:
        self.whole.save(step, parts | {"runs": self})

    def rescued(self, error: NotFinite, step: int, parts: dict[str, Part]) -> NotFinite:
        """Each seed that failed has saved its last good state."""
        return error

    def log(self, rows: Sequence[Metrics], step: int, keep: bool = False) -> None:
        """A row for each seed, their means for the terminal; with a row to `keep`, an evaluation, a checkpoint each."""
        if keep:
            for i, run in self.running():
                run.save(step, self.parts(i))
        for i, run in self.running():
            try:
                run.log(rows[i], step, keep)
            except NotFinite as error:
                self.fail(i, error)
        kept = [rows[i] for i, _ in self.running() if rows[i]]
        shared = {name for name in set(kept[0]).intersection(*kept) if not Metric.of(name).is_error} if kept else ()
        means = {name: sum(float(row[name]) for row in kept) / len(kept) for name in shared}
        self.whole.final |= means
        self.whole.progress.show(means)

    # -- seeds that fail

    def stop(self, i: int, error: NotFinite, step: int) -> None:
        """Closes the run of a seed whose figures are no longer finite, if it still runs; keeps what was good of it."""
        if i not in self.failed:
            self.each[i].rescued(error, step, self.parts(i))
            self.fail(i, error)

    def fail(self, i: int, error: NotFinite) -> None:
        """Closes the run of one seed. Raises NotFinite where it was the last."""
        self.each[i].__exit__(NotFinite, error, None)
        self.failed[i] = str(error)
        self.whole.say(f"seed {self.each[i].seed}: {error}; it stops here, the others continue")
        if len(self.failed) == len(self.each):
            self.check()

    def check(self) -> None:
        """Raises NotFinite where seeds failed, naming them."""
        if self.failed:
            words = "; ".join(f"seed {self.each[i].seed}: {why}" for i, why in self.failed.items())
            raise NotFinite(
                f"{len(self.failed)} of {len(self.each)} seeds failed: {words} (a smaller learning rate may help)"
            )

    # -- in the whole's checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Where the rows of each seed stand, and their newest figures."""
        return {"rows": [run.folder.about_rows() | {"final": dict(run.final)} for run in self.each],
                "failed": dict(self.failed)}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = state["rows"] if "rows" in state else [{"bytes": size} for size in state["bytes"]]
        if len(rows) != len(self.each):
            raise ValueError(f"{len(rows)} seeds, not {len(self.each)}")
        self.failed = dict(state["failed"])
        for run, of_run in zip(self.each, rows, strict=True):
            run.take_up({"written": of_run, "final": of_run.get("final", {}), "step": self.whole.step,
                         "seconds": self.whole.position.seconds})  # fmt: skip


def _alone(config: Any, seed: int, loop: dict[str, Any]) -> dict[str, Any]:
    """The config that a run of this seed alone would have."""
    plain: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=False)
    plain["loop"].pop("seeds")
    return plain | {"seed": seed, "loop": plain["loop"] | loop}
