"""What of a run's parts each of its ranks keeps in the one checkpoint, and takes out of it."""

from collections.abc import Callable

from rl_lab.core import distributed
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Learner


def own_states(parts: dict) -> dict:
    """Of each part what another rank would not know of it; of a run in one process, nothing."""
    if distributed.size() == 1:
        return {}
    return {name: part.own_state() if isinstance(part, Learner) else part.state_dict() for name, part in parts.items()}


def shared_out(saved: dict, parts: dict, stream: Callable[[str], int]) -> dict:
    """What of a checkpoint this rank goes on with; ranks but the first draw by streams of their own from here on.

    Raises UserError where so many ranks cannot learn these parts, or did not save them.
    """
    size, savers = distributed.size(), 1 + len(saved.get("ranks", ()))
    if saved and savers != size:
        remedy = f"with torchrun and {savers} processes" if savers > 1 else "without torchrun"
        raise UserError(f"processes: {savers} began this run, and now there is {size}; go on with it {remedy}")
    learners = {name: part for name, part in parts.items() if isinstance(part, Learner)}
    able = learners and all(part.parallel for part in learners.values())
    if size > 1 and not able:
        what = next((type(part).__name__ for part in learners.values() if not part.parallel), "what this loop runs")
        raise UserError(f"{what} learns in one process, and these are {size}; start it without torchrun")
    if not distributed.rank():
        return saved
    for name, part in learners.items():
        part.part_ways(stream(name))
    own = saved["ranks"][distributed.rank() - 1] if saved else {}
    return saved | {name: saved[name] | state for name, state in own.items()}
