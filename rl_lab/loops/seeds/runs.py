"""Many seeds in one process: a run that holds a run for each of them, each as it would have been alone."""

from collections.abc import Callable
from contextlib import ExitStack

from omegaconf import OmegaConf

from rl_lab.core import files
from rl_lab.core.errors import NotFinite
from rl_lab.core.learner import Metrics
from rl_lab.core.run import Run


class SeedRun(Run):
    """The folder of one seed: an ordinary one, whose terminal and signals are those of the run of all."""

    def __init__(self, whole: Run, seed: int, loop: dict):
        """`loop`: what its config has for the whole's own loop; None takes a setting away."""
        self.whole = whole
        super().__init__(
            files.within(whole.dir, f"seed{seed}"), seed, str(whole.device), names={**whole.names, "seed": seed},
            config=_alone(whole.config, seed, loop), tracker=whole._tracker, job_type=whole.job_type,
            written=OmegaConf.to_yaml(OmegaConf.create(_alone(OmegaConf.create(whole._written), seed, loop))),
        )  # fmt: skip
        self.anew()  # the whole's checkpoint says where to go on

    def _attend(self) -> None:
        self.progress = Aside(lambda text: self.whole.say(f"seed {self.seed}: {text}"))
        self._seconds_before = self.whole._seconds_before

    def _note_in_checkpoint(self) -> None: ...  # the whole's next one has it

    def state_dict(self) -> dict:
        """Where its rows stand, and their newest figures."""
        if self._rows is not None:
            self._mark = self._rows.mark
        return {**self._mark._asdict(), "fault": self._fault, "final": dict(self.final)}

    def load_state_dict(self, state: dict) -> None:
        self._take_up({"written": state, "final": state.get("final", {}), "step": self.whole._step})


class Aside:
    """What stands for a progress bar where another one is on the screen."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._said = say, set()

    def say(self, text: str, once: bool = False) -> None:
        if not (once and text in self._said):
            self._say(text)
        self._said.add(text)

    def begin(self, total: int, unit: str, step: int) -> None: ...
    def show(self, values: dict[str, float], step: int) -> None: ...
    def advance(self, step: int, now: float) -> None: ...
    def close(self) -> None: ...


class Runs:
    """The runs of S seeds, from the whole's own upwards; one that fails stops alone."""

    def __init__(self, whole: Run, seeds: int, loop: dict):
        self.whole, self.failed = whole, {}  # place among the seeds -> why
        self.each = [SeedRun(whole, seed, loop) for seed in range(whole.seed, whole.seed + seeds)]

    def streams(self, name: str) -> list[int]:
        return [run.stream(name) for run in self.each]

    def __enter__(self) -> "Runs":
        for _, run in self.running():
            run.__enter__()
        return self

    def __exit__(self, kind, error, trace) -> None:
        with ExitStack() as stack:  # each is closed, whatever becomes of another
            for _, run in self.running():
                stack.callback(run.__exit__, kind, error, trace)

    def running(self) -> list[tuple[int, SeedRun]]:
        return [(i, run) for i, run in enumerate(self.each) if i not in self.failed]

    def begin(self, total: int) -> None:
        self.whole.begin(total, f"steps of each of {len(self.each)} seeds", rows=False)
        for _, run in self.running():
            run.begin(total)

    def log(self, rows: list[Metrics], step: int, keep: bool = False) -> None:
        """A row for each seed; their means for the terminal."""
        for i, run in self.running():
            try:
                run.log(rows[i], step, keep)
            except NotFinite as error:
                self.fail(i, error)
        kept = [rows[i] for i, _ in self.running() if rows[i]]
        shared = set(kept[0]).intersection(*kept) if kept else ()
        means = {name: sum(float(row[name]) for row in kept) / len(kept) for name in shared}
        self.whole.final |= means
        self.whole.progress.show(means, step)

    def save(self, step: int, parts: Callable[[int], dict]) -> None:
        """A checkpoint for each seed, of what `parts` gives for its place."""
        for i, run in self.running():
            run.save(step, parts(i))

    def stop(self, i: int, error: NotFinite, step: int, parts: dict) -> None:
        """Where a seed that still runs has gone astray: keeps what was good of it, and closes its run."""
        if i not in self.failed:
            self.each[i].rescued(error, step, parts)
            self.fail(i, error)

    def fail(self, i: int, error: NotFinite) -> None:
        """Closes the run of one seed. Raises NotFinite where it was the last."""
        self.each[i].__exit__(NotFinite, error, None)
        self.failed[i] = str(error)
        self.whole.say(f"seed {self.each[i].seed}: {error}; it stops here, the others go on")
        if len(self.failed) == len(self.each):
            self.check()

    def check(self) -> None:
        """Raises NotFinite where seeds failed, naming them."""
        if self.failed:
            words = "; ".join(f"seed {self.each[i].seed}: {why}" for i, why in self.failed.items())
            raise NotFinite(
                f"{len(self.failed)} of {len(self.each)} seeds failed: {words} (a smaller learning rate may help)"
            )

    def state_dict(self) -> dict:
        return {"rows": [run.state_dict() for run in self.each], "failed": dict(self.failed)}

    def load_state_dict(self, state: dict) -> None:
        """Where each file of rows stood."""
        rows = state["rows"] if "rows" in state else [{"bytes": size} for size in state["bytes"]]
        if len(rows) != len(self.each):
            raise ValueError(f"{len(rows)} seeds, not {len(self.each)}")
        self.failed = dict(state["failed"])
        for run, of_run in zip(self.each, rows, strict=True):
            run.load_state_dict(of_run)


def _alone(config, seed: int, loop: dict):
    """The config that a run of this seed alone would have."""
    config = OmegaConf.to_container(OmegaConf.create(config), resolve=False) | {"seed": seed}
    changed = config["loop"] | loop
    return config | {"loop": {name: x for name, x in changed.items() if x is not None or name not in loop}}
