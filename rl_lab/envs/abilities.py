"""What a world may offer beyond a VectorEnv. It declares an ability by its members; its class is never checked."""

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from rl_lab.core import calls
from rl_lab.core.errors import UserError
from rl_lab.envs.lens import Statistics
from rl_lab.envs.tabular.mdp import MDP, Layout
from rl_lab.types import VectorEnv

if TYPE_CHECKING:  # a gridworld is planned without it
    import gymnasium


@runtime_checkable
class Tabular(VectorEnv, Protocol):
    """A known MDP: it can be planned in, and a policy's regret is exact."""

    mdp: MDP

    @property
    def time_limit(self) -> int: ...
    def states(self, obs: Tensor) -> Tensor: ...  # [..., *obs_shape] -> int64 [...]
    def all_observations(self) -> Tensor: ...  # [S, *obs_shape]


@runtime_checkable
class Filmed(VectorEnv, Protocol):
    """A world that takes pictures of itself. It has a setting `camera`, and pictures only where that is on."""

    def picture(self) -> np.ndarray: ...  # uint8 [N, H, W, 3], of the envs as they are now
    def sees_picture(self) -> bool: ...  # whether an observation [C, H, W] is that picture, at whatever size


def has_camera(target: str) -> bool:
    """Whether the world that is built by this dotted name has the setting: its signature is the schema."""
    return "camera" in inspect.signature(calls.locate(target)).parameters


@runtime_checkable
class Redrawn(VectorEnv, Protocol):
    """A world whose picture follows from an observation; as `Filmed`, only where its `camera` is on."""

    def redrawn(self, obs: Tensor) -> np.ndarray: ...  # [*obs_shape] -> uint8 [H, W, 3]


@runtime_checkable
class Replaying(VectorEnv, Protocol):
    """A world whose state is the list of actions played: loading it plays them again."""

    replayed: tuple[int, float]  # steps and seconds that it took, the last time


@runtime_checkable
class OfGymnasium(VectorEnv, Protocol):
    """A vector of Gymnasium's environments."""

    def copies(self) -> "Sequence[gymnasium.Env]": ...  # each as Gymnasium makes it, to be driven by hand; maybe none


@runtime_checkable
class Normalising(VectorEnv, Protocol):
    """A world that keeps statistics of what it shows, to normalise it by; `share`d ones it sees by and leaves alone."""

    statistics: Statistics

    def share(self, statistics: Statistics) -> None: ...


def alike(env: VectorEnv, eval_env: VectorEnv) -> None:
    """Raises UserError where an agent that learns in `env` cannot act in `eval_env`."""
    for what, one, other in (("observations", env.spec.obs_shape, eval_env.spec.obs_shape),
                             ("observations", env.spec.obs_dtype, eval_env.spec.obs_dtype),
                             ("actions", env.spec.num_actions, eval_env.spec.num_actions)):  # fmt: skip
        if one != other:
            raise UserError(
                f"loop.eval_env has other {what} ({other}) than env ({one}), and what learns in one cannot act in the "
                "other; leave out the setting that makes them differ"
            )


def shared(env: VectorEnv, eval_env: VectorEnv) -> dict[str, Statistics]:
    """Makes `eval_env` use the statistics that `env` gathers; returns them for the checkpoint, {} where it
    never gathers any.

    Raises UserError where the two are not `alike`, or `eval_env` alone would normalise observations: by none.
    """
    alike(env, eval_env)
    if not (isinstance(env, Normalising) and env.statistics.obs):
        refuse_unlearned(eval_env, "set env.normalise_obs=true, for training too, or leave it out")
    if not isinstance(env, Normalising) or not isinstance(eval_env, Normalising):
        return {}
    if env.statistics.parts:
        eval_env.share(env.statistics)
    return {"statistics": env.statistics}


def refuse_unlearned(env: VectorEnv, remedy: str) -> None:
    """Raises UserError where the env would normalise observations, and no training gathers what it does that by."""
    if isinstance(env, Normalising) and env.statistics.obs:
        env.close()
        raise UserError(
            f"normalise_obs=true normalises by what training has seen, and here there is none of it; {remedy}"
        )


def refuse_statistics(env: VectorEnv, loop: str) -> None:
    """Raises UserError where the env keeps statistics, which this loop neither shares with evaluations nor saves."""
    if isinstance(env, Normalising) and env.statistics.parts:
        raise UserError(
            f"env.normalise_obs and env.normalise_reward are for loop=train and loop=sb3, not for loop={loop}; "
            "choose loop=train, or leave them out"
        )


@runtime_checkable
class WithOptions(VectorEnv, Protocol):
    """A world whose actions may be options that last several steps."""

    longest: int  # primitive steps of the longest one


class Map(NamedTuple):
    """Where things are, for drawing; cells are (y, x)."""

    layout: Layout
    agent: tuple[int, int] | None  # None: off the map
    goals: tuple[tuple[int, int], ...] = ()  # to be collected
    time_left: float | None = None  # share of the episode's; None: not shown
    clock: str = ""  # the same in words


@runtime_checkable
class Mapped(VectorEnv, Protocol):
    """A world that can be drawn as a map, from its observations."""

    @property
    def has_map(self) -> bool: ...
    def maps(self, obs: Tensor) -> Iterator[Map]: ...  # of each of [N, *obs_shape]


def can_be_filmed(env: object) -> bool:
    """Not a known world without a map, such as Taxi's table."""
    return not isinstance(env, Mapped) or env.has_map


Walkers = TypeVar("Walkers")
State = TypeVar("State")


class Advance(NamedTuple, Generic[Walkers, State]):
    """A step before it is observed: `successor` is where it led, `walkers` stand where the next one begins."""

    walkers: Walkers
    successor: State  # [N]
    reward: Tensor  # [N] float32
    discount: Tensor  # [N] float32
    last: Tensor  # [N] bool
    duration: Tensor | None = None  # [N] int64, primitive steps; None: one each


class Functional(VectorEnv, Protocol):
    """A world whose step is a function: `advance` maps walkers, actions and what chance draws to an Advance.

    Walkers are a tuple of tensors [N, ...]; a state is what `look` sees of them, a tensor or such a tuple.
    """

    walkers: Any

    @property
    def state(self) -> Any: ...  # of the walkers
    @property
    def bounds(self) -> tuple[float, float]: ...  # the least and the greatest number in an observation
    def seed(self, seed: int) -> None: ...
    def begun(self) -> Any: ...  # walkers at the start of new episodes
    def draw(self) -> tuple[Any, Any]: ...  # what chance decides in a step
    def advance(self, walkers: Any, action: Tensor, chance: Any, more_chance: Any, /) -> Advance[Any, Any]: ...
    def look(self, state: Any, /) -> Tensor: ...  # [N, *obs_shape]


def mixed(mask: Tensor, ones: Any, others: Any) -> Any:
    """Those of `ones` where the mask [N] is set, else those of `others`: tensors [N, ...], or tuples of them."""
    if isinstance(ones, Tensor):
        return torch.where(mask.view(-1, *[1] * (ones.ndim - 1)), ones, others)
    return type(ones)(*(mixed(mask, x, y) for x, y in zip(ones, others, strict=True)))
