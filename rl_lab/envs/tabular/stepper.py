"""N walkers in any finite MDP, on the device: no step waits for it."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from rl_lab.core.devices import Device
from rl_lab.core.randomness import generator, restore_generator
from rl_lab.core.settings import Bound, Envs
from rl_lab.envs.abilities import Advance, Map
from rl_lab.envs.tabular.lottery import Lottery
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.envs.tabular.observations import FORMS
from rl_lab.types import Spec, Step

AT_HAND = 2**24  # bytes: observations of all states are kept up to here, and drawn anew each step beyond


class Walkers(NamedTuple):
    state: Tensor  # [N] int64
    left: Tensor  # [N] float32, steps until the time limit


class MDPEnv:
    """N walkers in one MDP. An episode ends in a terminal state or, cut short, at the time limit.

    A step is `advance` on what `draw` gives, and a look at where that leads. `advance` only reads tables, so that it
    can be compiled; a CUDA graph can capture both once it knows the stream, `graph.register_generator_state(env.rng)`.
    """

    frames_per_second: float | None = None

    def __init__(
        self,
        mdp: MDP,
        num_envs: Envs,
        time_limit: Annotated[int, Bound(1, 10_000_000)],  # steps; float32 counts no further than 2^24
        *,
        obs: Literal["one_hot", "index", "planes", "coordinates"],
        device: Device,
    ):
        self.mdp, self.device = mdp.to(device), torch.device(device)
        self.num_envs, self.time_limit = num_envs, time_limit
        self.rng = generator(0, self.device)
        self.form = FORMS[obs](self.mdp)
        self.spec = Spec(self.form.shape, self.form.dtype, mdp.actions)
        all_states = torch.arange(len(mdp.start), device=self.device)
        self._outcomes, self._starts = Lottery(self.mdp.probability.flatten(0, 1)), Lottery(self.mdp.start[None])
        self._next_state = self._outcomes.table(self.mdp.next_state)
        self._reward = self._outcomes.table(self.mdp.reward.float())
        self._discount = (~self.mdp.terminal).float()
        self._first = self._starts.table(all_states)
        self._limit = torch.tensor(float(time_limit), device=self.device)
        self._durations = torch.ones(num_envs, device=self.device)  # every action takes one step
        kept = obs != "index" and 4 * len(mdp.start) * math.prod(self.spec.obs_shape) <= AT_HAND
        self._sights = self.form.draw(all_states) if kept else None
        self.visited = torch.zeros(len(mdp.start), dtype=torch.bool, device=self.device)  # [S] where one has acted

    def reset(self, seed: int) -> Tensor:
        self.seed(seed)
        self.walkers = self.begun()
        self._durations = torch.ones(self.num_envs, device=self.device)
        return self.observe()

    def seed(self, seed: int) -> None:
        """All that is drawn from now on follows from it."""
        self.rng.manual_seed(seed)

    def begun(self) -> Walkers:
        """Walkers at the start of new episodes."""
        _, first = self.draw()
        return Walkers(first.repeat(self.num_envs // first.numel()), self._limit.repeat(self.num_envs))

    def step(self, action: Tensor) -> Step:
        self.visited.index_fill_(0, self.walkers.state, True)
        self.walkers, successor, reward, discount, last, _ = self.advance(self.walkers, action, *self.draw())
        return Step(reward, discount, last, self.look(successor), self.observe(), self._durations)

    def draw(self) -> tuple[Tensor, Tensor]:
        """All that chance decides in a step: the outcome's draw and, for who needs it, a first state; [N], or []."""
        outcome = self._outcomes.draw(self.num_envs, self.rng)
        if self._starts.certain:
            return outcome, self._first
        return outcome, self._first.index_select(0, self._starts.entry(0, self._starts.draw(self.num_envs, self.rng)))

    def advance(self, walkers: Walkers, action: Tensor, outcome: Tensor, first: Tensor) -> Advance[Walkers, Tensor]:
        """The step as a function: nothing of the env changes."""
        entry = self._outcomes.entry(torch.add(action, walkers.state, alpha=self.spec.num_actions), outcome)
        successor, reward = self._next_state.index_select(0, entry), self._reward.index_select(0, entry)
        discount = self._discount.index_select(0, successor)
        left = (walkers.left - 1) * discount
        last = left == 0
        walkers = Walkers(torch.where(last, first, successor), torch.where(last, self._limit, left))
        return Advance(walkers, successor, reward, discount, last)

    def observe(self) -> Tensor:
        return self.look(self.state)

    @property
    def state(self) -> Tensor:
        """[N] int64, where the walkers are."""
        return self.walkers.state

    def states(self, obs: Tensor) -> Tensor:
        """Back from observations [..., *obs_shape] to the states [...] they are of."""
        return self.form.state(obs)

    def all_observations(self) -> Tensor:
        """[S, *obs_shape]: what each state looks like, in order."""
        return self.look(torch.arange(len(self.mdp.start), device=self.device))

    def look(self, state: Tensor) -> Tensor:
        return self.form.draw(state) if self._sights is None else self._sights.index_select(0, state)

    @property
    def bounds(self) -> tuple[float, float]:
        return self.form.bounds

    @property
    def has_map(self) -> bool:
        return self.mdp.layout is not None

    def maps(self, obs: Tensor) -> Iterator[Map]:
        if layout := self.mdp.layout:
            yield from (Map(layout, layout.cell(state)) for state in self.states(obs).tolist())

    def state_dict(self) -> dict:
        return {**self.walkers._asdict(), "rng": self.rng.get_state(), "visited": self.visited.clone()}

    def load_state_dict(self, state: dict) -> None:
        if len(state["state"]) != self.num_envs:
            raise ValueError(f"{len(state['state'])} walkers, not env.num_envs={self.num_envs}")
        if not ((state["state"] >= 0) & (state["state"] < len(self.mdp.start))).all():
            raise ValueError("walkers in states that this world does not have")
        self.walkers = Walkers(state["state"].to(self.device), state["left"].to(self.device))
        restore_generator(self.rng, state["rng"])
        seen = state.get("visited", torch.ones_like(self.visited))  # older checkpoints do not say
        self.visited = seen.to(self.device).clone()

    def close(self) -> None: ...
