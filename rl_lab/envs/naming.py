"""The names of a Gymnasium environment's actions."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium import spaces

KNOWN = {  # classes of Gymnasium's own, which say it in prose
    "CartPoleEnv": ("left", "right"),
    "AcrobotEnv": ("left", "none", "right"),
    "MountainCarEnv": ("left", "none", "right"),
    "LunarLander": ("none", "left engine", "main engine", "right engine"),
    "FrozenLakeEnv": ("left", "down", "right", "up"),
    "CliffWalkingEnv": ("up", "right", "down", "left"),
    "TaxiEnv": ("south", "north", "east", "west", "pickup", "dropoff"),
    "BlackjackEnv": ("stick", "hit"),
}
MINATAR = {"n": "noop", "l": "left", "u": "up", "r": "right", "d": "down", "f": "fire"}


def of_actions(env: gymnasium.Env | None, count: int) -> tuple[str, ...]:
    """`count` names in lower case, by what the environment declares or is known for; else the actions' numbers."""
    numbers = tuple(str(a) for a in range(count))
    if env is None or not _own_space(env, count):
        return numbers
    found = [str(name).strip().lower() for name in _declared(env.unwrapped)]
    return tuple(found) if len(set(found)) == len(found) == count and all(found) else numbers


def _own_space(env: gymnasium.Env, count: int) -> bool:
    """Whether no wrapper has changed the actions."""
    own = env.unwrapped.action_space
    return isinstance(own, spaces.Discrete) and int(own.n) == count


def _declared(world: Any) -> Sequence[Any]:
    try:
        if callable(meanings := getattr(world, "get_action_meanings", None)):  # Atari's
            return [*meanings()]
        actions = getattr(world, "actions", None)  # MiniGrid's
        if isinstance(actions, type) and issubclass(actions, enum.IntEnum):
            return [action.name for action in sorted(actions)]
        if isinstance(actions := getattr(getattr(world, "action_type", None), "actions", None), Mapping):
            return [actions[a] for a in sorted(actions)]  # highway-env's
        if game := getattr(world, "game", None):  # MinAtar's
            letters, used = game.env.action_map, getattr(world, "action_set", range(6))
            return [MINATAR[letters[a]] for a in used]
    except Exception:  # a stranger's attribute of the same name may be anything
        return ()
    return of_gymnasium(type(world))


def of_gymnasium(kind: type) -> tuple[str, ...]:
    """The names for a class of Gymnasium's, or one derived from it; () where it has none."""
    return next((KNOWN[c.__name__] for c in kind.__mro__ if c.__name__ in KNOWN and _is_own(c)), ())


def _is_own(kind: type) -> bool:
    return kind.__module__.startswith("gymnasium.")
