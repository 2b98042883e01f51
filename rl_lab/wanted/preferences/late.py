"""The learner of what is wanted, from teachers who take their time to answer."""

from typing import Any

import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.learner import Metrics
from rl_lab.types import Transition
from rl_lab.wanted.preferences.clips import Clips
from rl_lab.wanted.preferences.learner import Preferences, poisson
from rl_lab.wanted.preferences.people import People, Recorded
from rl_lab.wanted.preferences.sittings import WORTH, Told

FILM = 60  # steps


class Late(Preferences):
    """All it does follows from the answers and the steps at which they came, so they are enough to repeat a run."""

    saved = (*Preferences.saved, "drawn", "open", "sources")
    teacher: People | Recorded

    def __init__(self, *given: Any, **settings: Any):
        super().__init__(*given, **settings)
        self.drawn = 0  # pairs so far; their numbers are below it
        self.open: dict[int, int] = {}  # pairs without an answer, and the steps at which they were asked about
        self.sources: list[tuple[str, int]] = []  # of each answer kept: who, and which pair

    @property
    def begun(self) -> bool:
        return self.drawn > 0  # those withdrawn were put too

    def ask(self, questions: int) -> Metrics:
        """Asks the first questions. Raises UserError or Stopped."""
        self.put(questions)
        return self.listen(first=True)

    def update(self, transition: Transition) -> Metrics:
        """Raises UserError or Stopped."""
        self.watch(transition)
        if self.teacher.stale is not None:
            for pair in [pair for pair, step in self.open.items() if self.steps - step > self.teacher.stale]:
                self.teacher.withdraw(pair, self.steps)
                del self.open[pair]
                self.asked -= 1
        if questions := min(self.missing(), self.teacher.open_pairs - len(self.open)):
            self.put(max(0, questions))
        return self.listen()

    def put(self, questions: int) -> None:
        if not questions:
            return
        left, right = self.pairs(questions)
        for i in range(questions):
            both = Clips(*(torch.stack([a[i], b[i]]) for a, b in zip(left, right, strict=True)))
            self.teacher.put(self.drawn, both, self.steps)
            self.open[self.drawn] = self.steps
            self.drawn += 1
        self.asked += questions
        self.teacher.say(self.now)

    def listen(self, first: bool = False) -> Metrics:
        enough = max(1, min(self.round, len(self.open)))
        told = self.teacher.hear(self.steps, self.drawn, [*self.open], enough, first)
        if not told:
            return {}
        found = self.take(told)
        self.teacher.say(self.now)
        return found

    def take(self, told: list[Told]) -> Metrics:
        """Lets each answer replace what that person had said about that pair, and fits. Raises UserError."""
        for _, pair, _ in told:
            self.open.pop(pair, None)
        news = {(who, pair) for who, pair, _ in told}
        old = torch.tensor(
            [i for i, x in enumerate(self.sources) if x not in news], dtype=torch.long, device=self.device
        )
        self.answers = {name: x[old] for name, x in self.answers.items()}
        self.sources = [x for x in self.sources if x not in news]
        if given := [x for x in told if x.answer in WORTH]:
            left, right = self.shown([x.pair for x in given])
            worth = torch.tensor([WORTH[x.answer] for x in given], dtype=torch.float64, device=self.device)
            self.keep(left, right, worth, poisson((len(given), len(self.ensemble.members)), self.rng))
            self.sources = [*self.sources, *((x.who, x.pair) for x in given)][-self.kept :]
        return self.fit()

    def shown(self, pairs: list[int]) -> tuple[Clips, Clips]:
        found = [self.teacher.clips(pair) for pair in pairs]
        for clips in found:
            if (steps := clips.action.shape[1]) != self.clip:
                raise UserError(
                    f"people were shown clips of {steps} steps, and loop.clip={self.clip}; set it to {steps}"
                )
        left, right = (Clips(*(torch.stack([x[i] for x in each]).to(self.device) for each in zip(*found, strict=True)))
                       for i in range(2))  # fmt: skip
        return left, right

    def now(self) -> tuple[dict[str, Any], Tensor]:
        """What the run says about itself, and what the agent of the first env has done lately [T, ...]."""
        left, right = self.shown([*self.open]) if self.open else (None, None)
        believed = {}
        if left and right:
            both = zip(self.ensemble.along(left).tolist(), self.ensemble.along(right).tolist(), strict=True)
            believed = dict(zip(self.open, map(list, both), strict=True))
        about = {"step": self.steps, "labels": self.labels, "asked": self.asked, "believed": believed}
        return about, self.tape.newest(FILM)
