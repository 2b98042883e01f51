"""Stable-Baselines3 as a yardstick: it keeps its own loop; environment, metrics and evaluation are ours."""

import math
from collections.abc import Callable
from functools import partial

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from rl_lab.agents.sb3 import AsVecEnv, SB3Agent
from rl_lab.core import calls
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import UserError
from rl_lab.core.ranks import Part
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Limit, Natural
from rl_lab.envs.abilities import WithOptions, shared
from rl_lab.loops.episodes import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.types import VectorEnv


def train_sb3(
    env: VectorEnv,
    agent: Callable[..., BaseAlgorithm],
    run: Run,
    *,
    eval_env: VectorEnv,
    total_steps: Count,
    eval_every: Count | None,
    eval_episodes: Judged,
    eval_drawn: Natural,
    log_every: Count | None,
    stop_at: float | None,
    max_abs_reward: Limit,
) -> SB3Agent:
    """`agent` is an SB3 class with its hyperparameters: everything but env, seed and device.

    A resumed run keeps parameters, optimizer and step count; SB3's rollout or replay and its exploration schedule
    start anew. SB3 knows no discount but agent.gamma, once an action: where actions are options that last, it learns
    another return than agents of ours, who discount each of an option's steps.
    """
    episodes = Episodes(env.num_envs, env.device)
    wrapped = AsVecEnv(env, run.stream("env"), max_abs_reward, lambda step: episodes.add(step.reward, step.last))
    player = SB3Agent(built(agent, wrapped, run))
    if isinstance(env, WithOptions) and env.longest > 1:
        run.say("SB3 applies agent.gamma once per option, not once per step of it as our agents do")
    player.model.set_logger(Logger(None, []))  # its own would write a folder of its own
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say, eval_drawn)
    parts: dict[str, Part] = {"agent": player, **shared(env, eval_env)}
    book = Book(run, parts, partial(judge, player), total=total_steps, eval_every=eval_every,
                log_every=log_every, episodes=episodes, stop_at=stop_at)  # fmt: skip
    if first := book.step:
        episodes.reset()
        run.say("SB3 keeps parameters, optimizer and steps; its rollout or replay and its schedules start anew")
        whole = getattr(player.model, "n_steps", 1) * env.num_envs
        if (end := first + math.ceil((book.total - first) / whole) * whole) - book.total >= whole / 2:
            run.say(f"it learns from whole rollouts of {whole:,} steps, and so goes on to step {end:,}")

    class Report(BaseCallback):
        def _on_step(self) -> bool:
            book.step = first + self.num_timesteps
            book.add({})
            book.pause()
            return book.total == total_steps or book.step < book.total  # at total_steps SB3 learns once more and ends

    book.begin()
    book.pause()
    player.model.learn(book.total - first, callback=Report())
    book.learned = book.learned or player.model._n_updates > 0
    book.close()
    return player


# arguments of every SB3 class that the lab gives, and what stands for them
SET = {"seed": ", and type seed=...", "device": ", and type device=...", "_init_setup_model": "",
       "tensorboard_log": ", and type tracker=tensorboard"}  # fmt: skip


def built(agent: Callable[..., BaseAlgorithm], env: AsVecEnv, run: Run) -> BaseAlgorithm:
    """Builds the model. Raises UserError where the agent is not one of SB3's, or SB3 refuses it."""
    kind, shape = calls.behind(agent), env.observation_space.shape
    if not (isinstance(kind, type) and issubclass(kind, BaseAlgorithm)):
        raise UserError(f"loop=sb3 is for the agents of Stable-Baselines3, and this one is {kind.__name__}; "
                        "choose agent=sb3_dqn, sb3_a2c or sb3_ppo, or loop=train")  # fmt: skip
    if typed := [name for name in SET if name in getattr(agent, "keywords", {})]:
        raise UserError(f"agent.{typed[0]} is set by the lab itself; leave it out{SET[typed[0]]}")
    if not shape:
        raise UserError("env.obs=index is a bare number, and networks need a vector; use env.obs=one_hot")
    try:
        return agent(env=env, seed=run.stream("agent"), device=run.device)
    except (AssertionError, TypeError, ValueError) as error:
        words = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Stable-Baselines3's {kind.__name__} cannot be built for observations {shape}: {words}"
        ) from error
