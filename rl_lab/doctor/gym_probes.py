"""Probes of a Gymnasium environment driven by hand: its interface, its spaces, and all ways to reset it."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lab.doctor.report import Finding, cut_short, failed, not_applicable, passed, raised
from rl_lab.doctor.worlds import Row, World, by_hand, difference, script
from rl_lab.envs.gym import Own
from rl_lab.types import VectorEnv

NO_GYMNASIUM = not_applicable("no environment of Gymnasium's is beneath it")
STEPS = 300  # of each copy


def interface(world: World) -> Finding:
    """Runs Gymnasium's own check_env; its warnings are no faults."""
    if not world.kind.is_gymnasium:
        return NO_GYMNASIUM
    with world.singles(1) as envs, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for env in envs:
            try:
                check_env(env, skip_render_check=True, skip_close_check=True)
            except Exception as error:
                return failed(f"Gymnasium's check_env: {raised(error)}")
    remarks = [" ".join(str(w.message).split()) for w in told if "different from the unwrapped" not in str(w.message)]
    remarks = [words.removeprefix("\x1b[33mWARN: ").removesuffix("\x1b[0m") for words in remarks]
    more = f"; it remarks: {remarks[0][:150]}" if remarks else ""
    return passed(f"Gymnasium's check_env finds no fault{more}")


def spaces_(world: World) -> Finding:
    """Checks what it returns against its spaces and Gymnasium's interface."""
    if not world.kind.is_gymnasium:
        return NO_GYMNASIUM
    with world.singles(1) as (env,):
        for t, row in enumerate(by_hand(env, world.seed, script(world.seed, 0, env, STEPS), world.seconds)):
            for obs in (row.obs, row.next_obs):
                if fault := outside(env.observation_space, obs):
                    return failed(f"step {t}: {fault}; what is scaled or stored by the space is wrong")
            for name in ("terminated", "truncated"):
                if not isinstance(getattr(row, name), bool | np.bool_):
                    return failed(f"step {t}: {name} is {getattr(row, name)!r}, not true or false")
        return passed(f"{t + 1} observations lie in {' '.join(str(env.observation_space).split())}")


spaces_.__name__ = "spaces"


def outside(space: spaces.Space, obs: Any) -> str:
    """Why an observation is not in its space, in words; '' where it is."""
    if not isinstance(space, spaces.Box):
        return "" if space.contains(obs) else f"an observation {obs!r:.60} is not in {space}"
    if not isinstance(obs, np.ndarray):
        return f"an observation is a {type(obs).__name__}, and its space says an array"
    if obs.dtype != space.dtype or obs.shape != space.shape:
        return f"an observation is {obs.dtype} {obs.shape}, and its space says {space.dtype} {space.shape}"
    if not (wrong := ~((obs >= space.low) & (obs <= space.high))).any():
        return ""
    at = tuple(np.argwhere(wrong)[0].tolist())
    return f"an observation holds {obs[at]:g} at {list(at)}, and its space says {space.low[at]:g} to {space.high[at]:g}"


# -- episodes, driven by hand and by vectors


def autoreset(world: World) -> Finding:
    """The same transitions come by hand and in each of Gymnasium's three modes, and none is made up."""
    found = twins(world)
    if isinstance(found, Finding):
        return found
    actions, hand = found
    ways = {mode.value: partial(through, mode=mode) for mode in AutoresetMode}
    for name, way in ways.items():
        with world.singles(2) as envs:
            tapes = way([own(env) for env in envs], world.seed, actions)
        if words := parted(hand, tapes):
            return failed(f"in mode {name} {words} from the same by hand: learners in that mode meet another world")
    ended = sum(row.terminated or row.truncated for tape in hand for row in tape)
    if not ended:
        return cut_short(autoreset, world) or not_applicable(f"no episode ended in {len(hand[0])} steps")
    return passed(f"{ended} ends: by hand, {', '.join(ways)} give the same transitions")


def twins(world: World) -> Finding | tuple[list[list[int]], list[list[Row]]]:
    """The actions of two copies and what each shows when driven by hand, of equal length; or a finding that says why
    there is nothing to compare with.
    """
    if not world.kind.is_gymnasium:
        return NO_GYMNASIUM
    if not world.repeats:
        return not_applicable("the same seed shows something else each time (see seeding)")
    with world.singles(2) as envs:
        actions = [script(world.seed, i, env, STEPS) for i, env in enumerate(envs)]
        rows = [by_hand(own(env), world.seed + i, actions[i], world.seconds / 2) for i, env in enumerate(envs)]
        hand = [[row._replace(reward=float(row.reward)) for row in tape] for tape in rows]
    length = min(map(len, hand))
    return [tape[:length] for tape in actions], [tape[:length] for tape in hand]


def own(env: gymnasium.Env) -> Own:
    return Own(env, env.spec.id if env.spec else type(env.unwrapped).__name__)


def by_loop(world: World) -> Finding:
    """Compares returns, lengths and ends of episodes as training here sees them with a twin driven by hand."""
    found = twins(world)
    if isinstance(found, Finding):
        return found
    actions, hand = found
    with world.singles(1) as envs:
        first = int(envs[0].action_space.start)  # type: ignore[attr-defined]
    with closing(world.built(2)) as env:
        ours = episodes(seen_by_loop(env, world.seed, np.array(actions) - first))
    twin = [episodes_by_hand(tape) for tape in hand]
    for i, (a, b) in enumerate(zip(ours, twin, strict=True)):
        for k, (x, y) in enumerate(zip(a, b, strict=False)):
            if told(x) != told(y):  # nan equals itself
                return failed(f"episode {k} of copy {i} is {told(x)} in training, and by hand {told(y)}: "
                              "learners are given another return")  # fmt: skip
        if len(a) != len(b):
            return failed(f"copy {i} ends {len(a)} episodes in training and {len(b)} by hand")
    if not (count := sum(map(len, twin))):
        return cut_short(by_loop, world) or not_applicable(f"no episode ended in {len(hand[0])} steps")
    both = sum(bool(row.terminated and row.truncated) for tape in hand for row in tape)
    more = f"; {both} ends are both terminated and truncated, and taken as terminated" if both else ""
    return passed(f"{count} episodes have the return, length and end of a twin driven by hand{more}")


by_loop.__name__ = "returns"


def parted(hand: Sequence[Sequence[Row]], tapes: Sequence[Sequence[Row]]) -> str:
    """The first place where two copies' tapes differ, in words; '' where they do not."""
    found = (
        f"copy {i}: {words}" for i, (a, b) in enumerate(zip(hand, tapes, strict=True)) if (words := difference(a, b))
    )
    return next(found, "")


def through(envs: Sequence[gymnasium.Env], seed: int, actions: Sequence[Sequence[int]], mode: AutoresetMode
            ) -> list[list[Row]]:  # fmt: skip
    """The transitions of each copy in one of Gymnasium's vectors, until each has taken all its actions."""
    makers: list[Callable[[], gymnasium.Env]] = [lambda env=env: env for env in envs]  # type: ignore[misc]
    vector, tapes = SyncVectorEnv(makers, autoreset_mode=mode), [list[Row]() for _ in envs]
    obs, _ = vector.reset(seed=seed)
    over, number = np.zeros(len(envs), bool), len(envs)
    while min(map(len, tapes)) < len(actions[0]):
        if mode is AutoresetMode.DISABLED and over.any():
            obs, _ = vector.reset(options={"reset_mask": over})
            over = np.zeros(number, bool)
        action = np.array([actions[i][min(len(tape), len(actions[i]) - 1)] for i, tape in enumerate(tapes)])
        answer, reward, terminated, truncated, info = vector.step(action)
        phantom = over if mode is AutoresetMode.NEXT_STEP else np.zeros(number, bool)
        over = terminated | truncated
        for i, tape in enumerate(tapes):
            if phantom[i] or len(tape) >= len(actions[i]):
                continue
            final = over[i] and mode is AutoresetMode.SAME_STEP
            next_obs = info["final_obs"][i] if final else answer[i]
            tape.append(Row(obs[i], int(action[i]), float(reward[i]), terminated[i], truncated[i], next_obs))
        obs = answer
    return tapes


Ending = tuple[float, int, str]  # return, length, and how it ended


def seen_by_loop(env: VectorEnv, seed: int, actions: np.ndarray) -> Iterator[list[tuple[float, bool, bool]]]:
    env.reset(seed)
    for action in torch.from_numpy(actions.T.copy()).to(env.device):
        step = env.step(action)
        yield list(zip(step.reward.tolist(), (step.discount == 0).tolist(), step.last.tolist(), strict=True))


def episodes(steps: Iterator[list[tuple[float, bool, bool]]]) -> list[list[Ending]]:
    """The episodes of each copy, from (reward, whether the future ends, whether the episode does) a step."""
    tapes = [list(tape) for tape in zip(*steps, strict=True)]
    return [ended(tape) for tape in tapes]


def episodes_by_hand(rows: Sequence[Row]) -> list[Ending]:
    tape = ((float(np.float32(r.reward)), bool(r.terminated), bool(r.terminated or r.truncated)) for r in rows)
    return ended(list(tape))


def ended(tape: Sequence[tuple[float, bool, bool]]) -> list[Ending]:
    found, total, length = list[Ending](), 0.0, 0
    for reward, final, last in tape:
        total, length = total + reward, length + 1
        if last:
            found.append((round(total, 6), length, "terminated" if final else "truncated"))
            total, length = 0.0, 0
    return found


def told(ending: Ending) -> str:
    return f"{ending[2]} after {ending[1]} steps with {ending[0]:g}"
