"""What every loop keeps: rows, evaluations, checkpoints, and how it ends. The steps are the loop's own."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from rl_lab.core import distributed, precision
from rl_lab.core.errors import NotFinite, counted
from rl_lab.core.interrupts import Halted
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.ranks import Part

Row = Any  # Metrics; or, of many seeds, a row for each


class Meter(Part, Protocol):
    """It counts steps, gives what it counted when a row is due, and is saved in between."""

    def add(self, *what: Any) -> None: ...
    def pop(self) -> Row: ...


class Kept(Protocol):
    """What a book is kept in: a `Run`, or the runs of many seeds."""

    leads: bool  # whether this process evaluates and writes
    final: dict[str, float]  # the newest of each figure

    def choose_threads(self, weights: int, lanes: int = ...) -> None: ...
    def restore(self, parts: dict[str, Part]) -> int: ...
    def begin(self, total: int, unit: str = ..., *, enough: str = ...) -> None: ...
    def at_once(self) -> AbstractContextManager[None]: ...
    def pause(self, step: int, parts: dict[str, Part]) -> None: ...
    def save(self, step: int, parts: dict[str, Part]) -> None: ...
    def rescued(self, error: NotFinite, step: int, parts: dict[str, Part]) -> NotFinite: ...
    def log(self, row: Row, step: int, keep: bool = ..., /) -> None: ...
    def say(self, text: str) -> None: ...


RECENT = "episode/last_20"  # what `stop_at` is about


class Stepper(Protocol):
    @property
    def settled(self) -> bool: ...  # whether a checkpoint taken now would hold everything


class Book:
    """The rows, evaluations and checkpoints of a loop. The loop takes the steps and adds the metrics of each:

        book = Book(run, {"agent": agent, "env": env}, evaluate, total=..., eval_every=...)
        for _ in book.steps(env.num_envs):
            book.add(metrics)

    A row holds means over the updates since the last row. The learner is evaluated every `eval_every` steps, first at
    step 0, and again after the last step. Checkpoints are written between steps, every `checkpoint.every` seconds and
    when a signal stops the run.
    """

    def __init__(
        self,
        run: Kept,
        parts: Mapping[str, Part],  # what a checkpoint holds, by name
        evaluate: Callable[[], Row],
        *,
        total: int,  # steps
        eval_every: int | None,  # steps; None: only after the last one
        log_every: int | None = None,  # steps; None: 200 rows a run
        means: Meter | None = None,  # of the metrics added; None: `Means`
        episodes: Meter | None = None,  # of the episodes that ended
        stop_at: float | None = None,  # the mean return of the last 20 episodes that is enough
        unit: str = "steps",
        lanes: int = 1,  # threads of the loop's own in which networks compute at the same time
    ):
        self.run, self.evaluate, self.total, self.unit = run, evaluate, total, unit
        self.means: Meter = means or Means()
        self.episodes = episodes
        self.rows, self.evaluations = Every(log_every or max(1, total // 200)), Every(eval_every)
        self.stop_at = stop_at
        self.rows.due(0)
        self.parts = {**parts, **({"episodes": episodes} if episodes else {})}
        self.parts |= {"means": self.means, "rows": self.rows, "evaluations": self.evaluations}
        run.choose_threads(max(map(weights, parts.values()), default=0), lanes)
        self.step = run.restore(self.parts)
        self.learned = self.step > 0  # of a resumed run it is not known

    def steps(self, stride: int = 1, learner: Stepper | None = None) -> Iterator[int]:
        """Counts to `total`, by `stride` at once, and closes the book at the end.

        Between steps it pauses; with a `learner`, only while that one is settled.
        """
        self.begin()
        while self.step < self.total:
            if learner is None or learner.settled:
                self.pause()
            self.step += stride
            with precision.training():
                yield self.step
        self.close()

    def begin(self) -> None:
        enough = ""
        if self.stop_at is not None and (recent := self.run.final.get(RECENT, -math.inf)) >= self.stop_at:
            enough = f"{RECENT} is {recent:.4g}; loop.stop_at={self.stop_at:g} ends it there, loop.stop_at=null goes on"
            self.stop()
        self.run.begin(self.total, self.unit, enough=enough)

    def pause(self) -> None:
        """Saves and evaluates if that is due. Raises Stopped when a signal asked for it."""
        self.run.pause(self.step, self.parts)
        before = self.evaluations.next
        if self.step < self.total and self.evaluations.due(self.step) and self.run.leads:
            try:
                row = self.evaluated()
            except Halted:  # it is due again when the run is resumed
                self.evaluations.next = before
                self.run.save(self.step, self.parts)
                raise
            self.run.log(row, self.step, True)

    def evaluated(self) -> Row:
        """What it drew from the learners' streams is put back, so that training goes on as if nothing had been.

        Raises Halted: a signal ends it at once.
        """
        learners = (part for part in self.parts.values() if isinstance(part, Learner))
        drawn = [(rng, rng.get_state()) for learner in learners for rng in learner.streams()]
        try:
            with self.run.at_once():
                return self.evaluate()
        finally:
            for rng, state in drawn:
                rng.set_state(state)

    def add(self, metrics: Metrics, reward: Tensor | None = None, last: Tensor | None = None) -> None:
        """The metrics of an update; rewards [N] and ends of episodes [N]. Writes a row if one is due.

        Raises NotFinite after saving the last good state.
        """
        try:
            self.means.add(metrics, self.step)
            self.learned = self.learned or bool(metrics)
            if self.episodes and reward is not None:
                self.episodes.add(reward, last)
            if self.rows.due(self.step):
                row = self.means.pop()
                row = row | self.episodes.pop() if self.episodes else row
                self.run.log(row, self.step)
                if self.stop_at is not None and row.get(RECENT, -math.inf) >= self.stop_at:
                    self.run.say(
                        f"step {self.step:,}: {RECENT} is {row[RECENT]:.4g}, and loop.stop_at={self.stop_at:g}"
                    )
                    self.stop()
        except NotFinite as error:
            raise self.run.rescued(error, self.step, self.parts) from None

    def close(self) -> None:
        """Writes the last checkpoint, then makes the last evaluation; resumed from here, a longer run does not repeat
        that row.

        A rollout that is only half full at the end is lost: agents that learn from whole rollouts start a new one.
        """
        if not self.learned and any(map(weights, self.parts.values())):
            self.run.say(
                f"nothing was learned: the run ended, after {counted(self.step, self.unit)}, before the first update"
            )
        self.run.save(self.step, self.parts)
        if self.run.leads:
            self.run.log(self.evaluated(), self.step, True)

    def stop(self) -> None:
        """Makes the current step the last one."""
        self.total = self.step


def weights(part: Part) -> int:
    """How many weights the largest network has that this part of a run learns."""
    networks = (x for x in vars(part).values() if isinstance(x, nn.Module))
    return max((sum(p.numel() for p in network.parameters()) for network in networks), default=0)


class Every:
    """Due at step 0 and once in each `period` steps from there, at the first step asked about; with None never."""

    def __init__(self, period: int | None):
        self.period, self.next = period, 0

    def due(self, step: int) -> bool:
        if self.period is None or step < self.next:
            return False
        self.next = step - step % self.period + self.period
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next, "period": self.period}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """With a different period it counts on from when it was last due."""
        if self.period is None:
            return
        begun = state["next"] - (state.get("period", self.period) or 0)
        self.next = max(0, begun - begun % self.period + self.period)


class Means:
    """The mean of each metric over the updates, of all ranks, since the last `pop`; the sums stay on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: Metrics, step: int) -> None:
        """Raises NotFinite at once on a CPU; on a GPU looking would stall the queue, so the next row finds it."""
        for name, x in metrics.items():
            if isinstance(x, float) or x.is_cpu:
                x = float(x)
                if not math.isfinite(x):
                    raise NotFinite(f"{name} is {x} at step {step:,}")
            self._sums[name] = self._sums.get(name, 0.0) + x
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> Metrics:
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return distributed.averaged(means)

    def state_dict(self) -> dict[str, Any]:
        """Raises NotFinite, so that no checkpoint overwrites a good one after something on a GPU became nan."""
        for name, total in self._sums.items():
            if not math.isfinite(total):
                raise NotFinite(f"{name} became {float(total)} since the last row")
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
