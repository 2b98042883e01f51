"""An agent built from its settings and trained step by step in worlds with known values."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hydra
import torch
from torch import Tensor

from rl_lab.core.errors import UserError
from rl_lab.core.imports import told
from rl_lab.doctor.problems import COPIES, Problem, ProblemEnv
from rl_lab.types import Transition, VectorEnv, View

FIRST, MOST = 64, 16_384  # steps of all copies after which values are looked at first, and last
GAMMA = 0.5  # unless another is typed: where the future counts half, each fault in it shows
# Settings with which an agent learns in seconds, at most as large; and those that show seams often. Typed ones stay.
# A plan of more than one step imagines rewards beyond an end, of which VPN's model knows nothing (Oh et al., 2017): it
# tells what was imagined there, not what was learned.
CAPS = {"gamma": GAMMA, "n_steps": 64, "replay_ratio": 32, "batch_size": 64, "depth": 1, "eval_depth": 1}
SEAMS = {"rollout_length": 2, "n_steps": 2, "minibatches": 1, "batch_size": 32, "replay.n_step": 3}


class Candidate:
    """The agent under examination: its settings, or a person's class with some of its own."""

    def __init__(self, make: Callable[..., Any] | Mapping[str, Any], typed: set[str], seed: int, device: str,
                 seconds: float):  # fmt: skip
        self.make, self.typed, self.seed, self.device, self.seconds = make, typed, seed, device, seconds

    @property
    def caps(self) -> dict[str, float]:
        """Settings that differ from what was asked for, in all probes."""
        settings = self.make if isinstance(self.make, Mapping) else {}
        return {key: cap for key, cap in CAPS.items() if (settings.get(key) or 0) > cap and key not in self.typed}

    def built(self, env: VectorEnv, changes: Mapping[str, Any]) -> Any:
        """An agent for `env`. Raises UserError where it cannot take observations that are vectors."""
        if not isinstance(self.make, Mapping):
            return self._own(env)
        changes = {key: value for key, value in (self.caps | dict(changes)).items() if key not in self.typed}
        kind = str(self.make["_target_"]).rpartition(".")[2]
        make = hydra.utils.instantiate(changed(self.make, changes))
        try:
            if self.is_sb3:
                from rl_lab.agents.sb3 import AsVecEnv

                return make(env=AsVecEnv(env, self.seed), seed=self.seed, device=self.device)
            return make(env.spec, device=env.device, seed=self.seed)
        except (AssertionError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            words = str(error).strip().partition("\n")[0]
            raise UserError(f"{kind} cannot be built for observations {env.spec.obs_shape}: {words}") from error

    def _own(self, env: VectorEnv) -> Any:
        """Builds a person's class, and passes it what its signature names."""
        assert callable(self.make)
        given = {"spec": env.spec, "device": env.device, "seed": self.seed}
        given |= {"gamma": GAMMA} if "gamma" not in self.typed else {}
        known = inspect.signature(self.make).parameters
        try:
            return self.make(**{key: value for key, value in given.items() if key in known})
        except Exception as error:
            raise UserError(f"the agent cannot be built ({told(error)})") from error

    @property
    def is_sb3(self) -> bool:
        return isinstance(self.make, Mapping) and str(self.make["_target_"]).startswith("stable_baselines3.")


def changed(node: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with other values for those that are there, such as replay.n_step."""
    found = dict(node)
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        if rest and isinstance(found.get(first), Mapping):
            found[first] = changed(found[first], {rest: value})
        elif not rest and found.get(first) is not None:
            found[first] = value
    return found


class Course:
    """An agent in a problem."""

    def __init__(self, candidate: Candidate, problem: Problem, changes: Mapping[str, Any] = {}):
        self.end = time.process_time() + candidate.seconds  # other programs do not make an agent fail
        self.env = ProblemEnv(problem, candidate.device)
        self.learner = self.agent = candidate.built(self.env, changes)
        self.obs, self.due = self.env.reset(candidate.seed), 0
        if candidate.is_sb3:
            from stable_baselines3.common.logger import Logger

            from rl_lab.agents.sb3 import SB3Agent

            self.learner.set_logger(Logger(None, []))  # its own would write a folder
            self.agent = SB3Agent(self.learner)
        elif callable(getattr(self.learner, "announce", None)):
            self.learner.announce(COPIES)
        self.learns = candidate.is_sb3 or callable(getattr(self.learner, "update", None))
        shown = self.shown() if self.has_view else None
        self.first = self.in_units(shown) if isinstance(shown, View) else None

    def go_on(self, steps: int) -> None:
        """Takes this many steps of all copies."""
        if self.agent is not self.learner:
            self.due += steps * COPIES  # a rollout may have gone beyond what was due
            if (rest := self.due - self.learner.num_timesteps) > 0:
                self.learner.learn(rest, reset_num_timesteps=False)
            return
        for _ in range(steps):
            action = self.agent.act(self.obs)
            step = self.env.step(action)
            self.agent.update(Transition.of(self.obs, action, step))
            self.obs = step.obs

    @property
    def stops(self) -> bool:
        return time.process_time() > self.end

    @property
    def gamma(self) -> float | None:
        found = getattr(self.learner, "gamma", None)
        return float(found) if isinstance(found, int | float) else None

    def view(self) -> View:
        """Bars [S, 2] and values [S] of each state, in units of the reward as it was given."""
        return self.in_units(self.shown())

    @torch.no_grad()
    def shown(self) -> Any:
        """What the agent's own `view` gives of each state, which may be anything."""
        return self.agent.view(self.env.sights)

    def in_units(self, view: View) -> View:
        scale = float(getattr(self.learner, "reward_scale", 1.0))
        bars = view.bars.double().cpu()
        bars = bars / scale if view.kind == "action values" else bars
        return View(bars, view.value.double().cpu() / scale, view.kind)

    def is_idle(self, view: View) -> bool:
        """Whether it still thinks what it thought before the first step."""
        return self.first is not None and torch.equal(view.value, self.first.value)

    def share(self, best: tuple[int, ...]) -> float:
        """The share of greedy actions in the first states, asked for in turn and at random, that are the `best`."""
        rng, count, right = torch.Generator().manual_seed(0), 0, 0
        for t in range(8):
            state = torch.randint(len(best), (COPIES,), generator=rng)
            state = state if t % 2 else torch.full_like(state, t // 2 % len(best))
            action = self.greedy(self.env.sights[state.to(self.env.device)])
            count, right = count + COPIES, right + int((action == torch.tensor(best)[state]).sum())
        return right / count

    def greedy(self, obs: Tensor) -> Tensor:
        return torch.as_tensor(greedy(self.agent, obs)).cpu()

    def trained(self) -> Iterator[tuple[int, View | None]]:
        """Yields the number of steps, doubled each time, and the mean of what the agent thought in the last of them."""
        done, goal = 0, FIRST
        while goal <= MOST:
            half, views = (goal - done) // 2, []
            self.go_on(half)
            for _ in range(8):
                self.go_on(max(1, (goal - done - half) // 8))
                if self.has_view:
                    views.append(self.view())
            yield goal, mean(views) if views else None
            done, goal = goal, 2 * goal

    @property
    def has_view(self) -> bool:
        return callable(getattr(self.agent, "view", None))


def mean(views: Sequence[View]) -> View:
    bars, value = (torch.stack(x).mean(0) for x in ([v.bars for v in views], [v.value for v in views]))
    return View(bars, value, views[0].kind)


def greedy(agent: Any, obs: Tensor) -> Any:
    """The best action of an agent, or of one whose `act` knows no other."""
    if "greedy" in inspect.signature(agent.act).parameters:
        return agent.act(obs, greedy=True)
    return agent.act(obs)
