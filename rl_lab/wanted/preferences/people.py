"""Teachers who answer in their own time: people, through files of the run's folder; or what they said before."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_lab.core import files
from rl_lab.core.errors import UserError, pasted
from rl_lab.core.interrupts import Stopped
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Place, Positive
from rl_lab.wanted.preferences.clips import Clips
from rl_lab.wanted.preferences.logs import Log, Row
from rl_lab.wanted.preferences.sittings import REVOKED, Sitting, Told, as_row, changes, known_by, packed

POLL, MISSING = 0.5, 0.25  # seconds between looks for answers; share of the first ones that is not waited for


class People:
    """Asks people. A run resumed from an older checkpoint receives the same answers again, at the same steps."""

    def __init__(
        self,
        *,
        question: str,  # that the page asks
        wait: bool,  # for every answer; False: for three quarters of the first ones alone
        open_pairs: Count,  # questions at most that wait for an answer while the agent learns on
        stale: Count | None,  # steps after which a question is replaced by a newer one; None: never
        patience: Positive | None,  # minutes without an answer after which it goes on; None: it waits
    ):
        self.question, self.wait, self.open_pairs, self.stale, self.patience = (
            question,
            wait,
            open_pairs,
            stale,
            patience,
        )

    def sit(self, run: Run) -> None:
        self.run, self.sitting = run, Sitting(run.dir)
        self.heard = self.sitting.used()
        self.asked, self.withdrawn = self.sitting.asked()
        self.before = {(x.who, x.pair): x.answer for told in self.heard.values() for x in told}
        self.said = False
        self.looked, self.gone, self.sizes = 0.0, False, tuple[tuple[Path, int], ...]()
        self.told = self.sitting.told()

    def add(self, name: str, row: Row) -> None:
        with closing(Log(self.sitting.path(name))) as log:
            log.add(row)

    def put(self, pair: int, clips: Clips, step: int) -> None:
        """Pairs that were put before the run was resumed stay as they were shown."""
        if pair not in self.asked:
            files.write(self.sitting.path(f"clips/{pair:06}.npz"), packed(clips))
            self.asked[pair] = known_by(clips)
            self.add("pairs.jsonl", {"pair": pair, "step": step, "of": self.asked[pair]})

    def withdraw(self, pair: int, step: int) -> None:
        if pair not in self.withdrawn:
            self.withdrawn.add(pair)
            self.add("pairs.jsonl", {"pair": pair, "withdrawn": step})

    def clips(self, pair: int) -> Clips:
        return self.sitting.clips(pair)

    def say(self, now: Callable[[], tuple[dict[str, Any], Tensor]]) -> None:
        """Writes down what the run asks and believes, and what the agent has done lately, obs [T, ...]."""
        about, film = now()
        about = {"question": self.question, "open_pairs": self.open_pairs, "stale": self.stale, **about}
        whole = Clips(film[None], torch.zeros(1, 0), torch.zeros(1), torch.zeros(1))
        files.write(self.sitting.path("now.npz"), packed(whole))
        files.write(self.sitting.path("now.json"), json.dumps(about) + "\n")

    def hear(self, step: int, drawn: int, waiting: Sequence[int], enough: int, first: bool) -> list[Told]:
        """The new answers to pairs below `drawn`, once there are `enough`. It waits for those `waiting`: for all of
        them where `wait` is set, else for most of the first ones. Raises Stopped.
        """
        if self.heard and step <= max(self.heard):
            return self.heard.get(step, [])
        if waiting and (self.wait or first):
            left = round(MISSING * len(waiting)) if first and not self.wait else 0
            news = self._until(left, drawn, waiting)
        elif time.monotonic() - self.looked < POLL:
            return []
        else:
            news = self._news(drawn)
            if len(news) < enough:
                return []
        if news:
            self.add("used.jsonl", as_row(step, news))
            self.before |= {(x.who, x.pair): x.answer for x in news}
        return news

    def _news(self, drawn: int) -> list[Told]:
        self.looked = time.monotonic()
        sizes = tuple((path, path.stat().st_size) for path in self.sitting.files())
        if sizes != self.sizes:
            self.sizes, self.told, self.gone = sizes, self.sitting.told(), False
        return changes(self.told, self.before, range(drawn))

    def _until(self, left: int, drawn: int, waiting: Sequence[int]) -> list[Told]:
        """Waits until at most `left` of them are unanswered, or nobody answers any more."""
        began = time.monotonic()
        while True:
            before, news = self.sizes, self._news(drawn)
            missing = len({*waiting} - {x.pair for x in news if x.answer != REVOKED})
            if missing <= left or self.gone:
                return news
            if not self.said:
                where = pasted(f"run={os.path.relpath(self.run.dir)}")
                self.run.say(f"{missing - left} answers are waited for: rl-lab teach {where} who=<your name>")
                self.said = True
            began = time.monotonic() if self.sizes != before else began
            if self.patience and time.monotonic() - began > 60 * self.patience:
                self.run.say(f"nobody answered for {self.patience:g} minutes: it goes on, with {missing} unanswered")
                self.gone = True
            if self.run.interrupts.asked:
                raise Stopped(self.run.interrupts.asked)
            time.sleep(POLL / 2)


class Recorded:
    """The people of another run: what they said then, at the steps at which that run learned from it."""

    def __init__(
        self,
        *,
        run: Place | None,  # its folder
    ):
        if run is None:
            raise UserError("teacher=recorded repeats what people said in a run: teacher.run=<its folder>")
        if not (folder := files.home(run)).is_dir():
            raise UserError(f"teacher.run={run} is no folder; name that of a run whose teacher=person was answered")
        self.sitting = Sitting(folder)
        now, self.heard = self.sitting.now(), self.sitting.used()
        if not now or not self.heard:
            raise UserError(f"{run} holds nothing that people said; choose a run whose teacher=person was answered")
        self.open_pairs, self.stale = now.get("open_pairs", 1), now.get("stale")
        self.asked = self.sitting.asked()[0]

    def sit(self, run: Run) -> None: ...

    def put(self, pair: int, clips: Clips, step: int) -> None:
        """Raises UserError where the people were asked something else."""
        if self.asked.get(pair, known_by(clips)) != known_by(clips):
            raise UserError(f"{self.sitting.folder} asked about other clips than this run does (pair {pair}); repeat "
                            "its command, with its seed and settings, and teacher=recorded")  # fmt: skip

    def withdraw(self, pair: int, step: int) -> None: ...

    def clips(self, pair: int) -> Clips:
        return self.sitting.clips(pair)

    def say(self, now: Callable[[], tuple[dict[str, Any], Tensor]]) -> None: ...

    def hear(self, step: int, drawn: int, waiting: Sequence[int], enough: int, first: bool) -> list[Told]:
        return self.heard.get(step, [])
