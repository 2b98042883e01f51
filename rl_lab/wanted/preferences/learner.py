"""The learner of what is wanted: it watches the agent, asks which of two clips is better, and rates each step."""

from typing import Any, Literal

import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.randomness import generator, uniform
from rl_lab.types import Spec, Transition
from rl_lab.wanted.preferences.clips import Clips, Tape
from rl_lab.wanted.preferences.losses import calibration, disagreement, labels_due, preference_loss
from rl_lab.wanted.preferences.predictors import Ensemble

ROUNDS = 20  # of questions, each followed by a fit


class Preferences(Learner):
    """`update` it on true transitions; `rewarded` gives what the agent learns from instead.

    Each member of the ensemble holds out 1 / e of the answers, as if it had drawn as many as there are with
    replacement: an answer counts for it as often as a Poisson variable of mean 1 says (Oza and Russell, 2001).
    """

    saved: tuple[str, ...] = ("ensemble", "rng", "tape", "steps", "asked", "answers")

    def __init__(
        self,
        ensemble: Ensemble,
        teacher: Any,  # an Oracle; of `Late` those who answer late
        spec: Spec,
        num_envs: int,
        device: torch.device,
        seed: int,
        *,
        total_steps: int,
        labels: int,
        first: float,  # share of the labels that are asked for before step 0
        kept: int,  # the newest answers that are learned from
        clip: int,  # steps at most
        recent: int,  # steps of all envs out of which clips are drawn
        select: Literal["random", "disagreement"],
        candidates: int,  # pairs for each that is asked about, by disagreement
    ):
        self.ensemble, self.teacher, self.rng = ensemble, teacher, generator(seed, device)
        self.tape = Tape(max(recent // num_envs, clip), spec.frame_stack)
        self.total_steps, self.labels, self.first, self.kept = total_steps, labels, round(first * labels), kept
        self.clip, self.select, self.candidates = clip, select, candidates
        self.device, self.num_envs, self.asked = device, num_envs, 0
        self.round = max(1, labels // ROUNDS)
        self.answers: dict[str, Tensor] = {}

    @torch.no_grad()
    def rewarded(self, transition: Transition) -> Transition:
        """The transition with the reward it is believed to earn; the true reward goes no further than this learner."""
        return transition._replace(reward=self.ensemble.rewards(transition))

    def update(self, transition: Transition) -> Metrics:
        self.watch(transition)
        missing = self.missing()
        return self.ask(missing) if missing else {}

    @property
    def begun(self) -> bool:
        """Whether the first questions were put."""
        return self.asked > 0

    def watch(self, transition: Transition) -> None:
        self.tape.add(transition)
        self.count_steps(self.num_envs)

    def missing(self) -> int:
        """How many questions to ask now: a whole round, or the last ones; else 0."""
        due = labels_due(self.steps, self.total_steps, self.labels, self.first)
        missing = due - self.asked
        return missing if missing >= (1 if due == self.labels else self.round) else 0

    def ask(self, questions: int) -> Metrics:
        """Puts pairs of clips to the teacher and fits the predictors to all answers kept. Raises UserError."""
        left, right = self.pairs(questions)
        answers = self.teacher(left.true, right.true, self.rng)
        weight, given = poisson((questions, len(self.ensemble.members)), self.rng), answers.given
        self.keep(left.of(given), right.of(given), answers.left[given], weight[given])
        self.asked += questions
        return self.fit()

    def keep(self, left: Clips, right: Clips, answer: Tensor, weight: Tensor) -> None:
        """Adds answers [n], and how often each member drew them [n, M], and keeps the newest."""
        new = {f"left/{name}": x for name, x in left._asdict().items()}
        new |= {f"right/{name}": x for name, x in right._asdict().items()}
        new |= {"answer": answer, "weight": weight}
        self.answers = {name: torch.cat([*self._old(name), x])[-self.kept :] for name, x in new.items()}

    def fit(self) -> Metrics:
        if not self.answers or not len(self.answers["answer"]):
            return {"preferences/labels": 0.0}
        self.ensemble.fit(*self.data(), self.rng)
        return self.understood()

    def _old(self, name: str) -> list[Tensor]:
        return [self.answers[name]] if self.answers else []

    def pairs(self, count: int) -> tuple[Clips, Clips]:
        """Random pairs, or of many candidates those that the members disagree about most. Raises UserError."""
        many = count * (self.candidates if self.select == "disagreement" and self.answers else 1)
        left, right = (self.tape.draw(many, self.clip, self.rng) for _ in range(2))
        if left is None or right is None:
            raise UserError(f"loop.clip={self.clip}: none of the last {self.tape.length} steps of an environment holds "
                            "a clip as long; choose a shorter clip, or raise loop.recent")  # fmt: skip
        if many == count:
            return left, right
        best = disagreement(self.ensemble.probability(left, right)).topk(count).indices
        return left.of(best), right.of(best)

    def data(self) -> tuple[Clips, Clips, Tensor, Tensor]:
        left, right = (Clips(*(self.answers[f"{side}/{name}"] for name in Clips._fields)) for side in ("left", "right"))
        return left, right, self.answers["answer"], self.answers["weight"]

    def understood(self) -> Metrics:
        """How well each answer is predicted by the members that did not learn from it."""
        left, right, answer, weight = self.data()
        probability, held = self.ensemble.probability(left, right), (weight == 0).T
        found: Metrics = {"preferences/labels": float(len(answer)), "preferences/ties": (answer == 0.5).double().mean()}
        found["preferences/members_spread"] = disagreement(probability).sqrt().mean()
        judged = held.any(0)
        if not judged.any():
            return found
        p = ((probability * held).sum(0) / held.sum(0).clamp(min=1))[judged].double()
        answer = answer[judged]
        told = answer != 0.5
        if told.any():
            found["preferences/agreement"] = ((p > 0.5) == (answer > 0.5))[told].double().mean()
        difference = p.logit(eps=1e-12)
        found["preferences/log_loss"] = preference_loss(difference, answer, 0.0).mean()
        found["preferences/brier"] = (p - answer).square().mean()
        found["preferences/calibration_error"] = calibration(p, answer)
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where it holds clips of another length."""
        if state["answers"] and (steps := state["answers"]["left/action"].shape[1]) != self.clip:
            raise ValueError(f"it learned from clips of {steps} steps, and loop.clip={self.clip}")
        super().load_state_dict(state)
        self.tape.fields = [x.to(self.device) for x in self.tape.fields]
        self.answers = {name: x.to(self.device) for name, x in self.answers.items()}


def poisson(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Of mean 1, by inversion of its distribution; at most 5."""
    below = torch.tensor([1.0, 2.0, 2.5, 8 / 3, 65 / 24], device=rng.device) * torch.exp(torch.tensor(-1.0))
    return (uniform(shape, rng)[..., None] >= below).sum(-1).float()
