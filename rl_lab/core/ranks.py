"""A run in several processes, each of them a rank: which states a checkpoint holds of each, and how ranks differ."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from rl_lab.core import distributed
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner, state_of


class Part(Protocol):
    """What a checkpoint holds by name."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Missed(Protocol):
    """A part that raises UserError where the checkpoint of a run that goes on has nothing of it."""

    def absent(self) -> None: ...


def own_states(parts: dict[str, Part]) -> dict[str, Any]:
    """What differs between ranks, for each part; nothing where the run is one process."""
    if distributed.size() == 1:
        return {}
    return {name: own_state(part) if isinstance(part, Learner) else part.state_dict() for name, part in parts.items()}


def own_state(learner: Learner) -> dict[str, Any]:
    """All but networks and optimizers, which are the same in every rank."""
    own = {name: getattr(learner, name) for name in learner.saved}
    return {name: state_of(part) for name, part in own.items() if not hasattr(part, "state_dict")}


def shared_out(saved: dict[str, Any], parts: dict[str, Part], stream: Callable[[str], int]) -> dict[str, Any]:
    """What this rank resumes of a checkpoint; every rank but the first draws from streams of its own from here on.

    Raises UserError where the number of ranks has changed, or a part cannot be learned by several.
    """
    size, savers = distributed.size(), 1 + len(saved.get("ranks", ()))
    if saved and savers != size:
        remedy = f"with torchrun and {savers} processes" if savers > 1 else "without torchrun"
        trained = f"{savers} process{'es' * (savers > 1)}"
        raise UserError(f"this run was trained by {trained}, not {size}; resume it {remedy}")
    learners = {name: part for name, part in parts.items() if isinstance(part, Learner)}
    able = learners and all(part.parallel for part in learners.values())
    if size > 1 and not able:
        what = next((type(part).__name__ for part in learners.values() if not part.parallel), "this loop")
        raise UserError(f"{what} learns in one process, and torchrun started {size}; start it without torchrun")
    if not distributed.rank():
        return saved
    for name, part in learners.items():
        part.part_ways(stream(name))
    own = saved["ranks"][distributed.rank() - 1] if saved else {}
    return saved | {name: saved[name] | state for name, state in own.items()}
