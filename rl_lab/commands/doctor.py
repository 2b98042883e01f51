"""Finds what is wrong with an environment or an agent by probes with known answers; a failed probe is the exit code."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rl_lab.core.errors import UserError, nearest
from rl_lab.core.launching.building import parts
from rl_lab.core.launching.composition import parsed
from rl_lab.core.randomness import stream
from rl_lab.core.settings import Positive
from rl_lab.doctor import agent_probes, cost_probes, env_probes, gym_probes, problems
from rl_lab.doctor.courses import Candidate, Course
from rl_lab.doctor.report import examined
from rl_lab.doctor.worlds import World
from rl_lab.playing import guests

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
    cost_probes.left_behind,
    cost_probes.memory,
)


OF_AGENT = (
    agent_probes.interface,
    agent_probes.constant_reward,
    agent_probes.two_observations,
    agent_probes.reward_later,
    agent_probes.discounting,
    agent_probes.termination,
    agent_probes.truncation,
    agent_probes.rollout_seams,
    agent_probes.episode_seams,
    agent_probes.action_decides,
    agent_probes.patience,
    agent_probes.bandit,
    agent_probes.observation_suffices,
)

SECONDS = {"env": 20.0, "agent": 390.0}  # of the processor, for all probes together


def doctor(runs: Sequence[Path], *, settings: Sequence[str] = (), seconds: Positive | None) -> int:
    """1 where a probe fails, else 0. Raises UserError where there is nothing to examine."""
    groups = {setting.partition("=")[0] for setting in settings} & {"env", "agent"}
    if runs or len(groups) != 1:
        raise UserError(
            "the doctor sees one environment, rl-lab doctor env=<name>, or one agent, rl-lab doctor agent=<name>"
        )
    (group,) = groups
    examine = of_env if group == "env" else of_agent
    return examine(" ".join(settings), settings, seconds or SECONDS[group])


def of_env(title: str, settings: Sequence[str], seconds: float) -> int:
    (node,), seed, _ = parts("rl", settings, "env")
    world = World(node, seed, seconds / len(OF_ENV))
    checked_first(lambda: world.kind)
    return examined(title, OF_ENV, world, seconds)


def of_agent(title: str, settings: Sequence[str], seconds: float) -> int:
    named = next((s.partition("=")[2] for s in settings if s.startswith("agent=") and ":" in s), None)
    typed = {s.lstrip("+~").partition("=")[0].removeprefix("agent.") for s in settings}
    if named:
        own = [s.lstrip("+") for s in settings if s.lstrip("+").startswith("agent.")]
        rest = [s for s in settings if not s.lstrip("+").startswith(("agent.", "agent="))]
        _, seed, device = parts("rl", rest)
        make = class_of(named, {key: parsed(s).value() for s in own if (key := s.partition("=")[0][6:])})
    else:
        (make,), seed, device = parts("rl", settings, "agent")
        if str(make["_target_"]).startswith("rl_lab.agents.fitted_q."):
            raise UserError("this agent is fitted to recordings and acts in no world while it learns; choose another")
    torch.set_num_threads(1)
    candidate = Candidate(make, typed, stream(seed, "agent"), device, seconds / len(OF_AGENT))
    checked_first(lambda: Course(candidate, problems.CONSTANT))
    changed = " ".join(f"agent.{key}={value}" for key, value in candidate.caps.items())
    return examined(f"{title}{f' (for the probes {changed})' if changed else ''}", OF_AGENT, candidate)


def checked_first(build: Callable[[], Any]) -> None:
    """Builds it once. A UserError is a mistake in the settings; any other fault is left to the first probe."""
    try:
        build()
    except UserError:
        raise
    except Exception:
        pass


def class_of(name: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """`module:Class` with these settings filled in. Raises UserError where it is no agent, or does not take them."""
    found = guests.class_named(name)
    known = inspect.signature(found).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if unknown := [key for key in settings if key not in known and not takes_any]:
        raise UserError(f"no setting 'agent.{unknown[0]}'{nearest(unknown[0], known)}")
    given = {"spec", "device", "seed", "gamma"} | set(settings)
    needs = [
        k
        for k, p in known.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and k not in given
    ]
    if needs:
        raise UserError(f"agent.{needs[0]} is missing; give it a value: agent.{needs[0]}=...")
    return partial(found, **settings)
