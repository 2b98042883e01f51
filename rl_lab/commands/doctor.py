"""What is wrong with an environment or an agent? Probes of known answer, and the exit code of their verdict."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rl_lab.core.errors import UserError
from rl_lab.core.launching.building import parts
from rl_lab.core.settings import Positive
from rl_lab.doctor import cost_probes, env_probes, gym_probes
from rl_lab.doctor.report import examined
from rl_lab.doctor.worlds import World

OF_ENV = (
    env_probes.runs,
    gym_probes.interface,
    gym_probes.spaces_,
    env_probes.numbers,
    env_probes.rewards,
    env_probes.seeding,
    env_probes.determinism,
    gym_probes.autoreset,
    gym_probes.by_loop,
    env_probes.tables,
    env_probes.ends,
    env_probes.time_limit,
    env_probes.buffers,
    cost_probes.pictures,
    cost_probes.speed,
    cost_probes.memory,
    cost_probes.left_behind,
)


def doctor(runs: Sequence[Path], *, settings: Sequence[str] = (), seconds: Positive) -> int:
    """1 where a probe fails, else 0. Raises UserError where there is nothing to examine."""
    groups = {setting.lstrip("+~").partition("=")[0].partition(".")[0] for setting in settings}
    if runs or not {"env", "agent"} & groups or {"env", "agent"} <= groups:
        raise UserError(
            "the doctor sees one environment, rl-lab doctor env=<name>, or one agent, rl-lab doctor agent=<name>"
        )
    title = " ".join(settings)
    return of_env(title, settings, seconds)


def of_env(title: str, settings: Sequence[str], seconds: float) -> int:
    (node,), seed = parts("rl", settings, "env")
    world = World(node, seed, seconds / len(OF_ENV))
    with closing(world.built(1)):  # what cannot be built at all is a mistake in the settings
        pass
    return examined(title, OF_ENV, world)
