"""The loop of fitted Q iteration: from a fixed set of transitions to a policy, by one regression after another."""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from rl_lab.agents.fitted_q import FittedQ, fitted_q
from rl_lab.agents.random import Random
from rl_lab.core import room
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import UserError, counted
from rl_lab.core.recording import Episode, Recording
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Place, Size, Unit
from rl_lab.envs.abilities import alike, refuse_statistics
from rl_lab.loops.judging import Judge
from rl_lab.loops.training import check_loop, check_statistics
from rl_lab.memory.episodes import play_episodes, transitions
from rl_lab.types import Spec, Transition, VectorEnv


def fit_q(
    env: VectorEnv,
    agent: Callable[..., FittedQ],
    run: Run,
    *,
    eval_env: VectorEnv,
    data: Place | None,  # a folder of rl-lab record; None: random episodes, played now
    random_steps: Count,  # of those episodes, at least
    iterations: Count,
    gamma: Unit,
    tolerance: Size,  # stops early when no q(s, a) of the data changes by more
    eval_every: Count,  # iterations
    eval_episodes: Judged,
) -> FittedQ:
    """Iterates on the data; `env` gives the form of the observations, and is played where there are no data yet."""
    check_loop(agent, "fit_q")
    alike(env, eval_env)
    refuse_statistics(env, "fit_q")
    if not env.spec.obs_shape:
        raise UserError("env.obs=index is a bare number, and regressions need a vector; use env.obs=one_hot")
    learner = agent(env.spec, device=run.device, seed=run.stream("agent"))
    check_statistics(learner)
    size = 2 * math.prod(env.spec.obs_shape) * env.spec.obs_dtype.itemsize + 25  # bytes of a transition
    room.memory(0 if data else size * random_steps, f"loop.random_steps={random_steps}")
    batch = recorded(data, env) if data else random_transitions(env, random_steps, run.stream("data"))
    batch = Transition(*(x.to(run.device) for x in batch))
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say)
    book = Book(run, {"agent": learner}, partial(judge, learner), total=iterations, eval_every=eval_every,
                log_every=1, unit="iterations")  # fmt: skip
    if not book.step:
        book.evaluations.due(0)  # before the first regression there is nothing to evaluate
    run.say(f"{counted(len(batch.reward), 'transitions')}, {counted(int(batch.last.sum()), 'episodes')}")
    iterates = fitted_q(batch, learner, gamma)
    for step in book.steps():
        iterate = next(iterates)
        book.add({"fitted_q/residual": iterate.residual, "fitted_q/change": iterate.change,
                  "fitted_q/value": iterate.q.mean()})  # fmt: skip
        if iterate.change <= tolerance:
            run.say(f"converged after {counted(step, 'iterations')}")
            book.stop()
    return learner


def recorded(folder: str, env: VectorEnv) -> Transition:
    """All transitions of a recording. Raises UserError where it is of another world than `env`."""
    recording = Recording(folder)
    batch = transitions(recording.episodes(), recording.frame_stack)
    check_recorded(recording, batch.obs, env.spec)
    return batch


def check_recorded(recording: Recording, obs: Tensor, spec: Spec) -> None:
    """Raises UserError where actions or observations [B, ...] are not those of this spec."""
    folder, actions = recording.folder, recording.about["actions"]
    numbered = [str(a) for a in range(spec.num_actions)]  # as older recordings have actions that have names by now
    if tuple(actions) != spec.actions and actions != numbered:
        raise UserError(f"{folder} has the actions {', '.join(actions)}, and this environment "
                        f"{', '.join(spec.actions)}; choose the env it was recorded in")  # fmt: skip
    if obs.shape[1:] != spec.obs_shape or obs.dtype != spec.obs_dtype:
        raise UserError(f"{folder} has observations {list(obs.shape[1:])}, and this environment "
                        f"{list(spec.obs_shape)}; choose the env it was recorded in")  # fmt: skip


def random_transitions(env: VectorEnv, steps: int, seed: int) -> Transition:
    """At least this many steps, in whole episodes; the same number of episodes from each env."""
    agent, rounds = Random(env.spec, env.device, seed), 0
    episodes: list[Episode] = []
    while sum(len(e.action) for e in episodes) < steps:
        episodes += play_episodes(env, agent.act, [1] * env.num_envs, (seed + rounds * env.num_envs) % 2**31)
        rounds += 1
    return transitions(episodes, env.spec.frame_stack)
